// Attention over blocks of 64 keys with a running softmax (Dao et al., arXiv 2205.14135).
#include "tile.h"

/// Keys in a block, queries in a tile, blocks in a group (whose logits are kept for one step of the softmax), and
/// logits in a row of a group.
enum { KEYS = 64, QUERIES = 6, GROUP = 8, ROW = GROUP * KEYS };

size_t VARIANT(cpu_attention_scratch)(size_t head_dim, size_t rows) {
    const size_t width = (head_dim + LANES - 1) / LANES * LANES;
    // The sums of the rows, their maxima and denominators, and the logits and weights of one tile.
    return rows * (width + 2) + 2 * QUERIES * ROW;
}

/// Turns the logits of a tile into weights, and updates each row's maximum and denominator. `factor`: set to the
/// factor of each row's earlier sums.
INLINE void soften(const struct cpu_attention_job *job, float *logits, uint16_t *weights,
                   size_t rows, size_t first_query, const int32_t *blocks, size_t count, float *top,
                   float *total, float *factor) {
    const v16 scale = v_set(job->scale);
    for (size_t i = 0; i < rows; i++) {
        float *row = logits + i * ROW;
        v16 best = v_set(-INFINITY);
        for (size_t b = 0; b < count; b++)
            for (size_t j = 0; j < KEYS; j += LANES) {
                const size_t key = (size_t)blocks[b] * KEYS + j;
                const lanes_t lanes = key < job->keys ? first_lanes(job->keys - key) : 0;
                v16 x = v_mul(v_load(row + b * KEYS + j), scale);
                if (job->bias)
                    x = v_add(x,
                                      v_load_first(lanes, job->bias + (long)key
                                                                       - (long)(first_query + i)));
                x = v_keep(lanes, x, v_set(-INFINITY));
                v_store(row + b * KEYS + j, x);
                best = v_max(best, x);
            }
        const float before = top[i];
        const float now = __builtin_fmaxf(before, v_largest(best));
        const v16 highest = v_set(now);
        v16 sum = v_zero();
        for (size_t b = 0; b < count; b++)
            for (size_t j = 0; j < KEYS; j += LANES) {
                v16 p = exp_f32(v_sub(v_load(row + b * KEYS + j), highest));
                const size_t key = (size_t)blocks[b] * KEYS + j;
                for (size_t n = 0; n < 2; n++) {
                    const size_t last = job->keys - 2 + n;
                    if (key <= last && last < key + LANES)
                        p = v_scale_lane(p, last - key, job->last_key_counts[n]);
                }
                sum = v_add(sum, p);
                if (job->kind == CPU_BF16)
                    h_store_first(LANES, weights + i * ROW + b * KEYS + j, f32_to_bf16(p));
                else
                    v_store(row + b * KEYS + j, p);
            }
        factor[i] = v_first(exp_f32(v_set(before - now)));
        total[i] = total[i] * factor[i] + v_sum(sum);
        top[i] = now;
    }
}

TARGET void VARIANT(cpu_attention)(const struct cpu_attention_job *job, const void *q, void *out,
                          size_t out_stride, int f32_out, size_t first_row, size_t last_row,
                          const int32_t *blocks, size_t block_count, float *scratch) {
    const enum cpu_kind kind = job->kind;
    const size_t dim = job->head_dim, width = (dim + LANES - 1) / LANES * LANES;
    const size_t words = word_count(kind, dim), count = last_row - first_row;
    const size_t key_bytes = cpu_packed_bytes(kind, KEYS, dim),
                 value_bytes = cpu_packed_bytes(kind, dim, KEYS);
    const size_t panels = cpu_panel_count(kind, dim);
    float *sums = scratch, *top = sums + count * width, *total = top + count;
    float *logits = total + count;
    uint16_t *rounded = (uint16_t *)(logits + QUERIES * ROW);
    const char *weights = kind == CPU_BF16 ? (const char *)rounded : (const char *)logits;
    const size_t weight_stride = ROW * (kind == CPU_BF16 ? 2 : 4);
    float c[MAX_TILE * LANES], factor[QUERIES];
    struct run runs[GROUP];
    for (size_t i = 0; i < count; i++) {
        top[i] = -INFINITY;
        total[i] = 0;
    }
    const size_t tiles = (count + QUERIES - 1) / QUERIES;
    // A group of keys and values stays in the cache while all queries are computed with it.
    for (size_t first = 0; first < block_count; first += GROUP) {
        const size_t in_group = block_count - first < GROUP ? block_count - first : GROUP;
        const int32_t *group = blocks + first;
        for (size_t t = 0; t < tiles; t++) {
            const size_t begin = t * count / tiles, rows = (t + 1) * count / tiles - begin;
            const char *query = (const char *)q + (first_row + begin) * job->stride;
            for (size_t b = 0; b < in_group; b++) {
                const size_t left = job->keys - (size_t)group[b] * KEYS;
                const size_t vectors = left < KEYS ? (left + LANES - 1) / LANES : KEYS / LANES;
                runs[0] = (struct run){
                    query, (const char *)job->packed_keys + (size_t)group[b] * key_bytes, 0};
                cpu_tiles[kind][vectors - 1][rows - 1](runs, 1, words, job->stride, c);
                for (size_t i = 0; i < rows; i++)
                    for (size_t j = 0; j < vectors; j++)
                        v_store(logits + i * ROW + b * KEYS + j * LANES,
                                         v_load(c + (i * vectors + j) * LANES));
            }
            soften(job, logits, rounded, rows, first_row + begin, group, in_group, top + begin,
                   total + begin, factor);
            for (size_t index = 0; index < panels; index++) {
                const struct panel p = cpu_panel(kind, dim, KEYS, index);
                for (size_t b = 0; b < in_group; b++)
                    runs[b] = (struct run){weights + b * KEYS * (kind == CPU_BF16 ? 2 : 4),
                                           (const char *)job->packed_values
                                               + (size_t)group[b] * value_bytes + p.offset,
                                           0};
                cpu_tiles[kind][p.vectors - 1][rows - 1](runs, in_group, word_count(kind, KEYS),
                                                         weight_stride, c);
                for (size_t i = 0; i < rows; i++) {
                    float *sum = sums + (begin + i) * width + p.first_column;
                    const v16 f = v_set(factor[i]);
                    for (size_t j = 0; j < p.vectors; j++) {
                        const v16 x = v_load(c + (i * p.vectors + j) * LANES);
                        const v16 before =
                            first == 0 ? v_zero() : v_load(sum + j * LANES);
                        v_store(sum + j * LANES, v_fma(before, f, x));
                    }
                }
            }
        }
    }
    const int bf16 = kind == CPU_BF16 && !f32_out;
    for (size_t i = 0; i < count; i++) {
        const v16 d = v_set(total[i]);
        char *row = (char *)out + (first_row + i) * out_stride;
        for (size_t j = 0; j < dim; j += LANES)
            store_lanes(row, j, first_lanes(dim - j), bf16,
                        v_div(v_load(sums + i * width + j), d));
    }
}
