// Norms over the last axis: statistics of a row, and what turns its values into the result. Statistics in float
// from the row in registers, in two passes.
#pragma once
#include "rows.cuh"

/// Mean and 1/sqrt(variance + epsilon) of a row.
struct alignas(8) Statistics {
    float mean, inverse;
};

/// `padding`: lanes beyond the row that count as zeros in the variance (0: the textbook definition).
template <typename Row>
DEVICE Statistics layer_statistics(Row& row, int columns, float epsilon, float padding) {
    const float mean = row.sum(columns, [](float x) { return x; }) / columns;
    const float squares = row.sum(columns, [mean](float x) { return (x - mean) * (x - mean); });
    const float variance = (squares + padding * mean * mean) / columns;
    return {mean, 1.0f / sqrtf(variance + epsilon)};
}

template <typename Row>
DEVICE Statistics rms_statistics(Row& row, int columns, float epsilon) {
    const float squares = row.sum(columns, [](float x) { return x * x; });
    return {0.0f, 1.0f / sqrtf(squares / columns + epsilon)};
}

/// What turns a normalised value into the result.
struct Affine {
    const float* weight;  // [columns] or null for 1 - weight_offset
    const float* bias;    // [columns] or null for 0
    /// 1 where the weight is a modulation's scale.
    float weight_offset;
    /// Whether the normalised value is rounded to T first: the original's LayerNorm returns T.
    int rounds;

    /// Those of kVector neighbouring columns.
    template <int kVector>
    struct Columns {
        float weight[kVector], bias[kVector];

        template <typename T>
        DEVICE void load(const Affine& all, int column) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                weight[j] = 1.0f - all.weight_offset;
                bias[j] = 0.0f;
            }
            if (all.weight) load_floats(weight, all.weight + column);
            if (all.bias) load_floats(bias, all.bias + column);
#pragma unroll
            for (int j = 0; j < kVector; ++j) weight[j] += all.weight_offset;
        }

        template <typename T, bool kRounds>
        DEVICE void apply(float (&values)[kVector], Statistics s) const {
#pragma unroll
            for (int j = 0; j < kVector; ++j) values[j] = (values[j] - s.mean) * s.inverse;
            if (kRounds) round_all<T>(values);
#pragma unroll
            for (int j = 0; j < kVector; ++j) values[j] = values[j] * weight[j] + bias[j];
        }
    };
};

/// The RMS norm's weight, as the checkpoint happens to hold it: float or bf16.
template <typename Weight>
struct Gain {
    const Weight* weight;  // [columns]
    /// Whether x_hat and the weight are rounded to T before the product.
    int rounds;

    /// That of kVector neighbouring columns.
    template <int kVector>
    struct Columns {
        float weight[kVector];

        template <typename T>
        DEVICE void load(const Gain& all, int column) {
            load_floats(weight, all.weight + column);
            if (all.rounds) round_all<T>(weight);
        }

        template <typename T, bool kRounds>
        DEVICE void apply(float (&values)[kVector], Statistics s) const {
#pragma unroll
            for (int j = 0; j < kVector; ++j) values[j] *= s.inverse;
            if (kRounds) round_all<T>(values);
#pragma unroll
            for (int j = 0; j < kVector; ++j) values[j] *= weight[j];
        }
    };
};

/// f<true>() or f<false>(): one branch for all of a row.
template <typename F>
DEVICE void with_rounding(int rounds, F f) {
    if (rounds) {
        f.template operator()<true>();
    } else {
        f.template operator()<false>();
    }
}

/// The i-th vector of a row, normalised and mapped.
template <bool kRounds, typename Row, typename Map, int kVector>
DEVICE void normalise(float (&values)[kVector], const Row& row, int i, Statistics s, const Map& map) {
    using T = typename Row::Element;
    typename Map::template Columns<kVector> columns;
    columns.template load<T>(map, row.column(i));
    row.get(values, i);
    columns.template apply<T, kRounds>(values, s);
}
