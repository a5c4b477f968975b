// Layer and RMS norms over the last axis, with what follows them: modulation, rotary embedding,
// rounding to 8 bits. Statistics in float from the row in registers, in two passes.
#include "rows.cuh"

/// The most threads that hold a row.
constexpr int kRowThreads = 512;

/// Mean and 1/sqrt(variance + epsilon) of a row.
struct Statistics {
    float mean, inverse;
};

/// `padding`: lanes beyond the row that count as zeros in the variance (0: the textbook definition).
template <typename Row>
DEVICE Statistics layer_statistics(const Row& row, int columns, float epsilon, float padding) {
    const float mean = row.sum(columns, [](float x) { return x; }) / columns;
    const float squares = row.sum(columns, [mean](float x) { return (x - mean) * (x - mean); });
    const float variance = (squares + padding * mean * mean) / columns;
    return {mean, 1.0f / sqrtf(variance + epsilon)};
}

template <typename Row>
DEVICE Statistics rms_statistics(const Row& row, int columns, float epsilon) {
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

    template <typename T, int kVector>
    DEVICE void apply(float (&values)[kVector], Statistics s, int column) const {
        float w[kVector], b[kVector];
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            w[j] = 1.0f - weight_offset;
            b[j] = 0.0f;
        }
        if (weight) load_floats(w, weight + column);
        if (bias) load_floats(b, bias + column);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            float x = (values[j] - s.mean) * s.inverse;
            if (rounds) x = round_to<T>(x);
            values[j] = x * (weight_offset + w[j]) + b[j];
        }
    }
};

/// The RMS norm's weight.
struct Gain {
    Parameters weight;  // [columns]
    /// Whether x_hat and the weight are rounded to T before the product.
    int rounds;

    template <typename T, int kVector>
    DEVICE void apply(float (&values)[kVector], Statistics s, int column) const {
        float w[kVector];
        weight.load(w, column);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            const float x = values[j] * s.inverse;
            values[j] = rounds ? round_to<T>(x) * round_to<T>(w[j]) : x * w[j];
        }
    }
};

// ---- a block a row ----------------------------------------------------------------------------

/// x: [rows, columns] → out: [rows, columns]
template <typename T, typename Out, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm(Out* out, const T* x, Affine affine, int columns, float epsilon, float padding) {
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
    out += i64(blockIdx.x) * columns;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (row.column(i) < columns) {
            affine.apply<T>(row.values[i], s, row.column(i));
            store_floats(out + row.column(i), row.values[i]);
        }
    }
}

/// x: [rows, columns] → codes: e4m3 [rows, columns], scales: [rows]
template <typename T, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_fp8(u8* codes, float* scales, const T* x, Affine affine, int columns, float epsilon, float padding) {
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (row.column(i) < columns) {
            affine.apply<T>(row.values[i], s, row.column(i));
#pragma unroll
            for (int j = 0; j < kVector; ++j) row.values[i][j] = round_to<T>(row.values[i][j]);
        }
    }
    const float most = fmaxf(row.largest(columns), 1e-12f);
    if (threadIdx.x == 0) scales[blockIdx.x] = most / 448.0f;
    const float factor = 448.0f / most;
    codes += i64(blockIdx.x) * columns;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (row.column(i) < columns) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) row.values[i][j] *= factor;
            store_e4m3(codes + row.column(i), row.values[i]);
        }
    }
}

/// x: [rows, columns] → out: [rows, columns]
template <typename T, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm(T* out, const T* x, Gain gain, int columns, float epsilon) {
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    out += i64(blockIdx.x) * columns;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if (row.column(i) < columns) {
            gain.apply<T>(row.values[i], s, row.column(i));
            store_floats(out + row.column(i), row.values[i]);
        }
    }
}

/// RMS norm over the row, then the rotation of the pairs (2i, 2i + 1) of each head.
/// x: [rows, heads * 2 * half] → out: the same; cosine, sine: [rows, half]
template <typename T, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_rope(T* out, const T* x, Gain gain, const float* cosine, const float* sine, int columns, int half, float epsilon) {
    static_assert(kVector % 2 == 0);
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    out += i64(blockIdx.x) * columns;
    cosine += i64(blockIdx.x) * half;
    sine += i64(blockIdx.x) * half;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int column = row.column(i);
        if (column < columns) {
            gain.apply<T>(row.values[i], s, column);
            const int pair = column % (2 * half) / 2;
#pragma unroll
            for (int j = 0; j < kVector; j += 2) {
                const float a = round_to<T>(row.values[i][j]);
                const float b = round_to<T>(row.values[i][j + 1]);
                const float c = cosine[pair + j / 2], d = sine[pair + j / 2];
                row.values[i][j] = a * c - b * d;
                row.values[i][j + 1] = a * d + b * c;
            }
            store_floats(out + column, row.values[i]);
        }
    }
}

// ---- int8 in blocks of 128 x 128: statistics first, then a block of threads a block of numbers ----

template <typename T, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    layer_statistics_of_rows(Statistics* statistics, const T* x, int columns, float epsilon, float padding) {
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = layer_statistics(row, columns, epsilon, padding);
    if (threadIdx.x == 0) statistics[blockIdx.x] = s;
}

template <typename T, int kVector, int kCount>
__global__ void __launch_bounds__(kRowThreads)
    rms_statistics_of_rows(Statistics* statistics, const T* x, int columns, float epsilon) {
    BlockRow<T, kVector, kCount> row;
    row.load(x + i64(blockIdx.x) * columns, columns);
    const Statistics s = rms_statistics(row, columns, epsilon);
    if (threadIdx.x == 0) statistics[blockIdx.x] = s;
}

/// x: [rows, columns], statistics: [rows] → codes: int8 [rows, columns],
/// scales: [ceil(rows/128), ceil(columns/128)]. Grid: (column blocks, row blocks), 256 threads.
/// The block is read and normalised twice: the second time it comes from the L1 cache.
template <typename T, typename Map, int kVector>
__global__ void __launch_bounds__(256)
    norm_int8(i8* codes, float* scales, const T* x, const Statistics* statistics, Map map, int rows,
              int columns) {
    constexpr int kAcross = 128 / kVector;  // threads side by side
    constexpr int kRows = 256 / kAcross;    // rows at once
    const int column = blockIdx.x * 128 + threadIdx.x % kAcross * kVector;
    const int first = blockIdx.y * 128 + threadIdx.x / kAcross;
    const int last = column < columns ? min(rows, int(blockIdx.y + 1) * 128) : 0;
    auto normalised = [&](float (&values)[kVector], int row) {
        load_floats(values, x + i64(row) * columns + column);
        map.template apply<T>(values, statistics[row], column);
#pragma unroll
        for (int j = 0; j < kVector; ++j) values[j] = round_to<T>(values[j]);
    };
    float most = 1e-8f;
#pragma unroll 4
    for (int row = first; row < last; row += kRows) {
        float values[kVector];
        normalised(values, row);
#pragma unroll
        for (int j = 0; j < kVector; ++j) most = fmaxf(most, fabsf(values[j]));
    }
    most = block_reduce<true>(most);
    if (threadIdx.x == 0) scales[blockIdx.y * gridDim.x + blockIdx.x] = most / 128.0f;
    const float factor = 128.0f / most;
#pragma unroll 4
    for (int row = first; row < last; row += kRows) {
        float values[kVector];
        normalised(values, row);
#pragma unroll
        for (int j = 0; j < kVector; ++j) values[j] *= factor;
        store_i8(codes + i64(row) * columns + column, values);
    }
}
