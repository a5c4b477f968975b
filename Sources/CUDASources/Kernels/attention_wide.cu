// Attention of bf16 tensors with head dimensions up to 512 on mma.sync, for the video autoencoder.
//
// 16 rows of such a result do not fit into the registers of one warp, so two warps share them. Each computes the logits
// of half of a tile's keys, they exchange the maxima and P through shared memory, and each computes half of the columns
// of the result. Otherwise as attention_mma.cu.
#include "attention.cuh"
#include "attention_tile.cuh"
#include "softmax.cuh"

/// q: bf16 [queries, heads, dim] → out: same; dim: a multiple of 8 up to kDim; grid (ceil(queries / (16 kGroups)),
/// heads), 64 kGroups threads.
template <int kDim, int kGroups, int kBlock>
__global__ void __launch_bounds__(64 * kGroups, 1)
attention_wide(const AttentionArguments a) {
    constexpr int kThreads = 64 * kGroups;
    constexpr int kQueries = 16 * kGroups;
    constexpr int kHalf = kDim / 2;         // columns of the result per warp
    constexpr int kKeys = kBlock / 2;       // keys of a tile per warp
    using PTile = Tile<kQueries, 64>;       // P: rows of kBlock, at most 64, values
    constexpr int kQueryBytes = kQueries * kDim * 2;
    constexpr int kTileBytes = kBlock * kDim * 2;
    constexpr int kChunks = kDim / 8;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + kQueryBytes;
    const u32 v_shared = k_shared + kTileBytes;
    const u32 p_shared = v_shared + kTileBytes;
    float* maxima = reinterpret_cast<float*>(shared + kQueryBytes + 2 * kTileBytes + PTile::kBytes);
    float* sums = maxima + 2 * kQueries;  // both [2][queries]

    const int head = blockIdx.y;
    const int first = blockIdx.x * kQueries;
    const i64 stride = i64(a.heads) * a.dim;
    const int lane = lane_id();
    const int half = warp_id() % 2;
    const int warp_row = warp_id() / 2 * 16;

    // Loads rows of kDim values in panels of 64 columns. A warp copies 32 chunks of 16 bytes at a time.
    auto load = [&](u32 to, const void* from, int row, int rows, int count) {
        const bf16* source = static_cast<const bf16*>(from) + row * stride + head * a.dim;
        for (int i = threadIdx.x; i < count * kChunks; i += kThreads) {
            const int r = i / kChunks;
            const int column = i % kChunks * 8;
            const bool valid = row + r < rows && column < a.dim;
            cp_async_16(to + column / 64 * (count * 128) + swizzle_128b(r * 128 + column % 64 * 2),
                        valid ? source + r * stride + column : source, valid);
        }
    };
    load(q_shared, a.q, first, a.queries, kQueries);
    load(k_shared, a.k, 0, a.keys, kBlock);
    cp_async_commit();

    const TileLane q_lane(q_shared, warp_row, TileLane::rows);
    const TileLane k_lane(k_shared, half * kKeys, TileLane::columns);
    const TileLane v_lane(v_shared, 0, TileLane::rows);
    const TileLane p_lane(p_shared, warp_row, TileLane::rows);

    float o[kHalf / 8][4] = {};
    RunningSoftmax softmax;
    const int tiles = ceil_div(a.keys, kBlock);
    for (int tile = 0; tile < tiles; tile++) {
        const int key = tile * kBlock;
        cp_async_wait<0>();
        __syncthreads();  // K(tile) has arrived, and all warps are done with V(tile - 1) and P
        load(v_shared, a.v, key, a.keys, kBlock);
        cp_async_commit();

        float logits[1][kKeys / 8][4] = {};
        multiply_keys<kQueries, kBlock, kDim / 16>(logits, q_lane, k_lane, 0);
        auto& s = logits[0];
        add_multiplicities(flat(s), a, key + half * kKeys);
        float largest[2];
        row_maxima(flat(s), largest);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (lane % 4 == 0) maxima[half * kQueries + warp_row + lane / 4 + 8 * r] = largest[r];
        }
        __syncthreads();  // all warps are done with K(tile) and have written their maxima
        if (tile + 1 < tiles) load(k_shared, a.k, key + kBlock, a.keys, kBlock);
        cp_async_commit();
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = warp_row + lane / 4 + 8 * r;
            largest[r] = fmaxf(largest[r], maxima[(1 - half) * kQueries + row]);
        }
        softmax.raise(largest, a.scale);
        softmax.soften(flat(s), a.scale);
        softmax.fade(flat(o));
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int j = 0; j < kKeys / 8; j++) {
                const u32 place = PTile::offset(warp_row + lane / 4 + 8 * r,
                                                (half * kKeys + 8 * j + 2 * (lane % 4)) * 2);
                *reinterpret_cast<u32*>(shared + kQueryBytes + 2 * kTileBytes + place) =
                    pack_bf16(s[j][2 * r], s[j][2 * r + 1]);
            }
        }
        cp_async_wait<1>();
        __syncthreads();  // V(tile) and P have arrived
#pragma unroll
        for (int step = 0; step < kBlock / 16; step++) {
            u32 p[4];
            ldmatrix_x4(p, p_lane.at<kQueries>(0, step));
#pragma unroll
            for (int j = 0; j < kHalf / 16; j++) {
                u32 b[4];
                ldmatrix_x4_trans(b, v_lane.at<kBlock>(step, j) + half * (kHalf / 64 * kBlock * 128));
                mma_m16n8k16_bf16(o[2 * j], p, b[0], b[1]);
                mma_m16n8k16_bf16(o[2 * j + 1], p, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = warp_sum<4>(softmax.sum[r]);
        if (lane % 4 == 0) sums[half * kQueries + warp_row + lane / 4 + 8 * r] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp_row + lane / 4 + 8 * r;
        const float inverse = 1.0f / (sums[row] + sums[kQueries + row]);
        if (first + row >= a.queries) continue;
        bf16* out = static_cast<bf16*>(a.out) + (first + row) * stride + head * a.dim;
#pragma unroll
        for (int j = 0; j < kHalf / 8; j++) {
            const int column = half * kHalf + 8 * j;
            if (column >= a.dim) continue;
            *reinterpret_cast<u32*>(out + column + 2 * (lane % 4)) =
                pack_bf16(o[j][2 * r] * inverse, o[j][2 * r + 1] * inverse);
        }
    }
}
