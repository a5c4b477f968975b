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
    /// from `columns` on become zero. By kThreads threads.
    template <int kThreads, typename T>
    static DEVICE void load(u32 shared, const T* source, i64 stride, int rows, int columns,
                            int thread = int(threadIdx.x)) {
        constexpr int kChunks = kDim / 8;
        constexpr int kStep = kThreads / kChunks;  // rows between two copies of one thread
        static_assert(sizeof(T) == 2 && kThreads % kChunks == 0);
        static_assert(kRows % kStep == 0 && kStep % 8 == 0);
        const int row = thread / kChunks;
        const int column = thread % kChunks * 8;
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

/// Accumulators of mma (columns 8 j + 2 (lane % 4) + {0, 1} of tile j) as rows of 16 bytes: x0..x3 are this
/// lane's words of four tiles; afterwards they are the four words of tile lane % 4. (Selected by PRMT: of a
/// `?:` the compiler makes branches around the shuffles.)
DEVICE void quad_transpose(u32& x0, u32& x1, u32& x2, u32& x3) {
    const u32 odd = lane_id() & 1 ? 0x7654 : 0x3210;
    const u32 high = lane_id() & 2 ? 0x7654 : 0x3210;
    // The lane keeps the word of its own parity, its neighbour gets the other one.
    auto exchange = [](u32& a, u32& b, u32 which, int distance) {
        const u32 other = __shfl_xor_sync(0xffffffffu, __byte_perm(b, a, which), distance);
        a = __byte_perm(a, other, which);
        b = __byte_perm(other, b, which);
    };
    exchange(x0, x1, odd, 1);
    exchange(x2, x3, odd, 1);
    exchange(x0, x2, high, 2);
    exchange(x1, x3, high, 2);
}

/// Writes this lane's two rows of a tile of results: x[r] are the accumulators of row 8 r, packed as bf16.
/// `out` is the first column of row 0; `stride` elements further is the next row, of which `rows` exist.
/// Adds `addend`, laid out like `out`, where there is one, and rounds again. Both are 16-byte aligned; whole
/// warps.
template <int kTiles>
DEVICE void store_rows(bf16* out, const bf16* addend, i64 stride, int rows, u32 (&x)[2][kTiles]) {
    const int column = lane_id() % 4 * 8;
    uint4 y[2][kTiles / 4];
    if (addend) {
#pragma unroll
        for (int i = 0; i < kTiles / 2; i++) {
            const int r = i / (kTiles / 4), j = i % (kTiles / 4);
            y[r][j] = make_uint4(0, 0, 0, 0);
            if (8 * r < rows) {
                y[r][j] = *reinterpret_cast<const uint4*>(addend + 8 * r * stride + 32 * j + column);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kTiles / 2; i++) {
        u32* w = x[i / (kTiles / 4)] + i % (kTiles / 4) * 4;
        quad_transpose(w[0], w[1], w[2], w[3]);
    }
    if (addend) {
        auto add = [](u32& a, u32 b) {
            a = pack_bf16(bf16_low(a) + bf16_low(b), bf16_high(a) + bf16_high(b));
        };
#pragma unroll
        for (int i = 0; i < kTiles / 2; i++) {
            const int r = i / (kTiles / 4), j = i % (kTiles / 4);
            add(x[r][4 * j], y[r][j].x), add(x[r][4 * j + 1], y[r][j].y);
            add(x[r][4 * j + 2], y[r][j].z), add(x[r][4 * j + 3], y[r][j].w);
        }
    }
#pragma unroll
    for (int i = 0; i < kTiles / 2; i++) {
        const int r = i / (kTiles / 4), j = i % (kTiles / 4);
        if (8 * r < rows) {
            *reinterpret_cast<uint4*>(out + 8 * r * stride + 32 * j + column) = make_uint4(
                x[r][4 * j], x[r][4 * j + 1], x[r][4 * j + 2], x[r][4 * j + 3]);
        }
    }
}
