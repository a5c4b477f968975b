// The linear branch of sparse-linear attention (SLA, arXiv 2509.24006, equation 5).
#include "tile.h"

#if defined(__x86_64__)

/// Queries in a tile, keys in a block, and the widest head.
enum { QUERIES = 6, KEYS = 64, WIDEST = CPU_LARGEST_LINEAR_HEAD };

INLINE __m512 rounded(__m512 x, int bf16) { return bf16 ? round_bf16(x) : x; }

/// The softmax of a row, rounded. y: f32 [dim rounded up to a multiple of 16], with zeros from dim on
INLINE void softmax_row(const void *x, size_t dim, int bf16, float *y) {
    __m512 best = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (size_t j = 0; j < dim; j += LANES) {
        const __mmask16 lanes = first_lanes(dim - j);
        best = _mm512_mask_max_ps(best, lanes, best, load_lanes(x, j, lanes, bf16));
    }
    const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(best));
    for (size_t j = 0; j < dim; j += LANES) {
        const __mmask16 lanes = first_lanes(dim - j);
        const __m512 e = exp_f32(_mm512_sub_ps(load_lanes(x, j, lanes, bf16), highest));
        const __m512 kept = _mm512_maskz_mov_ps(lanes, e);
        total = _mm512_add_ps(total, kept);
        _mm512_storeu_ps(y + j, kept);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (size_t j = 0; j < dim; j += LANES)
        _mm512_storeu_ps(y + j, rounded(_mm512_mul_ps(_mm512_loadu_ps(y + j), inverse), bf16));
}

TARGET void cpu_key_features(const struct cpu_linear_branch_job *job, const void *k, size_t block) {
    const int bf16 = job->kind == CPU_BF16;
    const size_t dim = job->head_dim, first = block * KEYS;
    const size_t count = job->tokens - first < KEYS ? job->tokens - first : KEYS;
    const size_t width = (job->tokens + KEYS - 1) / KEYS * KEYS;
    float rows[LANES][WIDEST];
    float *sums = job->block_sums + block * dim;
    for (size_t j = 0; j < dim; j++) sums[j] = 0;
    for (size_t start = 0; start < KEYS; start += LANES) {
        const size_t here = count <= start ? 0 : count - start < LANES ? count - start : LANES;
        for (size_t i = 0; i < here; i++) {
            softmax_row((const char *)k + (first + start + i) * job->stride, dim, bf16, rows[i]);
            for (size_t j = 0; j < dim; j++) sums[j] += rows[i][j];
        }
        for (size_t j = 0; j < dim; j++) {
            float column[LANES];
            for (size_t i = 0; i < LANES; i++) column[i] = i < here ? rows[i][j] : 0;
            store_lanes(job->features, j * width + first + start, 0xFFFF, bf16,
                        _mm512_loadu_ps(column));
        }
    }
}

TARGET void cpu_key_state(const struct cpu_linear_branch_job *job, size_t first_row,
                          size_t last_row) {
    const enum cpu_kind kind = job->kind;
    const int bf16 = kind == CPU_BF16;
    const size_t dim = job->head_dim, size = bf16 ? 2 : 4;
    const size_t blocks = (job->tokens + KEYS - 1) / KEYS, width = blocks * KEYS;
    const size_t words = word_count(kind, KEYS), in_segment = SEGMENT / words;
    const size_t block_bytes = cpu_packed_bytes(kind, dim, KEYS);
    const struct cpu_epilogue epilogue = {.bf16 = bf16};
    for (size_t j = first_row; j < last_row; j++) {
        float sum = 0;
        for (size_t b = 0; b < blocks; b++) sum += job->block_sums[b * dim + j];
        job->feature_sum[j] = bf16 ? _mm512_cvtss_f32(round_bf16(_mm512_set1_ps(sum))) : sum;
    }
    float c[MAX_TILE * LANES], more[MAX_TILE * LANES];
    for (size_t index = 0; index < cpu_panel_count(kind, dim); index++) {
        const struct panel p = cpu_panel(kind, dim, KEYS, index);
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
                        (const char *)job->features + (row * width + (b + r) * KEYS) * size,
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

TARGET void cpu_linear_branch(const struct cpu_linear_branch_job *job, const void *q,
                              const void *sparse, void *out, size_t out_stride, int bf16_out,
                              size_t first_row, size_t last_row) {
    const enum cpu_kind kind = job->kind;
    const int bf16 = kind == CPU_BF16;
    const size_t dim = job->head_dim, size = bf16 ? 2 : 4;
    const size_t words = word_count(kind, dim), panels = cpu_panel_count(kind, dim);
    float features[WIDEST], c[MAX_TILE * LANES];
    // The rows of one tile, in f32 or bf16.
    float left[QUERIES * WIDEST];
    float divisors[QUERIES];
    for (size_t first = first_row; first < last_row; first += QUERIES) {
        const size_t rows = last_row - first < QUERIES ? last_row - first : QUERIES;
        for (size_t i = 0; i < rows; i++) {
            softmax_row((const char *)q + (first + i) * job->stride, dim, bf16, features);
            __m512 sum = _mm512_setzero_ps();
            for (size_t j = 0; j < dim; j += LANES) {
                const __mmask16 lanes = first_lanes(dim - j);
                const __m512 x = _mm512_loadu_ps(features + j);
                store_lanes(left, i * dim + j, lanes, bf16, x);
                const __m512 weight = _mm512_maskz_loadu_ps(lanes, job->feature_sum + j);
                sum = _mm512_add_ps(sum, rounded(_mm512_mul_ps(x, weight), bf16));
            }
            const __m512 total = rounded(_mm512_set1_ps(_mm512_reduce_add_ps(sum)), bf16);
            divisors[i] =
                _mm512_cvtss_f32(rounded(_mm512_add_ps(total, _mm512_set1_ps(1e-5f)), bf16));
        }
        float quotient[QUERIES * WIDEST];
        const struct run state = {(const char *)left, job->packed_state, 0};
        for (size_t index = 0; index < panels; index++) {
            const struct panel p = cpu_panel(kind, dim, dim, index);
            const struct run run = {state.a, state.b + p.offset, 0};
            cpu_tiles[kind][p.vectors - 1][rows - 1](&run, 1, words, dim * size, c);
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < p.vectors; j++) {
                    const size_t column = p.first_column + j * LANES;
                    const __m512 sum = _mm512_loadu_ps(c + (i * p.vectors + j) * LANES);
                    store_lanes(quotient, i * dim + column, first_lanes(dim - column), bf16,
                                _mm512_div_ps(rounded(sum, bf16), _mm512_set1_ps(divisors[i])));
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
                    const __mmask16 lanes = first_lanes(dim - column);
                    __m512 x = _mm512_loadu_ps(c + (i * p.vectors + j) * LANES);
                    if (job->bias)
                        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, job->bias + column));
                    const void *other = (const char *)sparse + (first + i) * job->stride;
                    x = _mm512_add_ps(rounded(x, bf16), load_lanes(other, column, lanes, bf16));
                    store_lanes((char *)out + (first + i) * out_stride, column, lanes, bf16_out,
                                rounded(x, bf16));
                }
        }
    }
}

#else
void cpu_key_features(const struct cpu_linear_branch_job *job, const void *k, size_t block) {
    __builtin_trap();
}
void cpu_key_state(const struct cpu_linear_branch_job *job, size_t first_row, size_t last_row) {
    __builtin_trap();
}
void cpu_linear_branch(const struct cpu_linear_branch_job *job, const void *q, const void *sparse,
                       void *out, size_t out_stride, int bf16_out, size_t first_row,
                       size_t last_row) {
    __builtin_trap();
}
#endif
