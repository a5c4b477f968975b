// What the kernels of the linear branch share: see linear_branch.cu.
#pragma once
#include "attention_tile.cuh"

/// The rows of the partial sums of one chunk of keys.
enum Statistic { kKeySum, kValueMaximum, kFeatureSum, kStatistics };

/// Two bf16 ones: B of the product that sums the rows of A.
constexpr u32 kOnes = 0x3f803f80;

/// c(x) of the rows of a tile in place, by kThreads threads. Eight lanes share a row; each keeps the columns
/// of its chunks of eight, `lane8 + 8 i`, the same ones for all rows, and calls `before` with the row
/// and those values as loaded, `after` with the features. Rows from `rows` on become zero.
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

/// Joins what the threads of a block saw in `features`: over the four rows of a warp by shuffles, over the
/// warps in shared memory, in a fixed order. table: [warps][2][dim] → statistics: [2][dim].
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
