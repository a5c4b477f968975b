// The inner loop of all products: a tile of results in registers.
#ifndef TILE_H
#define TILE_H

#include "../include/cpu_kernels.h"
#include "lanes.h"

/// Each kernel exists for AVX-512 and for AVX2; `dispatch.c` has a table of each, of which a backend chooses one.
#if defined(CPU_AVX2)
#define VARIANT(name) name##_avx2
#else
#define VARIANT(name) name##_avx512
#endif

/// Vectors of the widest panel, and accumulators and rows of the largest tiles.
enum { MAX_VECTORS = 4, MAX_TILE = 24, MAX_ROWS = 12 };

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
#define cpu_tiles VARIANT(cpu_tiles)
extern const tile_function cpu_tiles[3][MAX_VECTORS][MAX_ROWS];

/// The tile for `rows` rows of a panel of which `columns` columns are no padding.
static inline tile_function tile_for(enum cpu_kind kind, size_t vectors, size_t columns,
                                     size_t rows) {
#if defined(CPU_AVX2)
    extern const tile_function cpu_tiles_24[MAX_ROWS];
    if (kind == CPU_F32 && vectors == 2 && columns <= 24) return cpu_tiles_24[rows - 1];
#else
    (void)columns;
#endif
    return cpu_tiles[kind][vectors - 1][rows - 1];
}

/// Words that are summed in registers before they are added to the rest of the sum, to keep f32 sums accurate.
enum { SEGMENT = 512 };

/// The rows of the largest tile for a panel of this many vectors. With AVX-512 at most 24 accumulators fit into
/// registers; AVX2 takes one vector of a panel after the other, six rows of it in twelve registers.
static inline size_t tile_rows(size_t vectors) {
#if defined(CPU_AVX2)
    static const unsigned char rows[] = {0, 6, 6, 6, 6};
#else
    static const unsigned char rows[] = {0, 12, 12, 8, 6};
#endif
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

INLINE v16 round_bf16(v16 x) { return bf16_to_f32(f32_to_bf16(x)); }

/// e^x, accurate to two units in the last place; 0 if the result would be below 2^-126.
INLINE v16 exp_f32(v16 x) {
    // min returns its second operand if one is NaN, so NaN stays NaN; e^89 is already infinite.
    const v16 y = v_min(v_set(89.0f), x);
    const v16 n = v_round(v_mul(y, v_set(1.442695041f)));
    // Subtracting n ln 2 in two parts keeps the remainder exact (Cody and Waite).
    v16 r = v_fnma(n, v_set(0.693145752f), y);
    r = v_fnma(n, v_set(1.42860677e-6f), r);
    v16 p = v_set(1.984126984e-4f);
    p = v_fma(p, r, v_set(1.388888889e-3f));
    p = v_fma(p, r, v_set(8.333333333e-3f));
    p = v_fma(p, r, v_set(4.166666667e-2f));
    p = v_fma(p, r, v_set(1.666666667e-1f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p, r, v_set(1.0f));
    p = v_fma(p, r, v_set(1.0f));
    return v_scale_unless_below(p, n, x, -87.33654f);
}
/// 2^x for x up to 127, accurate to two units in the last place, to the same bits as in the definitions; 0 below 2^-126.
INLINE v16 exp2_f32(v16 x) {
    // Adding 1.5 * 2^23 and subtracting it again leaves the nearest integer.
    const v16 magic = v_set(12582912.0f);
    const v16 n = v_sub(v_add(x, magic), magic);
    const v16 f = v_sub(x, n);
    v16 p = v_set(1.5252733e-5f);
    p = v_fma(p, f, v_set(1.540353e-4f));
    p = v_fma(p, f, v_set(1.3333558e-3f));
    p = v_fma(p, f, v_set(9.618129e-3f));
    p = v_fma(p, f, v_set(5.5504109e-2f));
    p = v_fma(p, f, v_set(2.4022651e-1f));
    p = v_fma(p, f, v_set(6.931472e-1f));
    p = v_fma(p, f, v_set(1.0f));
    return v_scale_unless_below(p, n, x, -126.0f);
}
/// x / (1 + e^-x)
INLINE v16 silu_f32(v16 x) {
    const v16 one = v_set(1.0f);
    return v_div(x, v_add(one, exp_f32(v_sub(v_zero(), x))));
}
/// 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), computed as x / (1 + e^(-2u)).
INLINE v16 gelu_tanh_f32(v16 x) {
    const v16 cube = v_mul(v_mul(x, x), x);
    const v16 inner = v_fma(cube, v_set(0.044715f), x);
    const v16 e = exp_f32(v_mul(inner, v_set(-1.5957691216057308f)));
    return v_div(x, v_add(v_set(1.0f), e));
}

INLINE v16 load_lanes(const void *base, size_t index, lanes_t lanes, int bf16) {
    return bf16 ? bf16_to_f32(h_load_first(lanes, (const uint16_t *)base + index))
                : v_load_first(lanes, (const float *)base + index);
}
INLINE void store_lanes(void *base, size_t index, lanes_t lanes, int bf16, v16 x) {
    if (bf16)
        h_store_first(lanes, (uint16_t *)base + index, f32_to_bf16(x));
    else
        v_store_first(lanes, (float *)base + index, x);
}

INLINE void add_tile(float *c, const float *more, size_t results) {
    for (size_t i = 0; i < results; i += LANES)
        v_store(c + i, v_add(v_load(c + i), v_load(more + i)));
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
        const lanes_t lanes = first_lanes(columns - column);
        const v16 bias =
            e->bias ? v_load_first(lanes, e->bias + column) : v_zero();
        const v16 gate =
            e->gate ? v_load_first(lanes, e->gate + column) : v_zero();
        for (size_t i = 0; i < rows; i++) {
            v16 x = v_load(c + (i * vectors + j) * LANES);
            if (bf16 && e->round_first) x = round_bf16(x);
            if (e->bias) x = v_add(x, bias);
            if (e->activation != CPU_NONE) {
                if (bf16) x = round_bf16(x);
                x = e->activation == CPU_SILU ? silu_f32(x) : gelu_tanh_f32(x);
            }
            const size_t at = index + i * stride + column;
            if (e->gate) {
                if (bf16) x = round_bf16(x);
                x = v_mul(x, gate);
            }
            if (residual) {
                if (bf16) x = round_bf16(x);
                x = v_add(load_lanes(residual, at, lanes, bf16), x);
            }
            store_lanes(y, at, lanes, bf16, x);
        }
    }
}

#endif
