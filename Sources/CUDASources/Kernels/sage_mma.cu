// Block-sparse SageAttention on mma.sync, with blocks of 128 queries x 64 keys: the arithmetic of sm_80 (P V in f16),
// of sm_89 (e4m3, f32 accumulators) and of SageAttention2++ (e4m3, f16 accumulators within a block of keys).
//
// A block of threads has four warps with 32 rows each; two blocks share a multiprocessor. K and V of the next block of
// keys are loaded during the computation with the current one, so that one barrier per block of keys is enough. Tiles
// of f16 values are too large for that on most cards, and on the others it gains nothing; so f16 V is loaded when it is
// needed. Rows of 8-bit queries and keys take 128 bytes in shared memory (half of it unused if the head dimension is
// 64), so that all tiles have the same swizzle.
#include "attention_tile.cuh"
#include "sage.cuh"

enum class Product { f16, e4m3, e4m3_f16 };

constexpr int kQueries = 128;
constexpr int kBlock = 64;
constexpr int kThreads = 128;
/// Tiles of 16 rows per warp.
constexpr int kRowTiles = 2;

/// Starts copying kRows rows of kBytes, `stride` bytes apart, to rows of kRowBytes with the swizzle of that width.
template <int kRows, int kBytes, int kRowBytes>
DEVICE void load_bytes(u32 shared, const u8* from, i64 stride) {
    constexpr int kChunks = kBytes / 16, kStep = kThreads / kChunks;
    static_assert(kStep % 8 == 0 && kRows % kStep == 0);
    const int row = threadIdx.x / kChunks, byte = threadIdx.x % kChunks * 16;
    const u32 offset = row * kRowBytes + byte;
    const u32 to = shared + (kRowBytes == 128 ? swizzle_128b(offset) : swizzle_64b(offset));
    from += row * stride + byte;
#pragma unroll
    for (int i = 0; i < kRows / kStep; i++) {
        cp_async_16(to + i * kStep * kRowBytes, from + i * kStep * stride);
    }
}

/// The layout of the shared memory of a block of threads.
template <int kDim, Product kProduct>
struct Layout {
    static constexpr bool kHalf = kProduct == Product::f16;
    /// Whether there is room for V of the next block of keys too.
    static constexpr bool kAhead = !kHalf;
    using QTile = Tile<kQueries, 64>;
    using KTile = Tile<kBlock, 64>;
    static constexpr u32 kValueBytes = kDim * kBlock * (kHalf ? 2 : 1);
    static constexpr u32 kKeys = QTile::kBytes;
    static constexpr u32 kValues = kKeys + 2 * KTile::kBytes;

    /// Offsets of K and V of the i-th block of keys.
    static DEVICE u32 keys(int i) { return kKeys + i % 2 * KTile::kBytes; }
    static DEVICE u32 values(int i) { return kValues + (kAhead ? i % 2 * kValueBytes : 0); }
};

/// Turns the logits of 16 rows into probabilities in f16, as operands A. The denominator sums the rounded values.
DEVICE void soften(u32 (&x)[kBlock / 16][4], float (&p)[kBlock / 8][4], RunningSoftmax& softmax, float scale) {
    softmax.soften<false>(flat(p), scale);
    float total[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kBlock / 4; i++) {
        const int n = i % 2 * 2;
        x[i / 4][i % 4] = pack_f16(p[i / 2][n], p[i / 2][n + 1]);
        const float2 rounded = unpack_f16(x[i / 4][i % 4]);
        total[i % 2] += rounded.x + rounded.y;
    }
    softmax.add(0, total[0]);
    softmax.add(1, total[1]);
}

/// The same in e4m3, in the order of sage_quantize_values; the denominator sums the values before rounding.
DEVICE void soften(u32 (&x)[kBlock / 32][4], float (&p)[kBlock / 8][4], RunningSoftmax& softmax, float scale) {
    softmax.soften(flat(p), scale, kProbabilityOffset);
#pragma unroll
    for (int i = 0; i < kBlock / 8; i++) {
        const float(&low)[4] = p[i / 4 * 4 + i % 4 / 2 * 2];
        const float(&high)[4] = p[i / 4 * 4 + i % 4 / 2 * 2 + 1];
        const int n = i % 2 * 2;
        x[i / 4][i % 4] = pack_e4m3(low[n], low[n + 1], high[n], high[n + 1]);
    }
}

/// d += A B for one step; f16 sums are packed in pairs.
template <Product kProduct>
DEVICE void multiply_values(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 890
    mma_m16n8k32_e4m3(d, a, b0, b1);
#endif
}
template <Product kProduct>
DEVICE void multiply_values(u32 (&d)[2], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (kProduct == Product::f16) {
        mma_m16n8k16_f16_f16(d, a, b0, b1);
    } else {
#if __CUDA_ARCH__ >= 890
        mma_m16n8k32_e4m3_f16(d, a, b0, b1);
#endif
    }
}

/// o += P V of one block of keys.
template <int kDim, Product kProduct, int kSteps>
DEVICE void add_values(float (&o)[kRowTiles][kDim / 8][4], const u32 (&x)[kRowTiles][kSteps][4], u32 values) {
    // Addresses of V: f16 as stored; e4m3 by channels, in rows of 64 bytes, with the matrices at row 0, 16 bytes
    // further, then the same at row 8.
    const TileLane lane(values, 0, TileLane::rows);
    const u32 row = (lane_id() % 8 + lane_id() / 16 * 8) * 64 + lane_id() / 8 % 2 * 16;
    const u32 column[2] = {values + swizzle_64b(row), values + swizzle_64b(row + 32)};
#pragma unroll
    for (int j = 0; j < kDim / 16; j++) {
        u32 part[kRowTiles][2][2] = {};
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
            u32 b[4];
            if constexpr (kProduct == Product::f16) {
                ldmatrix_x4_trans(b, lane.at<kBlock>(step, j));
            } else {
                ldmatrix_x4(b, column[step] + j * 16 * 64);
            }
#pragma unroll
            for (int i = 0; i < 2 * kRowTiles; i++) {
                const int t = i / 2, n = i % 2;
                if constexpr (kProduct == Product::e4m3) {
                    multiply_values<kProduct>(o[t][2 * j + n], x[t][step], b[2 * n], b[2 * n + 1]);
                } else {
                    multiply_values<kProduct>(part[t][n], x[t][step], b[2 * n], b[2 * n + 1]);
                }
            }
        }
        if constexpr (kProduct != Product::e4m3) {
#pragma unroll
            for (int i = 0; i < 4 * kRowTiles; i++) {
                const int t = i / 4, n = i / 2 % 2, r = i % 2;
                const float2 y = unpack_f16(part[t][n][r]);
                o[t][2 * j + n][2 * r] += y.x;
                o[t][2 * j + n][2 * r + 1] += y.y;
            }
        }
    }
}

/// q, k: int8 [heads, blocks * rows, dim]; v: e4m3 [heads, dim, padded keys] in the order of sage_quantize_values, or
/// f16 [keys, heads, dim]; grid (query blocks, heads)
template <int kDim, Product kProduct>
__global__ void __launch_bounds__(kThreads, 2) sage_mma(const SageArguments a) {
    using L = Layout<kDim, kProduct>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const int head = blockIdx.y, block = blockIdx.x;
    const int warp_row = warp_id() * 16 * kRowTiles;
    const TileLane q_lane(base, warp_row, TileLane::rows);
    const TileLane k_lane(base, 0, TileLane::columns);

    const i64 place = i64(head) * a.query_blocks + block;
    const int* list = a.indices + place * a.selected;
    const float* k_scales = a.k_scales + i64(head) * a.key_blocks;
    const float q_factor = a.q_scales[place] * a.scale;
    auto load_keys = [&](int i, int index) {
        load_bytes<kBlock, kDim, 128>(
            base + L::keys(i),
            reinterpret_cast<const u8*>(a.k) + (i64(head) * a.key_blocks + index) * (kBlock * kDim), kDim);
    };
    auto load_values = [&](int i, int index) {
        const u32 to = base + L::values(i);
        if constexpr (L::kHalf) {
            const i64 stride = i64(a.heads) * kDim;
            Tile<kBlock, kDim>::template load<kThreads>(
                to, static_cast<const u16*>(a.v) + index * kBlock * stride + head * kDim, stride,
                a.keys - index * kBlock, kDim);
        } else {
            const i64 padded = ceil_div(a.keys, 128) * 128;
            load_bytes<kDim, kBlock, 64>(
                to, static_cast<const u8*>(a.v) + head * kDim * padded + index * kBlock, padded);
        }
    };
    load_bytes<kQueries, kDim, 128>(base, reinterpret_cast<const u8*>(a.q) + place * (kQueries * kDim),
                                    kDim);
    int index = list[0];
    load_keys(0, index);
    if (L::kAhead) load_values(0, index);
    cp_async_commit();

    float o[kRowTiles][kDim / 8][4] = {};
    RunningSoftmax softmax[kRowTiles];
#pragma unroll 1
    for (int i = 0; i < a.selected; i++) {
        const int next = i + 1 < a.selected ? list[i + 1] : index;
        const float factor = q_factor * k_scales[index];
        cp_async_wait<0>();
        __syncthreads();  // the copies have arrived, and all warps are done with the last block of keys
        if (!L::kAhead) {
            load_values(i, index);
            cp_async_commit();
        }
        if (i + 1 < a.selected) {
            load_keys(i + 1, next);
            if (L::kAhead) load_values(i + 1, next);
        }
        cp_async_commit();

        i32 s[kRowTiles][kBlock / 8][4] = {};
        multiply_keys<kQueries, kBlock, kDim / 32>(s, q_lane, k_lane, L::keys(i));
        const int limit = a.keys - index * kBlock;
        u32 x[kRowTiles][kBlock / (L::kHalf ? 16 : 32)][4];
        // All branches come first: within one basic block the compiler can fuse `fade` with the sums of add_values.
        float p[kRowTiles][kBlock / 8][4];
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
#pragma unroll
            for (int i = 0; i < kBlock / 2; i++) flat(p[t])[i] = float(flat(s[t])[i]);
        }
        if (limit < kBlock) {
            asm volatile("");  // forces a branch instead of selections
#pragma unroll
            for (int i = 0; i < kRowTiles * kBlock / 2; i++) {
                const int key = i / 4 * 8 % kBlock + 2 * (lane_id() % 4) + i % 2;
                if (key >= limit) flat(p[i / (kBlock / 2)])[i % (kBlock / 2)] = -kInfinity;
            }
        }
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
            float largest[2];
            row_maxima(flat(p[t]), largest);
            softmax[t].raise(largest, factor);
            // Where the products themselves sum into o, `fade` cannot be fused with them; it is skipped if no maximum
            // rose.
            if (kProduct != Product::e4m3 || softmax[t].rose()) softmax[t].fade(flat(o[t]));
            soften(x[t], p[t], softmax[t], factor);
        }
        if (!L::kAhead) {
            cp_async_wait<1>();
            __syncthreads();  // V has arrived
        }
        add_values<kDim, kProduct>(o, x, base + L::values(i));
        index = next;
    }

    u32 y[kRowTiles][2][kDim / 8];
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
        const float inverse[2] = {softmax[t].inverse(0), softmax[t].inverse(1)};
#pragma unroll
        for (int j = 0; j < kDim / 8; j++) {
            Vector<float, 2> scale{{1.0f, 1.0f}};
            if constexpr (!L::kHalf) {
                scale = Vector<float, 2>::load(a.v_scales + head * kDim + 8 * j + 2 * (lane_id() % 4));
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                y[t][r][j] = pack_bf16(o[t][j][2 * r] * (scale[0] * inverse[r]),
                                       o[t][j][2 * r + 1] * (scale[1] * inverse[r]));
            }
        }
    }
    const int query = block * kQueries + warp_row + lane_id() / 4;
    const i64 stride = i64(a.heads) * kDim;
    write_results(a.out, a.addend, a.out_scales ? a.out_scales + block * a.heads + head : nullptr,
                  query * stride + head * kDim, stride, a.queries - query, y, kDim,
                  reinterpret_cast<float*>(shared));
}
