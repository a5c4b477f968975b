// The linear branch of sparse-linear attention (SLA, arXiv 2509.24006, equation 5).
#include "tile.h"

/// Queries in a tile, keys in a block, and the widest head.
enum { BRANCH_QUERIES = 6, BRANCH_KEYS = 64, WIDEST = CPU_LARGEST_LINEAR_HEAD };

INLINE v16 rounded(v16 x, int bf16) { return bf16 ? round_bf16(x) : x; }

/// The softmax of a row, rounded. y: f32 [dim rounded up to a multiple of 16], with zeros from dim on
INLINE void softmax_row(const void *x, size_t dim, int bf16, float *y) {
    v16 best = v_set(-INFINITY), total = v_zero();
    for (size_t j = 0; j < dim; j += LANES) {
        const lanes_t lanes = first_lanes(dim - j);
        best = v_max(best, v_keep(lanes, load_lanes(x, j, lanes, bf16), best));
    }
    const v16 highest = v_set(v_largest(best));
    for (size_t j = 0; j < dim; j += LANES) {
        const lanes_t lanes = first_lanes(dim - j);
        const v16 e = exp_f32(v_sub(load_lanes(x, j, lanes, bf16), highest));
        const v16 kept = v_keep(lanes, e, v_zero());
        total = v_add(total, kept);
        v_store(y + j, kept);
    }
    const v16 inverse = v_set(1.0f / v_sum(total));
    for (size_t j = 0; j < dim; j += LANES)
        v_store(y + j, rounded(v_mul(v_load(y + j), inverse), bf16));
}

TARGET void VARIANT(cpu_key_features)(const struct cpu_linear_branch_job *job, const void *k, size_t block) {
    const int bf16 = job->kind == CPU_BF16;
    const size_t dim = job->head_dim, first = block * BRANCH_KEYS;
    const size_t count = job->tokens - first < BRANCH_KEYS ? job->tokens - first : BRANCH_KEYS;
    const size_t width = (job->tokens + BRANCH_KEYS - 1) / BRANCH_KEYS * BRANCH_KEYS;
    float rows[LANES][WIDEST];
    float *sums = job->block_sums + block * dim;
    for (size_t j = 0; j < dim; j++) sums[j] = 0;
    for (size_t start = 0; start < BRANCH_KEYS; start += LANES) {
        const size_t here = count <= start ? 0 : count - start < LANES ? count - start : LANES;
        for (size_t i = 0; i < here; i++) {
            softmax_row((const char *)k + (first + start + i) * job->stride, dim, bf16, rows[i]);
            for (size_t j = 0; j < dim; j++) sums[j] += rows[i][j];
        }
        for (size_t j = 0; j < dim; j++) {
            float column[LANES];
            for (size_t i = 0; i < LANES; i++) column[i] = i < here ? rows[i][j] : 0;
            store_lanes(job->features, j * width + first + start, LANES, bf16,
                        v_load(column));
        }
    }
}

TARGET void VARIANT(cpu_key_state)(const struct cpu_linear_branch_job *job, size_t first_row,
                          size_t last_row) {
    const enum cpu_kind kind = job->kind;
    const int bf16 = kind == CPU_BF16;
    const size_t dim = job->head_dim, size = bf16 ? 2 : 4;
    const size_t blocks = (job->tokens + BRANCH_KEYS - 1) / BRANCH_KEYS, width = blocks * BRANCH_KEYS;
    const size_t words = word_count(kind, BRANCH_KEYS), in_segment = SEGMENT / words;
    const size_t block_bytes = cpu_packed_bytes(kind, dim, BRANCH_KEYS);
    const struct cpu_epilogue epilogue = {.bf16 = bf16};
    for (size_t j = first_row; j < last_row; j++) {
        float sum = 0;
        for (size_t b = 0; b < blocks; b++) sum += job->block_sums[b * dim + j];
        job->feature_sum[j] = bf16 ? v_first(round_bf16(v_set(sum))) : sum;
    }
    float c[MAX_TILE * LANES], more[MAX_TILE * LANES];
    for (size_t index = 0; index < cpu_panel_count(kind, dim); index++) {
        const struct panel p = cpu_panel(kind, dim, BRANCH_KEYS, index);
        const size_t height = tile_rows(p.vectors), count = last_row - first_row;
        const size_t tiles = (count + height - 1) / height;
        for (size_t t = 0; t < tiles; t++) {
            const size_t row = first_row + t * count / tiles;
            const size_t rows = first_row + (t + 1) * count / tiles - row;
            for (size_t b = 0; b < blocks; b += in_segment) {
                struct run runs[SEGMENT];
                const size_t n = blocks - b < in_segment ? blocks - b : in_segment;
                for (size_t r = 0; r < n; r++)
                    runs[r] = (struct run){
                        (const char *)job->features + (row * width + (b + r) * BRANCH_KEYS) * size,
                        (const char *)job->packed_values + (b + r) * block_bytes + p.offset, 0};
                cpu_tiles[kind][p.vectors - 1][rows - 1](runs, n, words, width * size,
                                                         b == 0 ? c : more);
                if (b > 0) add_tile(c, more, rows * p.vectors * LANES);
            }
            finish_tile(&epilogue, c, rows, p.vectors, p.first_column, dim, NULL, job->state,
                        row * dim, dim);
        }
    }
}

TARGET void VARIANT(cpu_linear_branch)(const struct cpu_linear_branch_job *job, const void *q,
                              const void *sparse, void *out, size_t out_stride, int bf16_out,
                              size_t first_row, size_t last_row) {
    const enum cpu_kind kind = job->kind;
    const int bf16 = kind == CPU_BF16;
    const size_t dim = job->head_dim, size = bf16 ? 2 : 4;
    const size_t words = word_count(kind, dim), panels = cpu_panel_count(kind, dim);
    float features[WIDEST], c[MAX_TILE * LANES];
    // The rows of one tile, in f32 or bf16.
    float left[BRANCH_QUERIES * WIDEST];
    float divisors[BRANCH_QUERIES];
    for (size_t first = first_row; first < last_row; first += BRANCH_QUERIES) {
        const size_t rows = last_row - first < BRANCH_QUERIES ? last_row - first : BRANCH_QUERIES;
        for (size_t i = 0; i < rows; i++) {
            softmax_row((const char *)q + (first + i) * job->stride, dim, bf16, features);
            v16 sum = v_zero();
            for (size_t j = 0; j < dim; j += LANES) {
                const lanes_t lanes = first_lanes(dim - j);
                const v16 x = v_load(features + j);
                store_lanes(left, i * dim + j, lanes, bf16, x);
                const v16 weight = v_load_first(lanes, job->feature_sum + j);
                sum = v_add(sum, rounded(v_mul(x, weight), bf16));
            }
            const v16 total = rounded(v_set(v_sum(sum)), bf16);
            divisors[i] =
                v_first(rounded(v_add(total, v_set(1e-5f)), bf16));
        }
        float quotient[BRANCH_QUERIES * WIDEST];
        const struct run state = {(const char *)left, job->packed_state, 0};
        for (size_t index = 0; index < panels; index++) {
            const struct panel p = cpu_panel(kind, dim, dim, index);
            const struct run run = {state.a, state.b + p.offset, 0};
            cpu_tiles[kind][p.vectors - 1][rows - 1](&run, 1, words, dim * size, c);
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < p.vectors; j++) {
                    const size_t column = p.first_column + j * LANES;
                    const v16 sum = v_load(c + (i * p.vectors + j) * LANES);
                    store_lanes(quotient, i * dim + column, first_lanes(dim - column), bf16,
                                v_div(rounded(sum, bf16), v_set(divisors[i])));
                }
        }
        for (size_t index = 0; index < panels; index++) {
            const struct panel p = cpu_panel(kind, dim, dim, index);
            const struct run run = {(const char *)quotient,
                                    (const char *)job->packed_projection + p.offset, 0};
            cpu_tiles[kind][p.vectors - 1][rows - 1](&run, 1, words, dim * size, c);
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < p.vectors; j++) {
                    const size_t column = p.first_column + j * LANES;
                    const lanes_t lanes = first_lanes(dim - column);
                    v16 x = v_load(c + (i * p.vectors + j) * LANES);
                    if (job->bias)
                        x = v_add(x, v_load_first(lanes, job->bias + column));
                    const void *other = (const char *)sparse + (first + i) * job->stride;
                    x = v_add(rounded(x, bf16), load_lanes(other, column, lanes, bf16));
                    store_lanes((char *)out + (first + i) * out_stride, column, lanes, bf16_out,
                                rounded(x, bf16));
                }
        }
    }
}
