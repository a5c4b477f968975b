// The video autoencoder's norm over channels.
#include "tile.h"

#if defined(__x86_64__)

INLINE void norm(const void *x, const int bf16, size_t rows, size_t channels, const float *factors,
                 const int silu, void *y) {
    for (size_t row = 0; row < rows; row++) {
        __m512 squares = _mm512_setzero_ps();
        for (size_t j = 0; j < channels; j += LANES) {
            const __m512 v = load_lanes(x, row * channels + j, first_lanes(channels - j), bf16);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const float length = __builtin_sqrtf(_mm512_reduce_add_ps(squares));
        const __m512 inverse = _mm512_set1_ps(1.0f / (length > 1e-12f ? length : 1e-12f));
        for (size_t j = 0; j < channels; j += LANES) {
            const __mmask16 lanes = first_lanes(channels - j);
            const __m512 factor = _mm512_maskz_loadu_ps(lanes, factors + j);
            __m512 v = load_lanes(x, row * channels + j, lanes, bf16);
            v = _mm512_mul_ps(_mm512_mul_ps(v, inverse), factor);
            store_lanes(y, row * channels + j, lanes, bf16, silu ? silu_f32(v) : v);
        }
    }
}

TARGET void cpu_channel_norm(const void *x, int bf16, size_t rows, size_t channels,
                             const float *factors, int silu, void *y) {
    if (bf16 && silu)
        norm(x, 1, rows, channels, factors, 1, y);
    else
        norm(x, bf16, rows, channels, factors, silu, y);
}

#else
void cpu_channel_norm(const void *x, int bf16, size_t rows, size_t channels, const float *factors,
                      int silu, void *y) {
    __builtin_trap();
}
#endif
