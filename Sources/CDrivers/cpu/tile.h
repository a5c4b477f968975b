// The inner loop of all products: a tile of results in registers.
#ifndef TILE_H
#define TILE_H

#include "../include/cpu_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>

#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

/// Lanes of a vector, vectors of the widest panel, and accumulators and rows of the largest tiles.
enum { LANES = 16, MAX_VECTORS = 4, MAX_TILE = 24, MAX_ROWS = 12 };

/// A part of the inner dimension: the addresses of its first word in the first row of a, and in the panel.
struct run {
    const char *a;
    const char *b;
    /// CPU_INT8: the product of both scales of this block.
    float scale;
};

/// Sums over `words` words of each of `count` runs: c[i][j] = sum a[i] . b[j]. `stride`: bytes from row to row of a;
/// c: [rows, 16 * vectors]
typedef void (*tile_function)(const struct run *runs, size_t count, size_t words, size_t stride,
                              float *c);

/// tiles[kind][vectors - 1][rows - 1]
extern const tile_function cpu_tiles[3][MAX_VECTORS][MAX_ROWS];

/// Words that are summed in registers before they are added to the rest of the sum, to keep f32 sums accurate.
enum { SEGMENT = 512 };

/// The rows of the largest tile for a panel of this many vectors; at most 24 accumulators fit into registers.
static inline size_t tile_rows(size_t vectors) {
    static const unsigned char rows[] = {0, 12, 12, 8, 6};
    return rows[vectors];
}

/// Elements of the inner dimension per word.
static inline size_t word_elements(enum cpu_kind kind) {
    return kind == CPU_F32 ? 1 : kind == CPU_BF16 ? 2 : 4;
}
static inline size_t word_count(enum cpu_kind kind, size_t inner) {
    return (inner + word_elements(kind) - 1) / word_elements(kind);
}

/// Elements of the inner dimension that share a scale in CPU_INT8.
enum { SCALE_BLOCK = 128 };

/// A panel of a packed matrix.
struct panel {
    size_t first_column, vectors;
    /// Bytes from the start of the packed matrix.
    size_t offset;
};
struct panel cpu_panel(enum cpu_kind kind, size_t columns, size_t inner, size_t index);
/// Bytes of a panel per vector of columns.
size_t cpu_panel_vector_bytes(enum cpu_kind kind, size_t inner);

INLINE __m512 bf16_to_f32(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
/// Rounds to nearest, ties to even; subnormal numbers become zero.
INLINE __m256i f32_to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
INLINE __m512 round_bf16(__m512 x) { return bf16_to_f32(f32_to_bf16(x)); }

/// e^x, accurate to two units in the last place; 0 if the result would be below 2^-126.
INLINE __m512 exp_f32(__m512 x) {
    // min returns its second operand if one is NaN, so NaN stays NaN; e^89 is already infinite.
    const __m512 y = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.442695041f)), 8);
    // Subtracting n ln 2 in two parts keeps the remainder exact (Cody and Waite).
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), y);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.984126984e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.388888889e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.333333333e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.166666667e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.666666667e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    const __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(large, p, n);
}
/// x / (1 + e^-x)
INLINE __m512 silu_f32(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exp_f32(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
/// 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), computed as x / (1 + e^(-2u)).
INLINE __m512 gelu_tanh_f32(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    const __m512 e = exp_f32(_mm512_mul_ps(inner, _mm512_set1_ps(-1.5957691216057308f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/// The mask of the first `n` lanes.
INLINE __mmask16 first_lanes(size_t n) { return n >= LANES ? 0xFFFF : (__mmask16)((1u << n) - 1); }

INLINE __m512 load_lanes(const void *base, size_t index, __mmask16 lanes, int bf16) {
    return bf16 ? bf16_to_f32(_mm256_maskz_loadu_epi16(lanes, (const uint16_t *)base + index))
                : _mm512_maskz_loadu_ps(lanes, (const float *)base + index);
}
INLINE void store_lanes(void *base, size_t index, __mmask16 lanes, int bf16, __m512 x) {
    if (bf16)
        _mm256_mask_storeu_epi16((uint16_t *)base + index, lanes, f32_to_bf16(x));
    else
        _mm512_mask_storeu_ps((float *)base + index, lanes, x);
}

INLINE void add_tile(float *c, const float *more, size_t results) {
    for (size_t i = 0; i < results; i += LANES)
        _mm512_storeu_ps(c + i, _mm512_add_ps(_mm512_loadu_ps(c + i), _mm512_loadu_ps(more + i)));
}

/// Calls `tile` for segments of at most SEGMENT words, or of one run, and adds the results.
INLINE void sum_tile(tile_function tile, const struct run *runs, size_t count, size_t words,
                     size_t stride, size_t results, float *c) {
    const size_t runs_in_segment = words >= SEGMENT ? 1 : SEGMENT / words;
    tile(runs, count < runs_in_segment ? count : runs_in_segment, words, stride, c);
    for (size_t first = runs_in_segment; first < count; first += runs_in_segment) {
        float more[MAX_TILE * LANES];
        const size_t left = count - first;
        tile(runs + first, left < runs_in_segment ? left : runs_in_segment, words, stride, more);
        add_tile(c, more, results);
    }
}

/// Applies the epilogue to a tile of sums, c: [rows, 16 * vectors], and writes it to columns first_column... of `rows`
/// rows of y. `index`: where the first row begins in y and in the residual, in elements; `stride`: elements from row to
/// row.
INLINE void finish_tile(const struct cpu_epilogue *e, const float *c, size_t rows, size_t vectors,
                        size_t first_column, size_t columns, const void *residual, void *y,
                        size_t index, size_t stride) {
    const int bf16 = e->bf16;
    for (size_t j = 0; j < vectors; j++) {
        const size_t column = first_column + j * LANES;
        const __mmask16 lanes = first_lanes(columns - column);
        const __m512 bias =
            e->bias ? _mm512_maskz_loadu_ps(lanes, e->bias + column) : _mm512_setzero_ps();
        const __m512 gate =
            e->gate ? _mm512_maskz_loadu_ps(lanes, e->gate + column) : _mm512_setzero_ps();
        for (size_t i = 0; i < rows; i++) {
            __m512 x = _mm512_loadu_ps(c + (i * vectors + j) * LANES);
            if (bf16 && e->round_first) x = round_bf16(x);
            if (e->bias) x = _mm512_add_ps(x, bias);
            if (e->activation != CPU_NONE) {
                if (bf16) x = round_bf16(x);
                x = e->activation == CPU_SILU ? silu_f32(x) : gelu_tanh_f32(x);
            }
            const size_t at = index + i * stride + column;
            if (e->gate) {
                if (bf16) x = round_bf16(x);
                x = _mm512_mul_ps(x, gate);
            }
            if (residual) {
                if (bf16) x = round_bf16(x);
                x = _mm512_add_ps(load_lanes(residual, at, lanes, bf16), x);
            }
            store_lanes(y, at, lanes, bf16, x);
        }
    }
}

#endif
#endif
