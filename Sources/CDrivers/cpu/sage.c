// SageAttention over selected blocks of keys (Zhang et al., arXiv 2411.10958): 8-bit q k, 8- or 16-bit P.
#include "tile.h"

/// Queries in a tile.
enum { SAGE_QUERIES = 6 };

size_t VARIANT(cpu_sage_scratch)(size_t head_dim, size_t key_block, size_t rows) {
    // The sums of the rows, their maxima and denominators, and the logits of one tile.
    return rows * (head_dim + 2) + SAGE_QUERIES * key_block;
}

/// The sum of a row in the order of the definition: in eight lanes of four parts, whole parts of 32 first.
INLINE float sum_row(const float *x, size_t n) {
    v16 ab = v_zero(), cd = v_zero();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        ab = v_add(ab, v_load(x + i));
        cd = v_add(cd, v_load(x + i + LANES));
    }
    float parts[2 * LANES], tail = 0;
    v_store(parts, ab);
    v_store(parts + LANES, cd);
    for (; i + 8 <= n; i += 8)
        for (size_t lane = 0; lane < 8; lane++) parts[lane] += x[i + lane];
    for (; i < n; i++) tail += x[i];
    float sum = 0;
    for (size_t lane = 0; lane < 8; lane++) {
        const float ab_lane = parts[lane] + parts[lane + 8];
        const float cd_lane = parts[lane + 16] + parts[lane + 24];
        sum += ab_lane + cd_lane;
    }
    return sum + tail;
}

/// Turns a row of q k, the sums of codes, into P, and updates the row's maximum and denominator. Returns the factor of
/// the row's earlier sums.
INLINE float sage_weights(const struct cpu_sage_job *job, float *row, size_t count, float scale,
                          float *top, float *total) {
    v16 best = v_set(-INFINITY);
    for (size_t j = 0; j < count; j += LANES)
        best = v_max(v_keep(first_lanes(count - j), v_load(row + j), best), best);
    const float before = *top, now = __builtin_fmaxf(before, v_largest(best) * scale);
    const v16 factor = v_set(scale), shift = v_set(job->exponent_offset - now);
    for (size_t j = 0; j < count; j += LANES) {
        const v16 p = exp2_f32(v_add(v_mul(v_load(row + j), factor), shift));
        v_store(row + j, job->f16 ? v_round_f16(p) : p);
    }
    const float sum = sum_row(row, count), rescale = v_first(exp2_f32(v_set(before - now)));
    if (!job->f16)
        for (size_t j = 0; j < count; j += LANES)
            v_store(row + j, v_min(v_round_e4m3(v_load(row + j)), v_set(448.0f)));
    // Two statements, which are not fused.
    const float earlier = *total * rescale;
    *total = sum + earlier;
    *top = now;
    return rescale;
}

/// P V of a block of `count` keys for one tile and one panel of values.
INLINE void sage_product(const struct cpu_sage_job *job, const float *weights, size_t rows,
                         size_t count, const char *values, size_t vectors, float *c) {
    const tile_function tile = cpu_tiles[CPU_F32][vectors - 1][rows - 1];
    const size_t step = job->half_step ? job->half_step : count, stride = job->key_block * 4;
    for (size_t first = 0; first < count; first += step) {
        float part[MAX_TILE * LANES];
        const size_t words = count - first < step ? count - first : step;
        const struct run run = {(const char *)(weights + first),
                                values + first * vectors * LANES * 4, 0};
        tile(&run, 1, words, stride, first == 0 ? c : part);
        if (first > 0) add_tile(c, part, rows * vectors * LANES);
        if (job->half_step)
            for (size_t i = 0; i < rows * vectors * LANES; i += LANES)
                v_store(c + i, v_round_f16(v_load(c + i)));
    }
}

TARGET void VARIANT(cpu_sage)(const struct cpu_sage_job *job, const int8_t *q, float q_scale,
                              void *out, size_t first_row, size_t last_row, const int32_t *blocks,
                              size_t block_count, float *scratch) {
    const size_t dim = job->head_dim, width = job->key_block, count = last_row - first_row;
    const size_t depth = dim < SCALE_BLOCK ? dim : SCALE_BLOCK, parts = dim / depth;
    const size_t key_bytes = cpu_packed_bytes(CPU_INT8, width, dim),
                 value_bytes = cpu_packed_bytes(CPU_F32, dim, width);
    const size_t value_panels = cpu_panel_count(CPU_F32, dim);
    const size_t tiles = (count + SAGE_QUERIES - 1) / SAGE_QUERIES;
    float *sums = scratch, *top = sums + count * dim, *total = top + count, *logits = total + count;
    float c[MAX_TILE * LANES], rescale[SAGE_QUERIES];
    for (size_t i = 0; i < count * dim; i++) sums[i] = 0;
    for (size_t i = 0; i < count; i++) {
        top[i] = job->first_top;
        total[i] = job->first_total;
    }
    // A block of keys and values stays in the cache while all queries are computed with it.
    for (size_t n = 0; n < block_count; n++) {
        const size_t block = (size_t)blocks[n], left = job->keys - block * width;
        const size_t keys = left < width ? left : width;
        const char *packed_keys = (const char *)job->packed_keys + block * key_bytes;
        const char *packed_values = (const char *)job->packed_values + block * value_bytes;
        const float scale = q_scale * job->key_scales[block] * job->logit_scale;
        for (size_t t = 0; t < tiles; t++) {
            const size_t begin = t * count / tiles, rows = (t + 1) * count / tiles - begin;
            const char *query = (const char *)q + (first_row + begin) * job->q_stride;
            for (size_t index = 0; index < cpu_panel_count(CPU_INT8, keys); index++) {
                const struct panel p = cpu_panel(CPU_INT8, keys, dim, index);
                struct run runs[CPU_LARGEST_LINEAR_HEAD / SCALE_BLOCK];
                for (size_t r = 0; r < parts; r++)
                    runs[r] = (struct run){
                        query + r * depth,
                        packed_keys + p.offset + r * (depth / 4 + 1) * p.vectors * LANES * 4, 1};
                cpu_tiles[CPU_INT8][p.vectors - 1][rows - 1](runs, parts, depth / 4, job->q_stride,
                                                             c);
                for (size_t i = 0; i < rows; i++)
                    for (size_t j = 0; j < p.vectors; j++)
                        v_store(logits + i * width + p.first_column + j * LANES,
                                v_load(c + (i * p.vectors + j) * LANES));
            }
            for (size_t i = 0; i < rows; i++)
                rescale[i] = sage_weights(job, logits + i * width, keys, scale, top + begin + i,
                                          total + begin + i);
            for (size_t index = 0; index < value_panels; index++) {
                const struct panel p = cpu_panel(CPU_F32, dim, width, index);
                sage_product(job, logits, rows, keys, packed_values + p.offset, p.vectors, c);
                for (size_t i = 0; i < rows; i++) {
                    float *sum = sums + (begin + i) * dim + p.first_column;
                    const v16 factor = v_set(rescale[i]);
                    for (size_t j = 0; j < p.vectors * LANES; j += LANES)
                        v_store(sum + j, v_add(v_mul(v_load(sum + j), factor),
                                               v_load(c + i * p.vectors * LANES + j)));
                }
            }
        }
    }
    for (size_t i = 0; i < count; i++) {
        const v16 inverse = v_set(1.0f / total[i]);
        char *row = (char *)out + (first_row + i) * job->out_stride;
        for (size_t j = 0; j < dim; j += LANES) {
            v16 x = v_mul(v_load(sums + i * dim + j), inverse);
            if (job->value_scales) x = v_mul(x, v_load(job->value_scales + j));
            store_lanes(row, j, LANES, 1, x);
        }
    }
}
