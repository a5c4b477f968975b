// Tiles of 16-bit values in shared memory for mma.sync: loading tiles, reading fragments, writing results.
#pragma once
#include "store.cuh"
#include "tile.cuh"

/// Eight bf16 as floats.
DEVICE void unpack_bf16(float (&x)[8], uint4 words) {
    x[0] = bf16_low(words.x), x[1] = bf16_high(words.x);
    x[2] = bf16_low(words.y), x[3] = bf16_high(words.y);
    x[4] = bf16_low(words.z), x[5] = bf16_high(words.z);
    x[6] = bf16_low(words.w), x[7] = bf16_high(words.w);
}

/// A tile of kRows rows of kDim 16-bit values: panels of 64 columns, with rows of 128 bytes and 128-byte swizzle. Its
/// address must be a multiple of 1024.
template <int kRows, int kDim>
struct Tile {
    static constexpr int kBytes = kRows * kDim * 2;

    static DEVICE u32 offset(int row, int byte) {
        return u32(byte / 128 * (kRows * 128)) + swizzle_128b(u32(row * 128 + byte % 128));
    }

    /// Starts copying kRows rows from `source`, `stride` elements apart, with kThreads threads. Rows from `rows` on and
    /// columns from `columns` on become zero.
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

/// The addresses that a lane gives to ldmatrix for a Tile: a base and, for each of the four 32-byte steps within a
/// panel, the offset of the swizzled chunk. Rows at a distance that is a multiple of 8 have the same offsets.
///
/// `rows`: the rows of the tile are those of the fragment (A, or V as B transposed by ldmatrix); the matrices are at
/// rows 0 and 8, then the same 16 bytes further. `columns`: the rows of the tile are the columns of B (K in Q K^T); the
/// matrices are at row 0, 16 bytes further, then the same at row 8.
struct TileLane {
    enum Order { rows, columns };
    u32 base;
    u32 chunk[4];

    /// `first_column`: a multiple of 16 below 64; must be 0 if the tile has more than one panel.
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

    /// The address `row_step` times 16 rows and `column_step` times 16 columns further, in a tile of kRows rows.
    template <int kRows>
    DEVICE u32 at(int row_step, int column_step) const {
        return base + column_step / 4 * (kRows * 128) + row_step * 2048 + chunk[column_step % 4];
    }
};

DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_m16n8k16_bf16(d, a, b0, b1); }
DEVICE void mma(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_m16n8k32_s8(d, a, b0, b1); }

/// s += Q K^T for a warp: kRowTiles x 16 rows of a tile of kQueries, and kTiles x 8 rows of a tile of kBlock, over
/// kSteps times 32 bytes of a head. K is `offset` bytes after the address that `k` was made for.
template <int kQueries, int kBlock, int kSteps, int kRowTiles, int kTiles, typename T>
DEVICE void multiply_keys(T (&s)[kRowTiles][kTiles][4], const TileLane& q, const TileLane& k, u32 offset) {
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        u32 x[kRowTiles][4];
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) ldmatrix_x4(x[t], q.at<kQueries>(t, step));
#pragma unroll
        for (int j = 0; j < kTiles / 2; j++) {
            u32 b[4];
            ldmatrix_x4(b, k.at<kBlock>(j, step) + offset);
#pragma unroll
            for (int t = 0; t < kRowTiles; t++) {
                mma(s[t][2 * j], x[t], b[0], b[1]);
                mma(s[t][2 * j + 1], x[t], b[2], b[3]);
            }
        }
    }
}

/// Writes the results of a block of threads, 16 kRowTiles rows per warp. x[t]: this lane's rows of tile t, packed as
/// bf16; `place`: index of the first column of its first row, from which `rows` rows exist. If `scale` is not null, the
/// block of 128 rows and columns of four warps becomes int8 with one scale, using `words` in shared memory.
template <int kRowTiles, int kTiles>
DEVICE void write_results(void* out, const void* addend, float* scale, i64 place, i64 stride, int rows,
                          u32 (&x)[kRowTiles][2][kTiles], int columns, float* words) {
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
        gather_rows(x[t], addend ? static_cast<const bf16*>(addend) + place + 16 * t * stride : nullptr,
                    stride, rows - 16 * t, columns);
    }
    if (kRowTiles * kTiles != 32 || scale == nullptr) {
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
            write_rows(static_cast<bf16*>(out) + place + 16 * t * stride, stride, rows - 16 * t, x[t],
                       columns);
        }
        return;
    }
    float largest = 0;
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
        largest = fmaxf(largest, largest_magnitude(x[t], rows - 16 * t));
    }
    largest = warp_max(largest);
    __syncthreads();  // all warps are done with the tiles
    if (lane_id() == 0) words[warp_id()] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 4; w++) largest = fmaxf(largest, words[w]);
    if (threadIdx.x == 0) *scale = code_scale(largest);
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
        write_codes(static_cast<i8*>(out) + place + 16 * t * stride, stride, rows - 16 * t, x[t],
                    code_factor(largest));
    }
}
