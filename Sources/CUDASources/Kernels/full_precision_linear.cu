// Linear layers in f32 without tensor cores, for the time embedding, the head, and whole models in f32.
// y = activation(x W^T + bias), W: [outputs, inputs]
#include "rows.cuh"

enum class Activation { none, gelu_tanh, silu };

DEVICE float activate(float x, int activation) {
    switch (Activation(activation)) {
        case Activation::gelu_tanh:
            return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case Activation::silu: return x / (1.0f + expf(-x));
        default: return x;
    }
}

/// Turns a sum of products into a result.
struct Finish {
    const float* bias;  // [outputs] or null
    int activation;
    /// Whether the sum is rounded to bf16 before the activation, as if they were separate operators.
    int rounds;

    DEVICE float operator()(float sum, int output) const {
        if (bias) sum += bias[output];
        if (rounds) sum = round_bf16(sum);
        return activate(sum, activation);
    }
};

/// For few rows: one warp per output, so that the weight is read once, at the speed of memory.
/// x: [kRows, inputs], w: [outputs, inputs] → y: [kRows, outputs]; 256 threads
template <typename W, int kRows, int kVector>
__global__ void __launch_bounds__(256)
    linear_few_rows(float* y, const float* x, const W* w, Finish finish, int outputs, int inputs) {
    const int output = blockIdx.x * 8 + threadIdx.x / 32;
    if (output >= outputs) return;
    w += i64(output) * inputs;
    float sums[kRows] = {};
    for (int k = threadIdx.x % 32 * kVector; k < inputs; k += 32 * kVector) {
        float b[kVector];
        load_floats(b, w + k);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
            float a[kVector];
            load_floats(a, x + i64(row) * inputs + k);
#pragma unroll
            for (int j = 0; j < kVector; ++j) sums[row] += a[j] * b[j];
        }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
        const float sum = warp_sum(sums[row]);
        if (threadIdx.x % 32 == 0) {
            y[i64(row) * outputs + output] = finish(sum, output);
        }
    }
}

/// For many rows: 256 threads compute a tile of 128 x 64, each 8 x 4. The sum is made of partial sums over 256
/// products, because long sums in float lose digits.
/// x: [rows, inputs], w: [outputs, inputs] → y: [rows, outputs]; grid (row tiles, output tiles)
template <typename W, int kVector>
__global__ void __launch_bounds__(256)
    linear_tiles(float* y, const float* x, const W* w, Finish finish, int rows, int outputs,
                 int inputs) {
    constexpr int kM = 128, kN = 64, kK = 16;
    constexpr int kALoads = kM * kK / 256 / kVector, kBLoads = kN * kK / 256 / kVector;
    static_assert(kALoads >= 1 && kBLoads >= 1);
    // Stored with k outermost, and padded so that the transposing stores hit different banks.
    __shared__ float a[2][kK][kM + 4];
    __shared__ float b[2][kK][kN + 4];
    const int row = blockIdx.x * kM, output = blockIdx.y * kN;
    float fetched_a[kALoads][kVector], fetched_b[kBLoads][kVector];

    auto fetch = [&](int k) {
        auto part = [&](auto& fetched, const auto* matrix, int first, int limit, int load) {
            const int index = (load * 256 + int(threadIdx.x)) * kVector;
            const int i = first + index / kK, column = k + index % kK;
            if (i < limit && column < inputs) {
                load_floats(fetched, matrix + i64(i) * inputs + column);
            } else {
#pragma unroll
                for (int j = 0; j < kVector; ++j) fetched[j] = 0.0f;
            }
        };
#pragma unroll
        for (int load = 0; load < kALoads; ++load) part(fetched_a[load], x, row, rows, load);
#pragma unroll
        for (int load = 0; load < kBLoads; ++load) part(fetched_b[load], w, output, outputs, load);
    };
    auto keep = [&](int stage) {
#pragma unroll
        for (int load = 0; load < kALoads; ++load) {
            const int index = (load * 256 + int(threadIdx.x)) * kVector;
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                a[stage][index % kK + j][index / kK] = fetched_a[load][j];
            }
        }
#pragma unroll
        for (int load = 0; load < kBLoads; ++load) {
            const int index = (load * 256 + int(threadIdx.x)) * kVector;
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                b[stage][index % kK + j][index / kK] = fetched_b[load][j];
            }
        }
    };

    // Thread (i, j) of 16 x 16 has rows 4i..4i+3 and 64+4i..64+4i+3, and outputs 4j..4j+3.
    const int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
    float total[8][4] = {}, sums[8][4] = {};
    fetch(0);
    keep(0);
    __syncthreads();
    int stage = 0;
    for (int k = 0; k < inputs; k += kK, stage ^= 1) {
        if (k + kK < inputs) fetch(k + kK);
#pragma unroll 4
        for (int kk = 0; kk < kK; ++kk) {
            float u[8], v[4];
            const float4 low = *reinterpret_cast<const float4*>(&a[stage][kk][m]);
            const float4 high = *reinterpret_cast<const float4*>(&a[stage][kk][64 + m]);
            const float4 right = *reinterpret_cast<const float4*>(&b[stage][kk][n]);
            u[0] = low.x, u[1] = low.y, u[2] = low.z, u[3] = low.w;
            u[4] = high.x, u[5] = high.y, u[6] = high.z, u[7] = high.w;
            v[0] = right.x, v[1] = right.y, v[2] = right.z, v[3] = right.w;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] += u[i] * v[j];
            }
        }
        if (k % 256 == 256 - kK || k + kK >= inputs) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    total[i][j] += sums[i][j];
                    sums[i][j] = 0.0f;
                }
            }
        }
        if (k + kK < inputs) keep(stage ^ 1);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int line = row + m + i % 4 + i / 4 * 64;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int column = output + n + j;
            if (line < rows && column < outputs) {
                y[i64(line) * outputs + column] = finish(total[i][j], column);
            }
        }
    }
}
