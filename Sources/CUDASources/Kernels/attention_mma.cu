// Attention of bf16 tensors on mma.sync: any card from sm_80 on (FlashAttention-2, arXiv 2307.08691).
//
// A warp keeps 16 rows of the result in registers and walks over the keys in tiles of kBlock; the tile's
// K and V are shared by the block's warps, K(i + 1) loads while tile i's softmax and PV run. P is rounded
// to bf16, the denominator sums it unrounded. `dim` may be any multiple of 8 up to kDim.
#include "attention.cuh"
#include "attention_tile.cuh"

/// q: bf16 [queries, heads, dim] → out; grid (ceil(queries / (16 kWarps)), heads), 32 kWarps threads.
/// The compiler is told of the four blocks that it aims at, or it spills to reach them; 0: its own choice.
template <int kDim, int kWarps, int kBlock, Keys kKeys>
__global__ void __launch_bounds__(32 * kWarps, kDim == 64 && kKeys != Keys::relative ? 4 : 0)
attention_mma(const AttentionArguments a) {
    constexpr int kThreads = 32 * kWarps;
    constexpr int kQueries = 16 * kWarps;
    using QTile = Tile<kQueries, kDim>;
    using KTile = Tile<kBlock, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + QTile::kBytes;
    const u32 v_shared = k_shared + KTile::kBytes;
    const int head = blockIdx.y;
    const i64 stride = i64(a.heads) * a.dim;
    const bf16* k = static_cast<const bf16*>(a.k) + head * a.dim;
    const bf16* v = static_cast<const bf16*>(a.v) + head * a.dim;
    const int first = blockIdx.x * kQueries;
    const int lane = lane_id();
    const int warp_row = warp_id() * 16;

    const TileLane q_lane(q_shared, warp_row, TileLane::rows);
    const TileLane k_lane(k_shared, 0, TileLane::columns);
    const TileLane v_lane(v_shared, 0, TileLane::rows);

    const int steps = kKeys == Keys::listed ? a.key_block / kBlock : 1;
    const int tiles = kKeys == Keys::listed ? a.selected * steps : ceil_div(a.keys, kBlock);
    const int* list = nullptr;
    if (kKeys == Keys::listed) {
        const int query_blocks = ceil_div(a.queries, a.query_block);
        list = a.indices + (i64(head) * query_blocks + first / a.query_block) * a.selected;
    }
    auto key_of = [&](int tile) {
        if (kKeys != Keys::listed) return tile * kBlock;
        return list[tile / steps] * a.key_block + tile % steps * kBlock;
    };

    QTile::template load<kThreads>(q_shared,
                                   static_cast<const bf16*>(a.q) + first * stride + head * a.dim,
                                   stride, a.queries - first, a.dim);
    auto load = [&](u32 to, const bf16* from, int key) {
        KTile::template load<kThreads>(to, from + key * stride, stride, a.keys - key, a.dim);
    };
    load(k_shared, k, key_of(0));
    cp_async_commit();

    float o[kDim / 8][4] = {};
    float maximum[2] = {-kInfinity, -kInfinity};
    float sum[2] = {0, 0};  // of this thread's columns alone

    for (int tile = 0; tile < tiles; tile++) {
        const int key = key_of(tile);
        cp_async_wait<0>();
        __syncthreads();  // K(tile) is there; everybody is done with V(tile - 1)
        load(v_shared, v, key);
        cp_async_commit();

        float s[kBlock / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kDim / 16; step++) {
            u32 x[4];
            ldmatrix_x4(x, q_lane.at<kQueries>(0, step));
#pragma unroll
            for (int j = 0; j < kBlock / 16; j++) {
                u32 b[4];
                ldmatrix_x4(b, k_lane.at<kBlock>(j, step));
                mma_m16n8k16_bf16(s[2 * j], x, b[0], b[1]);
                mma_m16n8k16_bf16(s[2 * j + 1], x, b[2], b[3]);
            }
        }
        __syncthreads();  // everybody is done with K(tile)
        if (tile + 1 < tiles) load(k_shared, k, key_of(tile + 1));
        cp_async_commit();

        // Element i of s[j]: row lane / 4 + 8 (i / 2), key 8 j + 2 (lane % 4) + i % 2.
        const int column = key + 2 * (lane % 4);
        if (kKeys == Keys::relative) {
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = first + warp_row + lane / 4 + i / 2 * 8;
                    const int distance = column + 8 * j + i % 2 - row;
                    s[j][i] += a.table[position_bucket(distance) * a.heads + head];
                }
            }
        }
        if (key + kBlock > a.keys - 2) {
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) s[j][i] += multiplicity(a, column + 8 * j + i % 2);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = maximum[r];
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
                largest = fmaxf(largest, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
            }
            largest = warp_max<4>(largest);
            // A tile without a key (a listed block's end) before any other leaves no maximum yet.
            const float offset = largest == -kInfinity ? 0.0f : largest * a.scale;
            const float decay = exp2_approx(maximum[r] * a.scale - offset);
            maximum[r] = largest;
            float total = 0;
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    s[j][i] = exp2_approx(__fmaf_rn(s[j][i], a.scale, -offset));
                    total += s[j][i];
                }
            }
            sum[r] = sum[r] * decay + total;
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                o[j][2 * r] *= decay;
                o[j][2 * r + 1] *= decay;
            }
        }

        cp_async_wait<1>();
        __syncthreads();  // V(tile) is there
#pragma unroll
        for (int step = 0; step < kBlock / 16; step++) {
            const u32 p[4] = {pack_bf16(s[2 * step][0], s[2 * step][1]),
                              pack_bf16(s[2 * step][2], s[2 * step][3]),
                              pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]),
                              pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
            for (int j = 0; j < kDim / 16; j++) {
                u32 b[4];
                ldmatrix_x4_trans(b, v_lane.at<kBlock>(step, j));
                mma_m16n8k16_bf16(o[2 * j], p, b[0], b[1]);
                mma_m16n8k16_bf16(o[2 * j + 1], p, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + warp_row + lane / 4 + 8 * r;
        const float inverse = 1.0f / warp_sum<4>(sum[r]);
        if (row >= a.queries) continue;
        const i64 place = (i64(row) * a.heads + head) * a.dim + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < kDim / 8; j++) {
            if (8 * j >= a.dim) continue;
            u32 x = pack_bf16(o[j][2 * r] * inverse, o[j][2 * r + 1] * inverse);
            if (a.addend) {
                const u32 y = *reinterpret_cast<const u32*>(
                    static_cast<const bf16*>(a.addend) + place + 8 * j);
                x = pack_bf16(bf16_low(x) + bf16_low(y), bf16_high(x) + bf16_high(y));
            }
            *reinterpret_cast<u32*>(static_cast<bf16*>(a.out) + place + 8 * j) = x;
        }
    }
}
