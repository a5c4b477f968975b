// Measuring the arithmetic limit of one core.
#include "tile.h"

#if defined(CPU_AVX2)
#define SUM_REGISTER "+x"
#else
#define SUM_REGISTER "+v"
#endif
/// Independent sums. Two instructions can start in each cycle and finish about five cycles later.
#if defined(CPU_AVX2)
enum { SUMS = 12, SUM_LANES = 8 };
#else
enum { SUMS = 16, SUM_LANES = LANES };
#endif

#define REPEAT(type, start, step)                                                                  \
    type sums[SUMS];                                                                               \
    for (int i = 0; i < SUMS; i++) sums[i] = start;                                                \
    for (size_t k = 0; k < steps; k++) {                                                           \
        _Pragma("unroll") for (int i = 0; i < SUMS; i++) sums[i] = step;                           \
        /* Keeps the sums in registers and the loop from being computed beforehand. */             \
        _Pragma("unroll") for (int i = 0; i < SUMS; i++) __asm__ volatile("" : SUM_REGISTER(sums[i]));     \
    }

TARGET void VARIANT(cpu_peak)(enum cpu_kind kind, size_t steps) {
#if defined(CPU_AVX2)
    const __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1e-3f);
    const __m256i bytes = _mm256_set1_epi8(1);
    if (kind == CPU_INT8) {
        REPEAT(__m256i, bytes, _mm256_add_epi32(sums[i], _mm256_madd_epi16(bytes, sums[i])))
    } else {
        REPEAT(__m256, y, _mm256_fmadd_ps(x, y, sums[i]))
    }
#else
    const __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1e-3f);
    const __m512i bytes = _mm512_set1_epi8(1);
    if (kind == CPU_F32) {
        REPEAT(__m512, y, _mm512_fmadd_ps(x, y, sums[i]))
    } else if (kind == CPU_BF16) {
        REPEAT(__m512, y, _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)y))
    } else {
        REPEAT(__m512i, bytes, _mm512_dpbusd_epi32(sums[i], bytes, bytes))
    }
#endif
}

double VARIANT(cpu_peak_operations)(enum cpu_kind kind, size_t steps) {
    // With AVX2 an instruction multiplies two bytes a lane, and bf16 as f32.
    const size_t elements = SUM_LANES == LANES ? word_elements(kind) : kind == CPU_INT8 ? 2 : 1;
    return 2.0 * (double)(steps * SUMS * SUM_LANES * elements);
}
