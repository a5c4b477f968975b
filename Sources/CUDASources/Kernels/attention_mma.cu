// Attention of bf16 tensors on mma.sync, for all cards from sm_80 (FlashAttention-2, arXiv 2307.08691).
//
// A warp keeps kRowTiles x 16 rows of the result in registers and visits the keys in tiles of kBlock. The warps of a
// block share the tile's K and V; K(i + 1) is loaded during the softmax and PV of tile i. With 32 rows, each fragment
// of K or V is used for twice as many products; two blocks of threads hide each other's barriers. P is rounded to bf16,
// but the denominator sums it unrounded. `dim` may be any multiple of 8 up to kDim.
#include "attention.cuh"
#include "attention_tile.cuh"
#include "softmax.cuh"

constexpr int kThreads = 128;

/// The tiles of keys that a block of queries visits.
template <int kBlock, Keys kKeys>
struct KeyWalk {
    int tiles, steps, key;
    const int* list;
    int part = 0;

    DEVICE KeyWalk(const AttentionArguments& a, int head, int query) {
        if constexpr (kKeys == Keys::listed) {
            const int query_blocks = ceil_div(a.queries, a.query_block);
            list = a.indices + (i64(head) * query_blocks + query / a.query_block) * a.selected;
            steps = a.key_block / kBlock;
            tiles = a.selected * steps;
            key = *list * a.key_block;
        } else {
            tiles = ceil_div(a.keys, kBlock);
            key = 0;
        }
    }

    /// The first key of the next tile.
    DEVICE void advance(const AttentionArguments& a) {
        key += kBlock;
        if (kKeys != Keys::listed || ++part < steps) return;
        part = 0;
        key = *++list * a.key_block;
    }
};

/// Adds umT5's bias to the logits of a tile that begins with `key`. `row` is this thread's first row.
template <int kTiles>
DEVICE void add_bias(float (&s)[kTiles][4], const AttentionArguments& a, int head, int row, int key) {
    const int distance = key + 2 * (lane_id() % 4) - row;
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] += a.table[position_bucket(distance + 8 * j + i % 2 - i / 2 * 8) * a.heads + head];
        }
    }
}

/// q: bf16 [queries, heads, dim] → out: same; grid (ceil(queries / (64 kRowTiles)), heads). The launch bounds say how
/// many blocks share a multiprocessor, because the compiler would spill registers to reach more.
template <int kDim, int kRowTiles, int kBlock, Keys kKeys>
__global__ void __launch_bounds__(kThreads, kRowTiles == 1 ? 4 : 2)
attention_mma(const AttentionArguments a) {
    constexpr int kQueries = 64 * kRowTiles;
    using QTile = Tile<kQueries, kDim>;
    using KTile = Tile<kBlock, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + QTile::kBytes;
    const u32 v_shared = k_shared + KTile::kBytes;
    const int head = blockIdx.y;
    const int first = blockIdx.x * kQueries;
    const int warp_row = warp_id() * 16 * kRowTiles;
    const int row = first + warp_row + lane_id() / 4;
    const i64 stride = i64(a.heads) * a.dim;
    auto load = [&](u32 to, const void* from, int key) {
        KTile::template load<kThreads>(to, static_cast<const bf16*>(from) + key * stride + head * a.dim,
                                       stride, a.keys - key, a.dim);
        cp_async_commit();
    };
    const TileLane q_lane(q_shared, warp_row, TileLane::rows);
    const TileLane k_lane(k_shared, 0, TileLane::columns);
    const TileLane v_lane(v_shared, 0, TileLane::rows);

    KeyWalk<kBlock, kKeys> walk(a, head, first);
    QTile::template load<kThreads>(q_shared, static_cast<const bf16*>(a.q) + first * stride + head * a.dim,
                                   stride, a.queries - first, a.dim);
    load(k_shared, a.k, walk.key);

    float o[kRowTiles][kDim / 8][4] = {};
    RunningSoftmax softmax[kRowTiles];
#pragma unroll 1
    for (int tile = 0; tile < walk.tiles; tile++) {
        const int key = walk.key;
        cp_async_wait<0>();
        __syncthreads();  // K(tile) has arrived, and all warps are done with V(tile - 1)
        load(v_shared, a.v, key);

        float s[kRowTiles][kBlock / 8][4] = {};
        multiply_keys<kQueries, kBlock, kDim / 16>(s, q_lane, k_lane, 0);
        __syncthreads();  // all warps are done with K(tile)
        if (tile + 1 < walk.tiles) {
            walk.advance(a);
            load(k_shared, a.k, walk.key);
        } else {
            cp_async_commit();
        }
        u32 p[kRowTiles][kBlock / 16][4];
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
            if (kKeys == Keys::relative) add_bias(s[t], a, head, row + 16 * t, key);
            add_multiplicities(flat(s[t]), a, key);
            float largest[2];
            row_maxima(flat(s[t]), largest);
            softmax[t].raise(largest, a.scale);
            softmax[t].soften(flat(s[t]), a.scale);
            softmax[t].fade(flat(o[t]));
#pragma unroll
            for (int i = 0; i < kBlock / 4; i++) {
                p[t][i / 4][i % 4] = pack_bf16(s[t][i / 2][i % 2 * 2], s[t][i / 2][i % 2 * 2 + 1]);
            }
        }
        cp_async_wait<1>();
        __syncthreads();  // V(tile) has arrived
#pragma unroll
        for (int step = 0; step < kBlock / 16; step++) {
#pragma unroll
            for (int j = 0; j < kDim / 16; j++) {
                u32 b[4];
                ldmatrix_x4_trans(b, v_lane.at<kBlock>(step, j));
#pragma unroll
                for (int t = 0; t < kRowTiles; t++) {
                    mma(o[t][2 * j], p[t][step], b[0], b[1]);
                    mma(o[t][2 * j + 1], p[t][step], b[2], b[3]);
                }
            }
        }
    }
    u32 x[kRowTiles][2][kDim / 8];
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float inverse = softmax[t].inverse(r);
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                x[t][r][j] = pack_bf16(o[t][j][2 * r] * inverse, o[t][j][2 * r + 1] * inverse);
            }
        }
    }
    write_results(a.out, a.addend, a.out_scales ? a.out_scales + blockIdx.x * a.heads + head : nullptr,
                  row * stride + head * a.dim, stride, a.queries - row, x, a.dim,
                  reinterpret_cast<float*>(shared));
}
