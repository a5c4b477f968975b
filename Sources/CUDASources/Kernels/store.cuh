// Writing the accumulators of mma to rows in memory, with 16 bytes per lane and four lanes per row.
#pragma once
#include "ptx.cuh"

/// Turns accumulators of mma (columns 8 j + 2 (lane % 4) + {0, 1} of tile j) into rows of 16 bytes: x0..x3 are this
/// lane's words of four tiles, and become the four words of tile lane % 4. (Words are selected with PRMT; from `?:` the
/// compiler would make branches around the shuffles.)
DEVICE void quad_transpose(u32& x0, u32& x1, u32& x2, u32& x3) {
    const u32 odd = lane_id() & 1 ? 0x7654 : 0x3210;
    const u32 high = lane_id() & 2 ? 0x7654 : 0x3210;
    // The lane keeps the word of its own parity and gives the other one to its neighbour.
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

/// Gathers this lane's two rows of a tile of results, of which `rows` and `columns` exist. x[r]: the accumulators of
/// row 8 r, packed as bf16; afterwards x[r][4 j...] are the eight columns from 32 j + 8 (lane % 4) on. If `addend` is
/// not null, it is added and the sum rounded again: it points to the first column of row 0, is aligned to 16 bytes, and
/// its rows are `stride` elements apart. `columns` is a multiple of 8. Must be called by whole warps.
template <int kTiles>
DEVICE void gather_rows(u32 (&x)[2][kTiles], const bf16* addend, i64 stride, int rows,
                        int columns = 8 * kTiles) {
    const int column = lane_id() % 4 * 8;
    uint4 y[2][kTiles / 4];
    if (addend) {
#pragma unroll
        for (int i = 0; i < kTiles / 2; i++) {
            const int r = i / (kTiles / 4), j = i % (kTiles / 4);
            y[r][j] = make_uint4(0, 0, 0, 0);
            if (8 * r < rows && 32 * j + column < columns) {
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
}

/// Writes gathered rows as bf16; `out` and `stride` are as `addend` and `stride` of gather_rows.
template <int kTiles>
DEVICE void write_rows(bf16* out, i64 stride, int rows, const u32 (&x)[2][kTiles],
                       int columns = 8 * kTiles) {
    const int column = lane_id() % 4 * 8;
#pragma unroll
    for (int i = 0; i < kTiles / 2; i++) {
        const int r = i / (kTiles / 4), j = i % (kTiles / 4);
        if (8 * r < rows && 32 * j + column < columns) {
            *reinterpret_cast<uint4*>(out + 8 * r * stride + 32 * j + column) = make_uint4(
                x[r][4 * j], x[r][4 * j + 1], x[r][4 * j + 2], x[r][4 * j + 3]);
        }
    }
}

/// The largest magnitude in those of this lane's rows that exist.
template <int kTiles>
DEVICE float largest_magnitude(const u32 (&x)[2][kTiles], int rows) {
    float largest = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            const float2 pair = unpack_bf16(x[r][j]);
            if (8 * r < rows) largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
        }
    }
    return largest;
}

/// The factor from the values of a block to its int8 codes; the scale of the block is its inverse.
DEVICE float code_factor(float largest) { return 128.0f / fmaxf(largest, kLeastMaximum); }
DEVICE float code_scale(float largest) { return fmaxf(largest, kLeastMaximum) / 128.0f; }

/// Writes gathered rows as int8 codes.
template <int kTiles>
DEVICE void write_codes(i8* out, i64 stride, int rows, const u32 (&x)[2][kTiles], float factor) {
    auto codes = [factor](u32 a, u32 b) {
        return pack_i8(bf16_low(a) * factor, bf16_high(a) * factor, bf16_low(b) * factor,
                       bf16_high(b) * factor);
    };
#pragma unroll
    for (int i = 0; i < kTiles / 2; i++) {
        const int r = i / (kTiles / 4), j = i % (kTiles / 4);
        const u32* w = x[r] + 4 * j;
        if (8 * r < rows) {
            *reinterpret_cast<uint2*>(out + 8 * r * stride + 32 * j + lane_id() % 4 * 8) =
                make_uint2(codes(w[0], w[1]), codes(w[2], w[3]));
        }
    }
}
