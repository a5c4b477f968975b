// The block map of sparse-linear attention in one kernel, from pooled q and k in bf16: scores that stay in shared
// memory, and the lists of the best ones. The same lists as those of block_map.cu.
#include "attention_tile.cuh"

constexpr int kThreads = 128;
constexpr int kRows = 32;  // query blocks of a block of threads
constexpr int kTile = 64;  // key blocks that are multiplied at one time
/// Pairs of scores of a lane: at most 1,280 key blocks.
constexpr int kMostPairs = 20;

/// A score as 16 bits in the order of the scores; no -0.
DEVICE u32 ordered(float score) {
    const u32 bits = __float_as_uint(round_bf16(score) + 0.0f) >> 16;
    return bits ^ (bits >> 15 ? 0xffffu : 0x8000u);
}

/// q: bf16 [heads, query_blocks, kDim], k: bf16 [heads, key_blocks, kDim] → indices: i32 [heads, query_blocks, selected],
/// the `selected` largest scores q k^T of each row, rounded to bf16, ties to the lower index, ascending.
/// grid (ceil(query_blocks / 32), heads); shared memory: q, two tiles of k, kRows rows of 2 (stride) bytes.
///
/// The `selected`-th largest score is built bit by bit from the top. Those above it are in, of those equal to it the
/// first ones as long as there is room.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
block_list(const bf16* q, const bf16* k, int* indices, int query_blocks, int key_blocks, int selected,
           int stride) {
    using Queries = Tile<kRows, kDim>;
    using Keys = Tile<kTile, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + Queries::kBytes;
    u16* const scores = reinterpret_cast<u16*>(shared + Queries::kBytes + 2 * Keys::kBytes);
    const int head = blockIdx.y;
    const int first = blockIdx.x * kRows;
    const int lane = lane_id();
    k += i64(head) * key_blocks * kDim;
    const int tiles = ceil_div(key_blocks, kTile);
    auto load = [&](int tile) {
        if (tile < tiles) {
            Keys::template load<kThreads>(k_shared + tile % 2 * Keys::kBytes, k + i64(tile) * kTile * kDim,
                                          kDim, key_blocks - tile * kTile, kDim);
        }
        cp_async_commit();
    };
    Queries::template load<kThreads>(q_shared, q + (i64(head) * query_blocks + first) * kDim, kDim,
                                     query_blocks - first, kDim);
    load(0);
    const TileLane q_lane(q_shared, 0, TileLane::rows);
    const TileLane k_lane(k_shared, warp_id() * 16, TileLane::columns);
    for (int tile = 0; tile < tiles; tile++) {
        load(tile + 1);
        cp_async_wait<1>();
        __syncthreads();
        float s[2][2][4] = {};
#pragma unroll
        for (int step = 0; step < kDim / 16; step++) {
            u32 b[4];
            ldmatrix_x4(b, k_lane.at<kTile>(0, step) + tile % 2 * Keys::kBytes);
#pragma unroll
            for (int t = 0; t < 2; t++) {
                u32 a[4];
                ldmatrix_x4(a, q_lane.at<kRows>(t, step));
                mma_m16n8k16_bf16(s[t][0], a, b[0], b[1]);
                mma_m16n8k16_bf16(s[t][1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int t = 0; t < 2; t++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int column = tile * kTile + warp_id() * 16 + 8 * j + 2 * (lane % 4);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    // Zero, below all scores, where there is no key block.
                    const u32 low = column < key_blocks ? ordered(s[t][j][2 * r]) : 0;
                    const u32 high = column + 1 < key_blocks ? ordered(s[t][j][2 * r + 1]) : 0;
                    *reinterpret_cast<u32*>(scores + (t * 16 + lane / 4 + 8 * r) * stride + column) =
                        low | high << 16;
                }
            }
        }
        __syncthreads();
    }

    const int pairs = ceil_div(key_blocks, 2);
    for (int r = warp_id(); r < kRows && first + r < query_blocks; r += kThreads / 32) {
        const u32* row = reinterpret_cast<const u32*>(scores + r * stride);
        u32 pair[kMostPairs];
#pragma unroll
        for (int i = 0; i < kMostPairs; i++) pair[i] = 32 * i + lane < pairs ? row[32 * i + lane] : 0;
        u32 threshold = 0;
        int above = 0;  // how many are larger than every score with the threshold's prefix
        for (u32 bit = 0x8000; bit > 0; bit >>= 1) {
            const u32 candidate = threshold | bit;
            u32 count = 0;
#pragma unroll
            for (int i = 0; i < kMostPairs; i++) {
                if (32 * i >= pairs) break;
                count += (pair[i] & 0xffff) >= candidate;
                count += pair[i] >= candidate << 16;
            }
            count = __reduce_add_sync(0xffffffffu, count);
            if (int(count) >= selected) {
                threshold = candidate;
                if (int(count) == selected) {
                    // All from here on: those larger than the number below.
                    threshold--;
                    above = selected;
                    break;
                }
            } else {
                above = int(count);
            }
        }
        int room = selected - above;
        int* to = indices + (i64(head) * query_blocks + first + r) * selected;
        const u32 before = (1u << lane) - 1;
#pragma unroll
        for (int i = 0; i < kMostPairs; i++) {
            if (32 * i >= pairs) break;
            const int column = 64 * i + 2 * lane;
            const u32 score[2] = {pair[i] & 0xffff, pair[i] >> 16};
            const bool inside[2] = {column < key_blocks, column + 1 < key_blocks};
            u32 equal[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                equal[e] = __ballot_sync(0xffffffffu, inside[e] && score[e] == threshold);
            }
            int rank = __popc(equal[0] & before) + __popc(equal[1] & before);
            u32 taken[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const bool same = equal[e] >> lane & 1;
                taken[e] = __ballot_sync(0xffffffffu, (inside[e] && score[e] > threshold) ||
                                                          (same && rank < room));
                rank += same;
            }
            int place = __popc(taken[0] & before) + __popc(taken[1] & before);
            if (taken[0] >> lane & 1) to[place++] = column;
            if (taken[1] >> lane & 1) to[place] = column + 1;
            to += __popc(taken[0]) + __popc(taken[1]);
            room -= min(room, __popc(equal[0]) + __popc(equal[1]));
        }
    }
}
