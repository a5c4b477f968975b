// Quantising matrices.
#include "tile.h"

TARGET float VARIANT(cpu_quantize_block)(const void *x, int bf16, size_t stride, size_t rows, size_t columns,
                                int8_t *codes) {
    v16 largest = v_set(1e-8f);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES)
            largest = v_max(
                largest,
                v_abs(load_lanes(x, i * stride + j, first_lanes(columns - j), bf16)));
    const float amax = v_largest(largest);
    const v16 factor = v_set(128.0f / amax);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES) {
            const lanes_t lanes = first_lanes(columns - j);
            const v16 value = v_mul(load_lanes(x, i * stride + j, lanes, bf16), factor);
            v_store_bytes(lanes, codes + i * stride + j, value);
        }
    return amax / 128.0f;
}
