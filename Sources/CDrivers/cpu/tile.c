// The tiles, one function for each kind and size.
#include "tile.h"

#if defined(__x86_64__)

INLINE void tile(const enum cpu_kind kind, const int rows, const int vectors,
                 const struct run *runs, size_t count, size_t words, size_t stride, float *c) {
    // All indices are known at compile time, so that these arrays are registers.
    __m512 sums[MAX_TILE], w[MAX_VECTORS];
#pragma unroll
    for (int i = 0; i < rows; i++)
#pragma unroll
        for (int j = 0; j < vectors; j++) sums[i * vectors + j] = _mm512_setzero_ps();
    for (size_t r = 0; r < count; r++) {
        const char *a = runs[r].a;
        const char *b = runs[r].b;
        for (size_t k = 0; k < words; k++, a += 4, b += 64 * vectors) {
#pragma unroll
            for (int j = 0; j < vectors; j++) w[j] = _mm512_loadu_ps((const float *)(b + 64 * j));
#pragma unroll
            for (int i = 0; i < rows; i++) {
                const __m512 x = _mm512_set1_ps(*(const float *)(a + i * stride));
#pragma unroll
                for (int j = 0; j < vectors; j++)
                    sums[i * vectors + j] =
                        kind == CPU_F32
                            ? _mm512_fmadd_ps(x, w[j], sums[i * vectors + j])
                            : _mm512_dpbf16_ps(sums[i * vectors + j], (__m512bh)x, (__m512bh)w[j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < rows; i++)
#pragma unroll
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(c + (i * vectors + j) * LANES, sums[i * vectors + j]);
}

/// As `tile`, for signed bytes. A run is one block of 128, whose exact sum is scaled and added to c. The instruction
/// needs one unsigned operand, so 128 is added to a, and the panel begins with -128 * (the sum of each column).
INLINE void tile_int8(const int rows, const int vectors, const struct run *runs, size_t count,
                      size_t words, size_t stride, float *c) {
    __m512i sums[MAX_TILE], w[MAX_VECTORS];
    const __m512i flip = _mm512_set1_epi32((int)0x80808080u);
    for (size_t r = 0; r < count; r++) {
        const char *a = runs[r].a;
        const char *b = runs[r].b;
#pragma unroll
        for (int j = 0; j < vectors; j++) {
            const __m512i start = _mm512_loadu_si512(b + 64 * j);
#pragma unroll
            for (int i = 0; i < rows; i++) sums[i * vectors + j] = start;
        }
        b += 64 * vectors;
        for (size_t k = 0; k < words; k++, a += 4, b += 64 * vectors) {
#pragma unroll
            for (int j = 0; j < vectors; j++) w[j] = _mm512_loadu_si512(b + 64 * j);
#pragma unroll
            for (int i = 0; i < rows; i++) {
                const __m512i x =
                    _mm512_xor_si512(_mm512_set1_epi32(*(const int *)(a + i * stride)), flip);
#pragma unroll
                for (int j = 0; j < vectors; j++)
                    sums[i * vectors + j] = _mm512_dpbusd_epi32(sums[i * vectors + j], x, w[j]);
            }
        }
        const __m512 scale = _mm512_set1_ps(runs[r].scale);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int j = 0; j < vectors; j++) {
                float *at = c + (i * vectors + j) * LANES;
                const __m512 sum = _mm512_cvtepi32_ps(sums[i * vectors + j]);
                const __m512 before = r == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(at);
                _mm512_storeu_ps(at, _mm512_fmadd_ps(sum, scale, before));
            }
    }
}

#define DEFINE(rows, vectors)                                                                      \
    TARGET static void f32_##rows##_##vectors(const struct run *runs, size_t count, size_t words,  \
                                              size_t stride, float *c) {                           \
        tile(CPU_F32, rows, vectors, runs, count, words, stride, c);                               \
    }                                                                                              \
    TARGET static void bf16_##rows##_##vectors(const struct run *runs, size_t count, size_t words, \
                                               size_t stride, float *c) {                          \
        tile(CPU_BF16, rows, vectors, runs, count, words, stride, c);                              \
    }                                                                                              \
    TARGET static void int8_##rows##_##vectors(const struct run *runs, size_t count, size_t words, \
                                               size_t stride, float *c) {                          \
        tile_int8(rows, vectors, runs, count, words, stride, c);                                   \
    }

#define ROWS_6(F, v) F(1, v) F(2, v) F(3, v) F(4, v) F(5, v) F(6, v)
#define ROWS_8(F, v) ROWS_6(F, v) F(7, v) F(8, v)
#define ROWS_12(F, v) ROWS_8(F, v) F(9, v) F(10, v) F(11, v) F(12, v)

ROWS_12(DEFINE, 1)
ROWS_12(DEFINE, 2)
ROWS_8(DEFINE, 3)
ROWS_6(DEFINE, 4)

#define F32(rows, vectors) f32_##rows##_##vectors,
#define BF16(rows, vectors) bf16_##rows##_##vectors,
#define INT8(rows, vectors) int8_##rows##_##vectors,
#define TABLE(F)                                                                                   \
    {                                                                                              \
        {ROWS_12(F, 1)}, {ROWS_12(F, 2)}, {ROWS_8(F, 3)}, { ROWS_6(F, 4) }                         \
    }

const tile_function cpu_tiles[3][MAX_VECTORS][MAX_ROWS] = {TABLE(F32), TABLE(BF16), TABLE(INT8)};

#endif
