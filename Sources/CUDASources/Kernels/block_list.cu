// Selects the key blocks of sparse-linear attention in one kernel, from the block means of q and k in bf16. The scores
// stay in shared memory. The lists are those of block_map.cu.
#include "attention_tile.cuh"

constexpr int kThreads = 256;
constexpr int kRows = 32;  // query blocks of a block of threads
constexpr int kTile = 64;  // key blocks that are multiplied at one time
/// Pairs of scores of a lane: at most 1,280 key blocks.
constexpr int kMostPairs = 20;

/// A score as 16 bits in the order of the scores; no -0.
DEVICE u32 ordered(float score) {
    const u32 bits = __float_as_uint(round_bf16(score) + 0.0f) >> 16;
    return bits ^ (bits >> 15 ? 0xffffu : 0x8000u);
}

/// Two ordered scores as f16 numbers of the same order: the bits of the bf16 scores, read as f16.
/// Scores of 2^121 and more would become NaN. So does 0, which stands for "no key block" and so is never counted.
DEVICE u32 as_halves(u32 pair) {
    return pair ^ 0x80008000u ^ ((~pair >> 15 & 0x00010001u) * 0x7fffu);
}

/// Adds 1 to each half of `count` where that half of `pair` is at least that of `limits`; all are f16.
DEVICE u32 count_halves(u32 count, u32 pair, u32 limits) {
    u32 r;
    asm("{\n\t.reg .b32 at_least;\n\tset.ge.f16x2.f16x2 at_least, %1, %2;\n\tadd.f16x2 %0, at_least, %3;\n\t}"
        : "=r"(r)
        : "r"(pair), "r"(limits), "r"(count));
    return r;
}

/// q: bf16 [heads, query_blocks, kDim], k: bf16 [heads, key_blocks, kDim] → indices: i32 [heads, query_blocks, selected],
/// the `selected` largest scores q k^T of each row, rounded to bf16, ties to the lower index, ascending.
/// grid (ceil(query_blocks / 32), heads); shared memory: q, two tiles of k, kRows rows of 2 (stride) bytes.
///
/// The `selected`-th largest score is found bit by bit from the top. All scores above it are selected, and then as many
/// of those equal to it as are still missing, the first ones first.
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
    const TileLane q_lane(q_shared, warp_id() / 4 * 16, TileLane::rows);
    // Four warps side by side, two below each other.
    const int half = warp_id() / 4 * 16;
    const int part = warp_id() % 4 * 16;
    const TileLane k_lane(k_shared, part, TileLane::columns);
    for (int tile = 0; tile < tiles; tile++) {
        load(tile + 1);
        cp_async_wait<1>();
        __syncthreads();
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < kDim / 16; step++) {
            u32 a[4], b[4];
            ldmatrix_x4(a, q_lane.at<kRows>(0, step));
            ldmatrix_x4(b, k_lane.at<kTile>(0, step) + tile % 2 * Keys::kBytes);
            mma_m16n8k16_bf16(s[0], a, b[0], b[1]);
            mma_m16n8k16_bf16(s[1], a, b[2], b[3]);
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = tile * kTile + part + 8 * j + 2 * (lane % 4);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // Zero, below all scores, where there is no key block.
                const u32 low = column < key_blocks ? ordered(s[j][2 * r]) : 0;
                const u32 high = column + 1 < key_blocks ? ordered(s[j][2 * r + 1]) : 0;
                *reinterpret_cast<u32*>(scores + (half + lane / 4 + 8 * r) * stride + column) = low | high << 16;
            }
        }
        __syncthreads();
    }

    const int pairs = ceil_div(key_blocks, 2);
    for (int r = warp_id(); r < kRows && first + r < query_blocks; r += kThreads / 32) {
        const u32* row = reinterpret_cast<const u32*>(scores + r * stride);
        u32 pair[kMostPairs], halves[kMostPairs];
#pragma unroll
        for (int i = 0; i < kMostPairs; i++) {
            if (32 * i >= pairs) break;
            pair[i] = 32 * i + lane < pairs ? row[32 * i + lane] : 0;
            halves[i] = as_halves(pair[i]);
        }
        u32 threshold = 0;
        int above = 0;  // how many are larger than every score with the threshold's prefix
        for (u32 bit = 0x8000; bit > 0; bit >>= 1) {
            const u32 candidate = threshold | bit;
            const u32 limits = as_halves(candidate | candidate << 16);
            u32 counts[2] = {};
#pragma unroll
            for (int i = 0; i < kMostPairs; i++) {
                if (32 * i >= pairs) break;
                counts[i % 2] = count_halves(counts[i % 2], halves[i], limits);
            }
            const float2 low = unpack_f16(counts[0]), high = unpack_f16(counts[1]);
            const u32 count = __reduce_add_sync(0xffffffffu, u32(low.x + low.y + high.x + high.y));
            if (int(count) >= selected) {
                threshold = candidate;
                if (int(count) == selected) {
                    // Exactly these: the scores above the next lower number.
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
