// What SageAttention quantises: blocks of q and k, channels of v.
#include "tile.h"

TARGET void VARIANT(cpu_column_maxima)(const void *x, size_t stride, size_t rows, size_t columns,
                                       float *largest) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES) {
            const lanes_t lanes = first_lanes(columns - j);
            const v16 value = v_abs(load_lanes(x, i * stride + j, lanes, 1));
            v_store_first(lanes, largest + j, v_max(value, v_load_first(lanes, largest + j)));
        }
}

/// Sixteen elements of a row minus the center, rounded to bf16.
INLINE v16 centered(const void *x, size_t index, lanes_t lanes, const float *center) {
    const v16 value = load_lanes(x, index, lanes, 1);
    return center ? round_bf16(v_sub(value, v_load_first(lanes, center))) : value;
}

TARGET float VARIANT(cpu_sage_codes)(const void *x, size_t stride, size_t rows, size_t columns,
                                     const float *center, int8_t *codes, size_t code_stride) {
    v16 largest = v_zero();
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES) {
            const lanes_t lanes = first_lanes(columns - j);
            const v16 value = centered(x, i * stride + j, lanes, center ? center + j : NULL);
            largest = v_max(v_abs(value), largest);
        }
    const float step = v_largest(largest) / 127.0f + 1e-7f;
    const v16 half = v_set(0.5f), divisor = v_set(step);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES) {
            const lanes_t lanes = first_lanes(columns - j);
            const v16 value = centered(x, i * stride + j, lanes, center ? center + j : NULL);
            const v16 code = v_div(value, divisor);
            v_store_bytes(lanes, codes + i * code_stride + j,
                          v_truncate(v_add(code, v_with_sign(half, code))));
        }
    return step;
}

TARGET void VARIANT(cpu_sage_values)(const void *x, size_t stride, size_t rows, size_t columns,
                                     const float *factors, float *y) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += LANES) {
            const lanes_t lanes = first_lanes(columns - j);
            const v16 value = load_lanes(x, i * stride + j, lanes, 1);
            v_store_first(lanes, y + i * columns + j,
                          factors ? v_round_e4m3(v_mul(value, v_load_first(lanes, factors + j)))
                                  : v_round_f16(value));
        }
}
