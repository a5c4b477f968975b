// Derivatives of attention of bf16 tensors on mma.sync; the passes and what they compute are those of
// attention_gradient.cu. P and D are rounded to bf16 for their products, sums are f32, and logarithms are to base 2.
//
// A block of threads owns 64 rows of one head, 16 for each warp; the other side comes in tiles of kBlock rows, the next
// one while this one is used.
#include "attention_gradient.cuh"
#include "attention_tile.cuh"

constexpr int kThreads = 128;
constexpr int kOwned = 64;
constexpr float kLog2E = 1.4426950408889634f;

/// sum += A B: A are 16 x kBlock fragments of a warp, B a tile of kBlock rows, at `lane`'s address plus `offset`.
template <int kDim, int kBlock>
DEVICE void add_product(float (&sum)[kDim / 8][4], const u32 (&a)[kBlock / 16][4], const TileLane& lane, u32 offset) {
#pragma unroll
    for (int step = 0; step < kBlock / 16; step++) {
#pragma unroll
        for (int j = 0; j < kDim / 16; j++) {
            u32 b[4];
            ldmatrix_x4_trans(b, lane.at<kBlock>(step, j) + offset);
            mma(sum[2 * j], a[step], b[0], b[1]);
            mma(sum[2 * j + 1], a[step], b[2], b[3]);
        }
    }
}

/// Accumulators of a product as the left operand of the next one.
template <int kBlock>
DEVICE void pack_fragments(u32 (&a)[kBlock / 16][4], const float (&x)[kBlock / 8][4]) {
#pragma unroll
    for (int i = 0; i < kBlock / 4; i++) a[i / 4][i % 4] = pack_bf16(x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]);
}

/// grid (ceil(owned rows / 64), heads, parts of the other rows: 1 but for dk and dv); `dim`: a multiple of 8 up to kDim; blocks of lists: multiples of 64.
/// Shared memory: two tiles of 64 rows, and two stages of two tiles (in the last pass of forward mode four) of kBlock.
template <int kDim, int kBlock, Pass kPass>
__global__ void __launch_bounds__(kThreads, 2) attention_gradient_mma(const GradientArguments a) {
    constexpr bool kByKeys = kPass == Pass::key_gradient;
    constexpr bool kForward = kPass == Pass::forward_statistics || kPass == Pass::tangent;
    constexpr bool kStatistics = kPass == Pass::reverse_statistics || kPass == Pass::forward_statistics;
    using Own = Tile<kOwned, kDim>;
    using Other = Tile<kBlock, kDim>;
    constexpr u32 kStage = (kPass == Pass::tangent ? 4 : 2) * Other::kBytes;
    constexpr int kTiles = kBlock / 8;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 own1 = shared_address(shared), own2 = own1 + Own::kBytes, others = own2 + Own::kBytes;

    const int head = blockIdx.y;
    const int first = blockIdx.x * kOwned;
    const int row = first + warp_id() * 16 + lane_id() / 4;  // and 8 below
    const int own_count = kByKeys ? a.keys : a.queries, other_count = kByKeys ? a.queries : a.keys;
    const i64 stride = i64(a.heads) * a.dim;
    const float scale = a.scale * kLog2E;

    // Zeros past the end, past `dim`, and where there is no tensor.
    auto place = [&](const void* tensor, int start) {
        return static_cast<const bf16*>(tensor ? tensor : a.q) + (tensor ? start * stride + head * a.dim : 0);
    };
    auto load_own = [&](u32 to, const void* tensor) {
        Own::template load<kThreads>(to, place(tensor, first), stride, tensor ? own_count - first : 0, a.dim);
    };
    auto load_other = [&](u32 to, const void* tensor, int start) {
        Other::template load<kThreads>(to, place(tensor, start), stride, tensor ? other_count - start : 0, a.dim);
    };
    auto load_stage = [&](u32 to, int start) {
        load_other(to, kByKeys ? a.q : a.k, start);
        load_other(to + Other::kBytes, kForward ? a.tk : kByKeys ? a.g : a.v, start);
        if (kPass == Pass::tangent) {
            load_other(to + 2 * Other::kBytes, a.v, start);
            load_other(to + 3 * Other::kBytes, a.tv, start);
        }
    };
    const TileLane own1_rows(own1, warp_id() * 16, TileLane::rows);
    const TileLane own2_rows(own2, warp_id() * 16, TileLane::rows);
    const TileLane columns(others, 0, TileLane::columns);
    const TileLane rows(others, 0, TileLane::rows);

    const Walk<kBlock, kByKeys> walk(a, head, first);
    // Of a list's last block whole tiles may lie past the end.
    auto existing = [&](int i) {
        while (i < walk.end && walk.at(i) >= other_count) i++;
        return i;
    };
    load_own(own1, kByKeys ? a.k : a.q);
    load_own(own2, kForward ? a.tq : kByKeys ? a.v : a.g);
    int tile = existing(walk.begin);
    if (tile < walk.end) load_stage(others, walk.at(tile));
    cp_async_commit();

    // What this thread knows of its two rows: of queries their statistics, of keys how often they count.
    float2 known[2] = {};
    float counted[2] = {};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int own = row + 8 * r;
        if (kByKeys) {
            counted[r] = multiplicity(a, own) * kLog2E;
        } else if (!kStatistics && own < a.queries) {
            known[r] = a.statistics[i64(head) * a.queries + own];
        }
    }
    RunningStatistics running;
    float sum1[kDim / 8][4] = {}, sum2[kByKeys ? kDim / 8 : 1][4] = {};

    u32 stage = 0;
#pragma unroll 1
    while (tile < walk.end) {
        const int start = walk.at(tile);
        const int next = existing(tile + 1);
        cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all warps are done with the one before
        if (next < walk.end) load_stage(others + (stage ^ kStage), walk.at(next));
        cp_async_commit();

        float s[1][kTiles][4] = {}, e[1][kTiles][4] = {};
        multiply_keys<kOwned, kBlock, kDim / 16>(s, own1_rows, columns, stage);
        if (kForward) {
            multiply_keys<kOwned, kBlock, kDim / 16>(e, own2_rows, columns, stage);
            multiply_keys<kOwned, kBlock, kDim / 16>(e, own1_rows, columns, stage + Other::kBytes);
        } else {
            multiply_keys<kOwned, kBlock, kDim / 16>(e, own2_rows, columns, stage + Other::kBytes);
        }
        const bool ends = start + kBlock > other_count - 2;
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[0][j][i] *= scale;
                if (kByKeys) {
                    s[0][j][i] += counted[i / 2];
                } else if (ends) {
                    s[0][j][i] += multiplicity(a, start + 8 * j + 2 * (lane_id() % 4) + i % 2) * kLog2E;
                }
            }
        }
        if constexpr (kStatistics) {
            running.add(flat(s[0]), flat(e[0]));
        } else {
#pragma unroll
            for (int j = 0; j < kTiles; j++) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float2 of[2] = {known[0], known[1]};
                    if (kByKeys) {
                        // Queries past the end have no weight.
                        const int query = start + 8 * j + 2 * (lane_id() % 4) + c;
                        of[0] = query < a.queries ? a.statistics[i64(head) * a.queries + query]
                                                  : make_float2(kInfinity, 0.0f);
                        of[1] = of[0];
                    }
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float x = exp2_approx(s[0][j][2 * r + c] - of[r].x);
                        s[0][j][2 * r + c] = x;
                        e[0][j][2 * r + c] = x * (e[0][j][2 * r + c] - of[r].y) * a.scale;
                    }
                }
            }
            u32 d[kBlock / 16][4];
            pack_fragments<kBlock>(d, e[0]);
            add_product<kDim, kBlock>(sum1, d, rows, stage + (kPass == Pass::tangent ? 2 * Other::kBytes : 0));
            if constexpr (kByKeys || kPass == Pass::tangent) {
                u32 p[kBlock / 16][4];
                pack_fragments<kBlock>(p, s[0]);
                if constexpr (kByKeys) {
                    add_product<kDim, kBlock>(sum2, p, rows, stage + Other::kBytes);
                } else {
                    add_product<kDim, kBlock>(sum1, p, rows, stage + 3 * Other::kBytes);
                }
            }
        }
        stage ^= kStage;
        tile = next;
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int own = row + 8 * r;
        if constexpr (kStatistics) {
            const float2 found = running.of(r);
            if (lane_id() % 4 == 0 && own < a.queries) a.statistics[i64(head) * a.queries + own] = found;
        } else if (own < own_count) {
            const i64 part = kByKeys ? i64(blockIdx.z) * a.keys * stride : 0;
            const i64 line = part + own * stride + head * a.dim;
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                const int column = 8 * j + 2 * (lane_id() % 4);
                if (column >= a.dim) continue;
                float* to = (kByKeys ? a.dk : a.out) + line + column;
                *reinterpret_cast<float2*>(to) = make_float2(sum1[j][2 * r], sum1[j][2 * r + 1]);
                if constexpr (kByKeys) {
                    *reinterpret_cast<float2*>(a.dv + line + column) =
                        make_float2(sum2[j][2 * r], sum2[j][2 * r + 1]);
                }
            }
        }
    }
}
