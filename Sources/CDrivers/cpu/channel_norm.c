// The video autoencoder's norm over channels.
#include "tile.h"

INLINE void norm(const void *x, const int bf16, size_t rows, size_t channels, const float *factors,
                 const int silu, void *y) {
    for (size_t row = 0; row < rows; row++) {
        v16 squares = v_zero();
        for (size_t j = 0; j < channels; j += LANES) {
            const v16 v = load_lanes(x, row * channels + j, first_lanes(channels - j), bf16);
            squares = v_fma(v, v, squares);
        }
        const float length = __builtin_sqrtf(v_sum(squares));
        const v16 inverse = v_set(1.0f / (length > 1e-12f ? length : 1e-12f));
        for (size_t j = 0; j < channels; j += LANES) {
            const lanes_t lanes = first_lanes(channels - j);
            const v16 factor = v_load_first(lanes, factors + j);
            v16 v = load_lanes(x, row * channels + j, lanes, bf16);
            v = v_mul(v_mul(v, inverse), factor);
            store_lanes(y, row * channels + j, lanes, bf16, silu ? silu_f32(v) : v);
        }
    }
}

TARGET void VARIANT(cpu_channel_norm)(const void *x, int bf16, size_t rows, size_t channels,
                             const float *factors, int silu, void *y) {
    if (bf16 && silu)
        norm(x, 1, rows, channels, factors, 1, y);
    else
        norm(x, bf16, rows, channels, factors, silu, y);
}
