// Tiles of 16-bit rows in shared memory for mma.sync: copies in, fragments out.
#pragma once
#include "ptx.cuh"
#include "tile.cuh"

/// Eight bf16 as floats.
DEVICE void unpack_bf16(float (&x)[8], uint4 words) {
    x[0] = bf16_low(words.x), x[1] = bf16_high(words.x);
    x[2] = bf16_low(words.y), x[3] = bf16_high(words.y);
    x[4] = bf16_low(words.z), x[5] = bf16_high(words.z);
    x[6] = bf16_low(words.w), x[7] = bf16_high(words.w);
}

/// `kRows` rows of kDim 16-bit values: panels of 64 columns, rows of 128 bytes, 128-byte swizzle. The
/// base is a multiple of 1024.
template <int kRows, int kDim>
struct Tile {
    static constexpr int kBytes = kRows * kDim * 2;

    static DEVICE u32 offset(int row, int byte) {
        return u32(byte / 128 * (kRows * 128)) + swizzle_128b(u32(row * 128 + byte % 128));
    }

    /// Starts copying `kRows` rows from `source`, `stride` elements apart; rows from `rows` on and columns
    /// from `columns` on become zero.
    template <int kThreads, typename T>
    static DEVICE void load(u32 shared, const T* source, i64 stride, int rows, int columns) {
        constexpr int kChunks = kDim / 8;
        constexpr int kStep = kThreads / kChunks;  // rows between two copies of one thread
        static_assert(sizeof(T) == 2 && kThreads % kChunks == 0);
        static_assert(kRows % kStep == 0 && kStep % 8 == 0);
        const int row = int(threadIdx.x) / kChunks;
        const int column = int(threadIdx.x) % kChunks * 8;
        const T* from = source + row * stride + column;
        const u32 to = shared + offset(row, column * 2);
#pragma unroll
        for (int i = 0; i < kRows / kStep; i++) {
            const bool valid = row + i * kStep < rows && column < columns;
            cp_async_16(to + i * kStep * 128, valid ? from + i * kStep * stride : source, valid);
        }
    }
};

/// Where a lane's rows of 8x8 matrices are in a Tile: a base and, for each of the four 32-byte steps within
/// a panel, the swizzled chunk. Rows a multiple of 8 further on have the same chunks.
///
/// `rows`: the tile's rows are those of the fragment (A, or V as B transposed by ldmatrix): 16 rows, then
/// 16 bytes further. `columns`: rows are the columns of B (K in Q K^T): 8 rows, 16 bytes further, then rows
/// 8..15.
struct TileLane {
    enum Order { rows, columns };
    u32 base;
    u32 chunk[4];

    /// `first_column`: a multiple of 16 below 64, in a tile of one panel.
    DEVICE TileLane(u32 shared, int first_row, Order order, int first_column = 0) {
        const int lane = lane_id();
        const int far_row = order == rows ? lane / 8 % 2 : lane / 16;
        const int far_chunk = order == rows ? lane / 16 : lane / 8 % 2;
        base = shared + (first_row + lane % 8 + far_row * 8) * 128;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            chunk[i] = ((i * 32 + first_column * 2) % 128 + far_chunk * 16) ^ (lane % 8 * 16);
        }
    }

    /// 16 rows further on: `row_step`; 16 columns further on: `column_step`, in a tile of kRows rows.
    template <int kRows>
    DEVICE u32 at(int row_step, int column_step) const {
        return base + column_step / 4 * (kRows * 128) + row_step * 2048 + chunk[column_step % 4];
    }
};

/// Accumulators of mma (columns 8 j + 2 (lane % 4) + {0, 1} of tile j) as rows of 16 bytes: x[j] is this
/// lane's word of tile j; afterwards x holds the four words of tile lane % 4.
DEVICE void quad_transpose(u32 (&x)[4]) {
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const u32 other = __shfl_xor_sync(0xffffffffu, lane & 1 ? x[i] : x[i + 1], 1);
        x[i] = lane & 1 ? other : x[i];
        x[i + 1] = lane & 1 ? x[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 other = __shfl_xor_sync(0xffffffffu, lane & 2 ? x[i] : x[i + 2], 2);
        x[i] = lane & 2 ? other : x[i];
        x[i + 2] = lane & 2 ? x[i + 2] : other;
    }
}

/// Writes 32 columns of a row of results (four tiles of accumulators, packed as bf16) to `out`, the row's
/// first of these columns, rounding again after adding `addend`'s where there is one. `addend` and `out`
/// are 16-byte aligned; nothing is touched where `valid` is false. Whole warps.
DEVICE void store_row(bf16* out, const bf16* addend, u32 (&x)[4], bool valid) {
    quad_transpose(x);
    const int column = lane_id() % 4 * 8;
    if (!valid) return;
    if (addend) {
        const uint4 y = *reinterpret_cast<const uint4*>(addend + column);
        x[0] = pack_bf16(bf16_low(x[0]) + bf16_low(y.x), bf16_high(x[0]) + bf16_high(y.x));
        x[1] = pack_bf16(bf16_low(x[1]) + bf16_low(y.y), bf16_high(x[1]) + bf16_high(y.y));
        x[2] = pack_bf16(bf16_low(x[2]) + bf16_low(y.z), bf16_high(x[2]) + bf16_high(y.z));
        x[3] = pack_bf16(bf16_low(x[3]) + bf16_low(y.w), bf16_high(x[3]) + bf16_high(y.w));
    }
    *reinterpret_cast<uint4*>(out + column) = make_uint4(x[0], x[1], x[2], x[3]);
}
