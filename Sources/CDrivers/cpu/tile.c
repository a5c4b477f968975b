// The tiles, one function for each kind and size.
#include "tile.h"

#if defined(CPU_AVX2)

INLINE __m256 low_half(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
INLINE __m256 high_half(__m256i x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xFFFF0000u)));
}
INLINE __m256i word_of(const char *a) { return _mm256_set1_epi32(*(const int *)a); }

INLINE void tile(const enum cpu_kind kind, const int rows, const int vectors,
                 const struct run *runs, size_t count, size_t words, size_t stride, float *c) {
    const size_t step = 64 * (size_t)vectors;
    for (int j = 0; j < vectors; j++) {
        // All indices are known at compile time, so that this array is registers.
        v16 sums[MAX_ROWS];
#pragma unroll
        for (int i = 0; i < rows; i++) sums[i] = v_zero();
        for (size_t r = 0; r < count; r++) {
            const char *a = runs[r].a;
            const char *b = runs[r].b + 64 * j;
            for (size_t k = 0; k < words; k++, a += 4, b += step) {
                if (kind == CPU_F32) {
                    const v16 w = v_load((const float *)b);
#pragma unroll
                    for (int i = 0; i < rows; i++) {
                        const __m256 x = _mm256_broadcast_ss((const float *)(a + i * stride));
                        sums[i].a = _mm256_fmadd_ps(x, w.a, sums[i].a);
                        sums[i].b = _mm256_fmadd_ps(x, w.b, sums[i].b);
                    }
                } else {
                    const __m256i w0 = _mm256_loadu_si256((const __m256i *)b);
                    const __m256i w1 = _mm256_loadu_si256((const __m256i *)(b + 32));
                    // First all lower halves, then all upper ones: so they fit into sixteen registers.
                    const __m256 low0 = low_half(w0), low1 = low_half(w1);
#pragma unroll
                    for (int i = 0; i < rows; i++) {
                        const __m256 x = low_half(word_of(a + i * stride));
                        sums[i].a = _mm256_fmadd_ps(x, low0, sums[i].a);
                        sums[i].b = _mm256_fmadd_ps(x, low1, sums[i].b);
                    }
                    const __m256 high0 = high_half(w0), high1 = high_half(w1);
#pragma unroll
                    for (int i = 0; i < rows; i++) {
                        const __m256 x = high_half(word_of(a + i * stride));
                        sums[i].a = _mm256_fmadd_ps(x, high0, sums[i].a);
                        sums[i].b = _mm256_fmadd_ps(x, high1, sums[i].b);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < rows; i++) v_store(c + (i * vectors + j) * LANES, sums[i]);
    }
}

/// As `tile` in f32 for a panel of two vectors whose last eight columns are padding: three registers a row, three rows at
/// a time.
INLINE void tile_24(const int rows, const struct run *runs, size_t count, size_t words,
                    size_t stride, float *c) {
#pragma unroll
    for (int first = 0; first < rows; first += 3) {
        const int here = rows - first < 3 ? rows - first : 3;
        __m256 sums[9];
#pragma unroll
        for (int i = 0; i < 9; i++) sums[i] = _mm256_setzero_ps();
        for (size_t r = 0; r < count; r++) {
            const char *a = runs[r].a + (size_t)first * stride;
            const float *b = (const float *)runs[r].b;
            for (size_t k = 0; k < words; k++, a += 4, b += 2 * LANES) {
                const __m256 w0 = _mm256_loadu_ps(b), w1 = _mm256_loadu_ps(b + 8);
                const __m256 w2 = _mm256_loadu_ps(b + 16);
#pragma unroll
                for (int i = 0; i < 3; i++)
                    if (i < here) {
                        const __m256 x = _mm256_broadcast_ss((const float *)(a + i * stride));
                        sums[3 * i] = _mm256_fmadd_ps(x, w0, sums[3 * i]);
                        sums[3 * i + 1] = _mm256_fmadd_ps(x, w1, sums[3 * i + 1]);
                        sums[3 * i + 2] = _mm256_fmadd_ps(x, w2, sums[3 * i + 2]);
                    }
            }
        }
#pragma unroll
        for (int i = 0; i < 3; i++)
            if (i < here) {
                const v16 low = {sums[3 * i], sums[3 * i + 1]};
                const v16 high = {sums[3 * i + 2], _mm256_setzero_ps()};
                v_store(c + (first + i) * 2 * LANES, low);
                v_store(c + (first + i) * 2 * LANES + LANES, high);
            }
    }
}

/// The bytes 0 and 2, or 1 and 3, of each word as 16-bit numbers.
INLINE __m256i even_bytes(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
INLINE __m256i odd_bytes(__m256i x) { return _mm256_srai_epi16(x, 8); }
INLINE __m256i plus_products(__m256i sum, __m256i x, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}

/// As `tile`, for signed bytes. A run is one block of at most 128, whose exact sum is scaled and added to c. The
/// instruction that multiplies bytes saturates, so they become 16-bit numbers, those of a once for all columns. The vector
/// at the beginning of each block of the panel is for AVX-512.
INLINE void tile_int8(const int rows, const int vectors, const struct run *runs, size_t count,
                      size_t words, size_t stride, float *c) {
    enum { WORDS = SCALE_BLOCK / 4 };
    const size_t step = 64 * (size_t)vectors;
    __m256i x[MAX_ROWS * 2 * WORDS / 8];
    for (size_t r = 0; r < count; r++) {
        for (int i = 0; i < rows; i++)
            for (size_t k = 0; k < words; k += 8) {
                const __m256i bytes =
                    _mm256_loadu_si256((const __m256i *)(runs[r].a + i * stride + 4 * k));
                x[((size_t)i * 2 * WORDS + k) / 8] = even_bytes(bytes);
                x[((size_t)i * 2 * WORDS + WORDS + k) / 8] = odd_bytes(bytes);
            }
        const v16 scale = v_set(runs[r].scale);
        for (int j = 0; j < vectors; j++) {
            __m256i sums[2 * MAX_ROWS];
#pragma unroll
            for (int i = 0; i < 2 * rows; i++) sums[i] = _mm256_setzero_si256();
            const char *a = (const char *)x;
            const char *b = runs[r].b + step + 64 * j;
            for (size_t k = 0; k < words; k++, a += 4, b += step) {
                const __m256i w0 = _mm256_loadu_si256((const __m256i *)b);
                const __m256i w1 = _mm256_loadu_si256((const __m256i *)(b + 32));
                const __m256i even0 = even_bytes(w0), even1 = even_bytes(w1);
#pragma unroll
                for (int i = 0; i < rows; i++) {
                    const __m256i one = word_of(a + i * 8 * WORDS);
                    sums[2 * i] = plus_products(sums[2 * i], one, even0);
                    sums[2 * i + 1] = plus_products(sums[2 * i + 1], one, even1);
                }
                const __m256i odd0 = odd_bytes(w0), odd1 = odd_bytes(w1);
#pragma unroll
                for (int i = 0; i < rows; i++) {
                    const __m256i one = word_of(a + i * 8 * WORDS + 4 * WORDS);
                    sums[2 * i] = plus_products(sums[2 * i], one, odd0);
                    sums[2 * i + 1] = plus_products(sums[2 * i + 1], one, odd1);
                }
            }
#pragma unroll
            for (int i = 0; i < rows; i++) {
                float *at = c + (i * vectors + j) * LANES;
                const v16 sum = {_mm256_cvtepi32_ps(sums[2 * i]),
                                 _mm256_cvtepi32_ps(sums[2 * i + 1])};
                v_store(at, v_fma(sum, scale, r == 0 ? v_zero() : v_load(at)));
            }
        }
    }
}

#else

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

#endif

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

#if defined(CPU_AVX2)
#define SIZES_1(F) ROWS_6(F, 1)
#define SIZES_2(F) ROWS_6(F, 2)
#define SIZES_3(F) ROWS_6(F, 3)
#else
#define SIZES_1(F) ROWS_12(F, 1)
#define SIZES_2(F) ROWS_12(F, 2)
#define SIZES_3(F) ROWS_8(F, 3)
#endif

SIZES_1(DEFINE)
SIZES_2(DEFINE)
SIZES_3(DEFINE)
ROWS_6(DEFINE, 4)

#define F32(rows, vectors) f32_##rows##_##vectors,
#define BF16(rows, vectors) bf16_##rows##_##vectors,
#define INT8(rows, vectors) int8_##rows##_##vectors,
#define TABLE(F)                                                                                   \
    {                                                                                              \
        {SIZES_1(F)}, {SIZES_2(F)}, {SIZES_3(F)}, { ROWS_6(F, 4) }                                 \
    }

const tile_function cpu_tiles[3][MAX_VECTORS][MAX_ROWS] = {TABLE(F32), TABLE(BF16), TABLE(INT8)};

#if defined(CPU_AVX2)

#define DEFINE_24(rows, vectors)                                                                   \
    TARGET static void f32_24_##rows(const struct run *runs, size_t count, size_t words,           \
                                     size_t stride, float *c) {                                    \
        tile_24(rows, runs, count, words, stride, c);                                              \
    }
ROWS_6(DEFINE_24, 2)

#define F32_24(rows, vectors) f32_24_##rows,
const tile_function cpu_tiles_24[MAX_ROWS] = {ROWS_6(F32_24, 2)};

#endif
