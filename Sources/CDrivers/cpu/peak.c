// Measuring the arithmetic limit of one core.
#include "tile.h"

#if defined(__x86_64__)

/// Independent sums. Two instructions can start in each cycle and finish about five cycles later.
enum { SUMS = 16 };

#define REPEAT(type, start, step)                                                                  \
    type sums[SUMS];                                                                               \
    for (int i = 0; i < SUMS; i++) sums[i] = start;                                                \
    for (size_t k = 0; k < steps; k++) {                                                           \
        _Pragma("unroll") for (int i = 0; i < SUMS; i++) sums[i] = step;                           \
        /* Keeps the sums in registers and the loop from being computed beforehand. */             \
        _Pragma("unroll") for (int i = 0; i < SUMS; i++) __asm__ volatile("" : "+v"(sums[i]));     \
    }

TARGET void cpu_peak(enum cpu_kind kind, size_t steps) {
    const __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1e-3f);
    const __m512i bytes = _mm512_set1_epi8(1);
    if (kind == CPU_F32) {
        REPEAT(__m512, y, _mm512_fmadd_ps(x, y, sums[i]))
    } else if (kind == CPU_BF16) {
        REPEAT(__m512, y, _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)y))
    } else {
        REPEAT(__m512i, bytes, _mm512_dpbusd_epi32(sums[i], bytes, bytes))
    }
}

double cpu_peak_operations(enum cpu_kind kind, size_t steps) {
    return 2.0 * (double)(steps * SUMS * LANES * word_elements(kind));
}

#else
void cpu_peak(enum cpu_kind kind, size_t steps) { __builtin_trap(); }
double cpu_peak_operations(enum cpu_kind kind, size_t steps) { return 0; }
#endif
