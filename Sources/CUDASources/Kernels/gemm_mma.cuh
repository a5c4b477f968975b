// The skeleton of our matrix products on every card from sm_80: tiles of 128x128 by eight warps,
// mma.sync on what cp.async brings, three stages ahead.
#pragma once
#include "gemm_epilogue.cuh"
#include "tile.cuh"

constexpr int kTile = 128;
constexpr int kMmaThreads = 256;
constexpr int kMmaStages = 3;
/// Of one operand in one stage: 128 rows of 128 bytes of K, 128-byte swizzle.
constexpr u32 kOperandBytes = kTile * 128;
constexpr u32 kMmaSharedBytes = kMmaStages * 2 * kOperandBytes;

/// The accumulators of one warp: 64 rows, 32 columns. acc[i][j][r] of lane l is in
/// row 16 i + l / 4 + 8 (r / 2), column 8 j + 2 (l % 4) + r % 2, as in mma.sync.
using WarpTile = float[4][4][4];

template <class Body>
DEVICE void for_each(const WarpTile&, Body body) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int r = 0; r < 4; r++) body(i, j, r);
        }
    }
}

/// Where a warp's tile begins in the block's.
DEVICE int warp_row() { return warp_id() / 4 * 64; }
DEVICE int warp_column() { return warp_id() % 4 * 32; }

template <Element kElement>
DEVICE void mma_step(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (kElement == Element::bf16) {
        mma_m16n8k16_bf16(d, a, b0, b1);
    } else {
#if __CUDA_ARCH__ >= 890
        mma_m16n8k32_e4m3(d, a, b0, b1);
#endif
    }
}
template <Element kElement>
DEVICE void mma_step(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_m16n8k32_s8(d, a, b0, b1);
}

/// acc += A B^T over the 128 bytes of K in one stage.
template <Element kElement, typename T>
DEVICE void multiply_stage(T (&acc)[4][4][4], u32 a_tile, u32 b_tile) {
    const int lane = lane_id();
    const u32 a_row = (warp_row() + lane % 16) * 128 + lane / 16 * 16;
    const u32 b_row = (warp_column() + lane % 8 + lane / 16 * 8) * 128 + lane / 8 % 2 * 16;
    // Where e4m3 is carried out in f16 the conversions need registers.
    constexpr int kUnroll = kElement == Element::e4m3 && __CUDA_ARCH__ == 900 ? 1 : 4;
#pragma unroll kUnroll
    for (int k = 0; k < 4; k++) {
        u32 a[4][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            ldmatrix_x4(a[i], a_tile + swizzle_128b(a_row + 32 * k + i * 16 * 128));
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            ldmatrix_x4(b[j], b_tile + swizzle_128b(b_row + 32 * k + j * 16 * 128));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                mma_step<kElement>(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

/// Runs `slices` slices of 128 bytes of K through the stages. `load(slice, a, b)` starts the copies of one
/// slice into the operands' shared memory; `use(slice, a, b)` multiplies what has arrived.
template <class Load, class Use>
DEVICE void run_stages(u32 base, int slices, Load load, Use use) {
    auto operand_a = [&](int slice) { return base + slice % kMmaStages * 2 * kOperandBytes; };
#pragma unroll
    for (int s = 0; s < kMmaStages - 1; s++) {
        if (s < slices) load(s, operand_a(s), operand_a(s) + kOperandBytes);
        cp_async_commit();
    }
    for (int s = 0; s < slices; s++) {
        cp_async_wait<kMmaStages - 2>();
        // All threads' copies of slice s are there, and all have finished with slice s - 1.
        __syncthreads();
        const int next = s + kMmaStages - 1;
        if (next < slices) load(next, operand_a(next), operand_a(next) + kOperandBytes);
        cp_async_commit();
        use(s, operand_a(s), operand_a(s) + kOperandBytes);
    }
}
