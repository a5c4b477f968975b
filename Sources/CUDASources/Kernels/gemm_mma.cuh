// What matrix products on mma.sync share: a warp's part of one step along K. For all cards from sm_80.
#pragma once
#include "gemm_epilogue.cuh"
#include "tile.cuh"

/// The type in which the tensor cores sum products of an element.
template <Element kElement>
struct SumOf {
    using Type = float;
};
template <>
struct SumOf<Element::i8> {
    using Type = i32;
};

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

/// The offset in a tile, before the swizzle, that a lane gives to ldmatrix for the operand A, with rows from `row` on.
/// `lane_offset_b` is the same for B, whose rows are the columns of the product.
template <int kRowBytes>
DEVICE u32 lane_offset_a(int row) {
    return (row + lane_id() % 16) * kRowBytes + lane_id() / 16 * 16;
}
template <int kRowBytes>
DEVICE u32 lane_offset_b(int row) {
    return (row + lane_id() % 8 + lane_id() / 16 * 8) * kRowBytes + lane_id() / 8 % 2 * 16;
}

/// acc += A B^T over 32 bytes of K: kHigh x 16 rows and kWide x 8 columns. `a`, `b`: this lane's addresses in the
/// tiles. acc[i][j][r] of lane l is in row 16 i + l / 4 + 8 (r / 2), column 8 j + 2 (l % 4) + r % 2.
template <Element kElement, int kRowBytes, int kHigh, int kWide, typename T>
DEVICE void multiply_step(T (&acc)[kHigh][kWide][4], u32 a, u32 b) {
    static_assert(kWide % 2 == 0);
    u32 x[kHigh][4], y[kWide / 2][4];
#pragma unroll
    for (int i = 0; i < kHigh; i++) ldmatrix_x4(x[i], a + i * 16 * kRowBytes);
#pragma unroll
    for (int j = 0; j < kWide / 2; j++) ldmatrix_x4(y[j], b + j * 16 * kRowBytes);
#pragma unroll
    for (int j = 0; j < kWide; j++) {
#pragma unroll
        for (int i = 0; i < kHigh; i++) {
            mma_step<kElement>(acc[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
        }
    }
}
