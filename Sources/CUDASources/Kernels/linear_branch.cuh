// What the kernels of the linear branch share; see linear_branch.cu.
#pragma once
#include "attention_tile.cuh"

/// The rows of the statistics of one chunk of keys.
enum Statistic { kKeySum, kValueMaximum, kFeatureSum, kStatistics };

/// Two bf16 ones: the operand B of a product that sums the rows of A.
constexpr u32 kOnes = 0x3f803f80;

/// Replaces the rows of a tile by c(x), with kThreads threads. Eight lanes share a row; each has the chunks `lane8 + 8
/// i` of eight columns, the same for all rows. It calls `before` with the row and the loaded values of these columns,
/// and `after` with the features. Rows from `rows` on become zero.
template <int kRows, int kDim, int kThreads, typename Before, typename After>
DEVICE void features(u8* tile, int thread, int rows, Before before, After after) {
    constexpr int kChunks = kDim / 64;
    const int lane8 = thread % 8;
    static_assert(kRows * 8 % kThreads == 0);
#pragma unroll 1
    for (int pass = 0; pass < kRows * 8 / kThreads; pass++) {
        const int row = thread / 8 + pass * (kThreads / 8);
        float x[kChunks][8], y[kChunks][8];
        float largest = -3.0e38f;
#pragma unroll
        for (int i = 0; i < kChunks; i++) {
            unpack_bf16(x[i], *reinterpret_cast<const uint4*>(
                                  tile + Tile<kRows, kDim>::offset(row, (lane8 + 8 * i) * 16)));
#pragma unroll
            for (int e = 0; e < 8; e++) largest = fmaxf(largest, x[i][e]);
        }
        before(row, x);
        largest = warp_max<8>(largest);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kChunks; i++) {
#pragma unroll
            for (int e = 0; e < 8; e++) {
                y[i][e] = exp2_approx((x[i][e] - largest) * 1.4426950408889634f);
                sum += y[i][e];
            }
        }
        const float total = warp_sum<8>(sum);
        const float inverse = row < rows ? rcp_approx(total) : 0.0f;
#pragma unroll
        for (int i = 0; i < kChunks; i++) {
            u32 words[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                words[e] = pack_bf16(y[i][2 * e] * inverse, y[i][2 * e + 1] * inverse);
                y[i][2 * e] = bf16_low(words[e]);
                y[i][2 * e + 1] = bf16_high(words[e]);
            }
            *reinterpret_cast<uint4*>(tile + Tile<kRows, kDim>::offset(row, (lane8 + 8 * i) * 16)) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
        after(row, y);
    }
}

/// Combines the sums and maxima that the threads of a block collected in `features`, in a fixed order: over the four
/// rows of a warp by shuffles, over the warps in shared memory. table: [warps][2][dim] → statistics: [2][dim]
template <int kDim, int kThreads>
DEVICE void join_statistics(float (&sums)[2][kDim / 64][8], float* table, float* statistics) {
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < kDim / 64 * 8; i++) {
        float& sum = sums[kKeySum][i / 8][i % 8];
        float& largest = sums[kValueMaximum][i / 8][i % 8];
#pragma unroll
        for (int offset = 8; offset < 32; offset *= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, offset);
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
        }
    }
    if (lane < 8) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
#pragma unroll
            for (int i = 0; i < kDim / 64 * 8; i++) {
                table[(warp_id() * 2 + s) * kDim + (lane + i / 8 * 8) * 8 + i % 8] =
                    sums[s][i / 8][i % 8];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kDim; i += kThreads) {
        float x = table[i];
        for (int warp = 1; warp < kThreads / 32; warp++) {
            const float y = table[warp * 2 * kDim + i];
            x = i / kDim == kValueMaximum ? fmaxf(x, y) : x + y;
        }
        statistics[i] = x;
    }
}
