// The epilogue of matrix products, which turns f32 accumulators into results: scales, bias, activation, gate and
// residual, rounded where the original's separate operators round.
#pragma once
#include "ptx.cuh"

/// The type of the operands of a product.
enum class Element { i8, e4m3, bf16 };
/// The type of the result; i8 has one f32 scale for each block of 128x128.
enum class Output { bf16, f32, i8 };
enum class Activation { none, gelu, silu };

/// x: [rows, inputs], w: [outputs, inputs], row-major → out: [rows, outputs].
struct LinearArguments {
    const void* x;
    const void* w;
    void* out;
    /// Element::i8: [ceil(rows/128), ceil(inputs/128)]; e4m3: [rows].
    const float* x_scales;
    /// Element::i8: [ceil(outputs/128), ceil(inputs/128)]; e4m3: [outputs].
    const float* w_scales;
    /// [outputs], or null.
    const float* bias;
    /// [outputs], or null for 1. Used only with a residual.
    const float* gate;
    /// [rows, outputs], in the type of the result.
    const void* residual;
    /// Output::i8: [ceil(rows/128), outputs/128].
    float* out_scales;
    int rows, outputs, inputs;
};

// Reads of the epilogue. They are volatile, so that they stay in this order: the compiler would otherwise move more of
// them together than there are registers for.
DEVICE float2 load_pair(const float* p) {
    float2 r;
    asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(r.x), "=f"(r.y) : "l"(p));
    return r;
}
DEVICE u32 load_pair(const bf16* p) {
    u32 r;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p));
    return r;
}

/// x / (1 + e^-z), without overflow: for z → -inf the result is x * 0.
DEVICE float times_sigmoid(float x, float z) {
    return x * rcp_approx(1.0f + exp2_approx(-1.4426950408889634f * z));
}

/// 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3), written as x sigmoid(2u).
DEVICE float gelu_tanh(float x) {
    return times_sigmoid(x, x * fmaf(0.0713548162726f, x * x, 1.5957691216057308f));
}
/// The same with an error of 2^-12 |x|, which is less than the precision of an 8-bit block.
DEVICE float gelu_tanh_coarse(float x) {
    const float half = 0.5f * x;
    return fmaf(half, tanh_approx(x * fmaf(0.0356774081363f, x * x, 0.7978845608028654f)), half);
}

/// Rounds between operators: to bf16, or not at all for f32 results.
template <Output kOutput>
DEVICE float2 round_between(float2 v) {
    return kOutput == Output::f32 ? v : unpack_bf16(pack_bf16(v.x, v.y));
}

template <Activation kActivation, bool kCoarse>
DEVICE float activate(float x) {
    if constexpr (kActivation == Activation::gelu) {
        return kCoarse ? gelu_tanh_coarse(x) : gelu_tanh(x);
    } else if constexpr (kActivation == Activation::silu) {
        return times_sigmoid(x, x);
    } else {
        return x;
    }
}

/// The scales of e4m3 rows for the rows `row` and `row + 8`.
struct RowScales {
    float x[2];

    DEVICE RowScales(const LinearArguments& args, int row) {
        x[0] = __ldg(args.x_scales + min(row, args.rows - 1));
        x[1] = __ldg(args.x_scales + min(row + 8, args.rows - 1));
    }
    /// Scales four accumulators: two rows, and two columns from `column` on. `outputs` is even.
    DEVICE void apply(const LinearArguments& args, int column, float& a, float& b, float& c,
                      float& d) const {
        const float2 w = load_pair(args.w_scales + min(column, args.outputs - 2));
        a *= x[0] * w.x;
        b *= x[0] * w.y;
        c *= x[1] * w.x;
        d *= x[1] * w.y;
    }
};

/// The addresses of the epilogue's operands for one thread: two neighbouring columns from `column` on, in the rows
/// `row` and `row + 8`. Later columns are at constant offsets.
template <Element kElement, Output kOutput, bool kAdd>
struct Place {
    const float* bias;
    const float* gate;
    /// Addresses in the residual, which is bf16 or float.
    const u8* residual[2];
    /// Number of columns from `column` to the end; zero or negative if there are none.
    int columns;
    bool inside[2];

    DEVICE Place(const LinearArguments& args, int row, int column) {
        bias = args.bias ? args.bias + column : nullptr;
        columns = args.outputs - column;
        if constexpr (kAdd) {
            constexpr int kSize = kOutput == Output::f32 ? 4 : 2;
            gate = args.gate ? args.gate + column : nullptr;
            residual[0] = static_cast<const u8*>(args.residual) +
                          (i64(row) * args.outputs + column) * kSize;
            residual[1] = residual[0] + i64(args.outputs) * (8 * kSize);
            inside[0] = row < args.rows;
            inside[1] = row + 8 < args.rows;
        }
    }
};

/// The epilogue's operands for the two columns that are `offset` columns further.
template <Element kElement, Output kOutput, bool kAdd>
struct Columns {
    float2 bias, gate;
    /// bf16 pairs, or floats as bits.
    u32 residual[2][kOutput == Output::f32 ? 2 : 1];

    /// kResidual: loads the residual too, from global memory.
    template <bool kResidual = true>
    DEVICE void load(const Place<kElement, kOutput, kAdd>& place, int offset) {
        const bool inside = offset < place.columns;
        bias = make_float2(0.0f, 0.0f);
        if (place.bias && inside) bias = load_pair(place.bias + offset);
        // With block-scaled int8 the bias is added in the type of the result.
        if constexpr (kElement == Element::i8) bias = round_between<kOutput>(bias);
        if constexpr (kAdd) {
            gate = make_float2(1.0f, 1.0f);
            if (place.gate && inside) gate = round_between<kOutput>(load_pair(place.gate + offset));
        }
        if constexpr (kAdd && kResidual) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const bool read = inside && place.inside[h];
                if constexpr (kOutput == Output::f32) {
                    float2 r = make_float2(0.0f, 0.0f);
                    if (read) {
                        r = load_pair(reinterpret_cast<const float*>(place.residual[h]) + offset);
                    }
                    residual[h][0] = __float_as_uint(r.x);
                    residual[h][1] = __float_as_uint(r.y);
                } else {
                    residual[h][0] = 0;
                    if (read) {
                        residual[h][0] =
                            load_pair(reinterpret_cast<const bf16*>(place.residual[h]) + offset);
                    }
                }
            }
        }
    }

    /// Loads the residual from shared memory: that of row `row` is at `address`, that of row `row + 8` 1024 bytes further.
    DEVICE void load_residual(u32 address) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if constexpr (kOutput == Output::f32) {
                asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                             : "=r"(residual[h][0]), "=r"(residual[h][1])
                             : "r"(address + 1024 * h));
            } else {
                asm volatile("ld.shared.u32 %0, [%1];"
                             : "=r"(residual[h][0])
                             : "r"(address + 1024 * h));
            }
        }
    }

    /// `v`: the scaled product in row `row + 8 h`. The result is rounded to the output's type (to bf16 for Output::i8,
    /// which is quantised later). With block-scaled int8 the product is rounded before the bias is added, otherwise
    /// after.
    template <Activation kActivation>
    DEVICE float2 finish(float2 v, int h) const {
        if constexpr (kElement == Element::i8) v = round_between<kOutput>(v);
        v = round_between<kOutput>(make_float2(v.x + bias.x, v.y + bias.y));
        if constexpr (kActivation != Activation::none) {
            constexpr bool kCoarse = kOutput == Output::i8;
            v = round_between<kOutput>(make_float2(activate<kActivation, kCoarse>(v.x),
                                                   activate<kActivation, kCoarse>(v.y)));
        }
        if constexpr (kAdd) {
            float2 r;
            if constexpr (kOutput == Output::f32) {
                r = make_float2(__uint_as_float(residual[h][0]), __uint_as_float(residual[h][1]));
            } else {
                r = unpack_bf16(residual[h][0]);
            }
            v = round_between<kOutput>(make_float2(v.x * gate.x, v.y * gate.y));
            v = round_between<kOutput>(make_float2(r.x + v.x, r.y + v.y));
        }
        return v;
    }
};
