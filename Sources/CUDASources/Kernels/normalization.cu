// Layer norms and RMS norms over the last axis, and what is fused with them: modulation, rotary embedding, quantisation
// to 8 bits. Statistics are computed in float, in two passes over a row in registers.
#include "rows.cuh"

/// Mean and 1/sqrt(variance + epsilon) of a row.
struct alignas(8) Statistics {
    float mean, inverse;
};

/// `padding`: number of zeros after the row that count in the variance; 0 is the textbook definition.
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

/// Turns a normalised value into the result: weight and bias.
struct Affine {
    const float* weight;  // [columns] or null for 1 - weight_offset
    const float* bias;    // [columns] or null for 0
    /// 1 if the weight is the scale of a modulation.
    float weight_offset;
    /// Whether the normalised value is rounded to T first, because the original's LayerNorm returns T.
    int rounds;

    /// The values for kVector neighbouring columns.
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

/// The weight of an RMS norm, float or bf16 as in the checkpoint.
template <typename Weight>
struct Gain {
    const Weight* weight;  // [columns]
    /// Whether the normalised value and the weight are rounded to T before the product.
    int rounds;

    /// The values for kVector neighbouring columns.
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

/// Calls f<true>() or f<false>(), so that there is one branch for a whole row.
template <typename F>
DEVICE void with_rounding(int rounds, F f) {
    if (rounds) {
        f.template operator()<true>();
    } else {
        f.template operator()<false>();
    }
}

/// Normalises and maps the i-th vector of a row.
template <bool kRounds, typename Row, typename Map, int kVector>
DEVICE void normalise(float (&values)[kVector], const Row& row, int i, Statistics s, const Map& map) {
    using T = typename Row::Element;
    typename Map::template Columns<kVector> columns;
    columns.template load<T>(map, row.column(i));
    row.get(values, i);
    columns.template apply<T, kRounds>(values, s);
}

// ---- a block or a warp holds a row ------------------------------------------------------------

#define ROW_KERNEL __global__ void __launch_bounds__(Row::kThreads, Row::kBlocks)

/// x: [rows, columns] → out: [rows, columns]
template <typename Out, typename Row>
ROW_KERNEL layer_norm(Out* out, const typename Row::Element* x, Affine affine, int rows, int columns,
                      float epsilon, float padding) {
    if (Row::index() >= rows) return;
    Row row;
    row.load(x + i64(Row::index()) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
    out += i64(Row::index()) * columns;
    with_rounding(affine.rounds, [&]<bool kRounds>() {
#pragma unroll
        for (int i = 0; i < Row::kVectors; ++i) {
            if (row.holds(i, columns)) {
                float values[Row::kVector];
                normalise<kRounds>(values, row, i, s, affine);
                store_floats(out + row.column(i), values);
            }
        }
    });
}

/// x: [rows, columns] → codes: e4m3 [rows, columns], scales: [rows]. Row is a BlockRow.
template <typename Row>
ROW_KERNEL layer_norm_fp8(u8* codes, float* scales, const typename Row::Element* x, Affine affine,
                          int columns, float epsilon, float padding) {
    Row row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
    with_rounding(affine.rounds, [&]<bool kRounds>() {
#pragma unroll
        for (int i = 0; i < Row::kVectors; ++i) {
            if (row.holds(i, columns)) {
                normalise<kRounds>(row.values[i], row, i, s, affine);
                round_all<typename Row::Element>(row.values[i]);
            }
        }
    });
    const float most = fmaxf(row.largest(columns), kLeastMaximum);
    if (threadIdx.x == 0) scales[blockIdx.x] = most / 448.0f;
    const float factor = 448.0f / most;
    codes += i64(blockIdx.x) * columns;
#pragma unroll
    for (int i = 0; i < Row::kVectors; ++i) {
        if (row.holds(i, columns)) {
#pragma unroll
            for (int j = 0; j < Row::kVector; ++j) row.values[i][j] *= factor;
            store_e4m3(codes + row.column(i), row.values[i]);
        }
    }
}

/// x: [rows, columns] → out: [rows, columns]
template <typename Weight, typename Row>
ROW_KERNEL rms_norm(typename Row::Element* out, const typename Row::Element* x, Gain<Weight> gain,
                    int rows, int columns, float epsilon) {
    if (Row::index() >= rows) return;
    Row row;
    row.load(x + i64(Row::index()) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    out += i64(Row::index()) * columns;
    with_rounding(gain.rounds, [&]<bool kRounds>() {
#pragma unroll
        for (int i = 0; i < Row::kVectors; ++i) {
            if (row.holds(i, columns)) {
                float values[Row::kVector];
                normalise<kRounds>(values, row, i, s, gain);
                store_floats(out + row.column(i), values);
            }
        }
    });
}

/// RMS norm over the row, then the rotation of the pairs (2i, 2i + 1) of each head.
/// x: [rows, heads * 2 * half] → out: the same; cosine, sine: [rows, half].
/// With kPeriodic, all vectors of a thread have the same position in their heads.
template <typename Weight, bool kPeriodic, typename Row>
ROW_KERNEL rms_norm_rope(typename Row::Element* out, const typename Row::Element* x, Gain<Weight> gain,
                         const float* cosine, const float* sine, int rows, int columns, int half,
                         float epsilon) {
    using T = typename Row::Element;
    constexpr int kPairs = Row::kVector / 2;
    static_assert(Row::kVector % 2 == 0);
    if (Row::index() >= rows) return;
    Row row;
    float c[kPairs], d[kPairs];
    auto load_rotation = [&](int i) {
        const i64 pair = i64(Row::index()) * half + row.column(i) % (2 * half) / 2;
        load_floats(c, cosine + pair);
        load_floats(d, sine + pair);
    };
    load_rotation(0);
    row.load(x + i64(Row::index()) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    out += i64(Row::index()) * columns;
    with_rounding(gain.rounds, [&]<bool kRounds>() {
#pragma unroll
        for (int i = 0; i < Row::kVectors; ++i) {
            if (row.holds(i, columns)) {
                if (!kPeriodic && i > 0) load_rotation(i);
                float values[Row::kVector];
                normalise<kRounds>(values, row, i, s, gain);
                round_all<T>(values);
#pragma unroll
                for (int j = 0; j < kPairs; ++j) {
                    const float a = values[2 * j], b = values[2 * j + 1];
                    values[2 * j] = a * c[j] - b * d[j];
                    values[2 * j + 1] = a * d[j] + b * c[j];
                }
                store_floats(out + row.column(i), values);
            }
        }
    });
}

// ---- int8 in blocks of 128 x 128: first the statistics of rows, then one block of threads per block of numbers ----

template <typename Row>
ROW_KERNEL layer_statistics_of_rows(Statistics* statistics, const typename Row::Element* x, int rows,
                                    int columns, float epsilon, float padding) {
    if (Row::index() >= rows) return;
    Row row;
    row.load(x + i64(Row::index()) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
    if (Row::leads()) statistics[Row::index()] = s;
}

template <typename Row>
ROW_KERNEL rms_statistics_of_rows(Statistics* statistics, const typename Row::Element* x, int rows,
                                  int columns, float epsilon) {
    if (Row::index() >= rows) return;
    Row row;
    row.load(x + i64(Row::index()) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    if (Row::leads()) statistics[Row::index()] = s;
}

/// x: [rows, columns], statistics: [rows] → codes: int8 [rows, columns],
/// scales: [ceil(rows/128), ceil(columns/128)]. Grid: (column blocks, row blocks), 256 threads, or 1024
/// with single elements. The last rows come first, because the statistics' kernel has just left them in the L2 cache.
template <typename T, typename Map, int kVector>
__global__ void __launch_bounds__(kVector > 1 ? 256 : 1024, kVector * sizeof(T) == 16 ? 3 : 1)
    norm_int8(i8* codes, float* scales, const T* x, const Statistics* statistics, Map map, int rows,
              int columns) {
    constexpr int kAcross = 128 / kVector;                      // threads side by side
    constexpr int kRows = (kVector > 1 ? 256 : 1024) / kAcross;  // rows at once
    constexpr int kCount = 128 / kRows;
    const int down = int(gridDim.y - 1 - blockIdx.y);
    // Threads beyond the end repeat the last row or column, which does not change the maximum.
    const int own = blockIdx.x * 128 + threadIdx.x % kAcross * kVector;
    const int column = min(own, columns - kVector);
    const int first = down * 128 + threadIdx.x / kAcross;
    const int last = min(rows, (down + 1) * 128);
    __shared__ Statistics shared[128];
    Kept<T, kVector> kept[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        kept[i].load(x + i64(min(first + i * kRows, last - 1)) * columns + column);
    }
    if (threadIdx.x < 128) shared[threadIdx.x] = statistics[min(down * 128 + int(threadIdx.x), last - 1)];
    __syncthreads();
    typename Map::template Columns<kVector> parameters;
    parameters.template load<T>(map, column);
    float most = 0.0f;
    with_rounding(map.rounds, [&]<bool kRounds>() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            float values[kVector];
            kept[i].get(values);
            parameters.template apply<T, kRounds>(values, shared[first % 128 + i * kRows]);
#pragma unroll
            for (int j = 0; j < kVector; ++j) most = fmaxf(most, fabsf(values[j]));
            kept[i].set(values);
        }
    });
    // Rounding keeps the order, so the largest of the rounded numbers is the largest number, rounded.
    most = block_reduce<true>(fmaxf(round_to<T>(most), kLeastMaximum));
    if (threadIdx.x == 0) scales[down * gridDim.x + blockIdx.x] = most / 128.0f;
    const float factor = 128.0f / most;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int row = first + i * kRows;
        float values[kVector];
        kept[i].get(values);
#pragma unroll
        for (int j = 0; j < kVector; ++j) values[j] *= factor;
        if (row < last && own < columns) store_i8(codes + i64(row) * columns + column, values);
    }
}
