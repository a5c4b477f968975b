// Block-sparse SageAttention on Hopper: int8 Q K^T and e4m3 P V on wgmma, with blocks of 64 queries x 128 keys.
//
// A block of threads is one warpgroup and computes one query block. It visits the listed key blocks one after the
// other: products, softmax, products. Three blocks of threads share a multiprocessor, so while one waits for the tensor
// cores, the others compute their softmax; within a block nothing overlaps. Its first thread loads the tiles: one of K
// and one of V ahead of those in use.
//
// Measured on an H200: the tiles arrive before they are needed, and tensor cores, exponentials and issue slots are all
// busy for less than half of the time. Warpgroups that share the tiles of two or three query blocks load less but wait
// for each other; they take 1.1 to 1.4 times as long, even if neighbouring query blocks attend to the same keys.
#include "attention_tile.cuh"
#include "sage.cuh"
#include "wgmma.cuh"

constexpr int kQueries = 64;
constexpr int kKeysPerBlock = 128;
constexpr int kStages = 2;
constexpr int kThreads = 128;

template <int kDim>
struct Layout {
    static constexpr int kTileBytes = kKeysPerBlock * kDim;
    static constexpr int kKeys = 0;
    static constexpr int kValues = kStages * kTileBytes;
    static constexpr int kQuery = 2 * kStages * kTileBytes;
    static constexpr int kBarriers = kQuery + kQueries * kDim;
    static constexpr int kBytes = kBarriers + (4 * kStages + 1) * 8;
};

/// The running softmax of this thread's two rows.
struct Softmax {
    float maximum[2] = {kLowestLogit, kLowestLogit};
    float sum[2] = {1.0f, 1.0f};  // over this thread's columns; the first decay makes it zero
    float decay[2];

    /// Updates the maxima. s: integer logits, to be multiplied by `factor`; with kMasked, columns from `limit` on do
    /// not exist.
    template <bool kMasked>
    DEVICE void raise(const i32 (&s)[64], float factor, int limit) {
        const int column = 2 * (lane_id() % 4);
        i32 largest[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            i32 part[2] = {-0x7fffffff, -0x7fffffff};
#pragma unroll
            for (int j = 0; j < 16; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (kMasked && 8 * j + column + e >= limit) continue;
                    part[j % 2] = max(part[j % 2], s[4 * j + 2 * r + e]);
                }
            }
            largest[r] = max(part[0], part[1]);
        }
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2) {
            const i32 x = __shfl_xor_sync(0xffffffffu, largest[0], distance);
            const i32 y = __shfl_xor_sync(0xffffffffu, largest[1], distance);
            largest[0] = max(largest[0], x);
            largest[1] = max(largest[1], y);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float m = fmaxf(maximum[r], float(largest[r]) * factor);
            decay[r] = exp2_approx(maximum[r] - m);
            maximum[r] = m;
        }
    }

    /// Computes the probabilities, in e4m3 and in the order of the operand A.
    template <bool kMasked>
    DEVICE void weights(const i32 (&s)[64], float factor, int limit, u32 (&p)[16]) {
        const int column = 2 * (lane_id() % 4);
        float total[2] = {0, 0};
        const float offset[2] = {kProbabilityOffset - maximum[0], kProbabilityOffset - maximum[1]};
#pragma unroll
        for (int j = 0; j < 16; j += 2) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float x[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int i = 4 * (j + e / 2) + 2 * r + e % 2;
                    x[e] = exp2_approx(__fmaf_rn(float(s[i]), factor, offset[r]));
                    if (kMasked && 8 * (j + e / 2) + column + e % 2 >= limit) x[e] = 0.0f;
                }
                total[r] += (x[0] + x[1]) + (x[2] + x[3]);
                // Keys 32 t + 0..15 are the low half of the fragment; rows from 8 on are in its odd registers.
                p[j / 4 * 4 + j / 2 % 2 * 2 + r] = pack_e4m3(x[0], x[1], x[2], x[3]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) sum[r] = __fmaf_rn(sum[r], decay[r], total[r]);
    }
};

/// q_map, k_map: int8 [heads, blocks * rows, dim], boxes of 64 and 128 rows; v_map: e4m3 [heads * dim, keys],
/// boxes of dim rows x 128. grid (query blocks, heads)
template <int kDim>
__global__ void __launch_bounds__(kThreads, 3)
sage_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
          const __grid_constant__ TensorMap v_map, const __grid_constant__ SageArguments a) {
    using L = Layout<kDim>;
    constexpr Swizzle kRowSwizzle = kDim == 128 ? Swizzle::bytes128 : Swizzle::bytes64;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const u32 barriers = base + L::kBarriers;
    // Phases of `full` barriers end when a tile has arrived, those of `empty` ones when all warps are done with it.
    auto k_full = [=](int stage) { return barriers + 8 * stage; };
    auto v_full = [=](int stage) { return barriers + 8 * (kStages + stage); };
    auto k_empty = [=](int stage) { return barriers + 8 * (2 * kStages + stage); };
    auto v_empty = [=](int stage) { return barriers + 8 * (3 * kStages + stage); };
    const u32 q_full = barriers + 8 * 4 * kStages;

    const int query_block = blockIdx.x;
    const int head = blockIdx.y;
    const i64 place = i64(head) * a.query_blocks + query_block;
    const int* list = a.indices + place * a.selected;
    const float* k_scales = a.k_scales + i64(head) * a.key_blocks;
    auto load_k = [&](int visit, int block) {
        const u32 full = k_full(visit % kStages);
        mbarrier_arrive_expect_tx(full, L::kTileBytes);
        tma_load_3d(base + L::kKeys + visit % kStages * L::kTileBytes, k_map, full, 0,
                    block * kKeysPerBlock, head);
    };
    auto load_v = [&](int visit, int block) {
        const u32 full = v_full(visit % kStages);
        mbarrier_arrive_expect_tx(full, L::kTileBytes);
        tma_load_2d(base + L::kValues + visit % kStages * L::kTileBytes, v_map, full,
                    block * kKeysPerBlock, head * kDim);
    };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; stage++) {
            mbarrier_init(k_full(stage), 1);
            mbarrier_init(v_full(stage), 1);
            mbarrier_init(k_empty(stage), 4);
            mbarrier_init(v_empty(stage), 4);
        }
        mbarrier_init(q_full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(q_full, kQueries * kDim);
        tma_load_3d(base + L::kQuery, q_map, q_full, 0, query_block * kQueries, head);
        load_k(0, list[0]);
        load_v(0, list[0]);
        if (a.selected > 1) load_k(1, list[1]);
    }
    const float q_factor = a.q_scales[place] * a.scale;
    // The next key block to visit, and the scale of the keys that are visited now.
    int next = list[min(1, a.selected - 1)];
    float scale = k_scales[list[0]];
    __syncthreads();

    const u64 q_tile = wgmma_descriptor(base + L::kQuery, 16, 8 * kDim, kRowSwizzle);
    const u64 k_tiles = wgmma_descriptor(base + L::kKeys, 16, 8 * kDim, kRowSwizzle);
    const u64 v_tiles = wgmma_descriptor_128b(base + L::kValues);
    auto release = [](u32 barrier) {
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(barrier);
    };
    float o[kDim / 2] = {};
    Softmax softmax;
    mbarrier_wait(q_full, 0);
    auto visit = [&]<bool kMasked>(int i, int limit) {
        const int stage = i % kStages;
        const u32 parity = i / kStages & 1;
        const float factor = scale * q_factor;
        const int ahead = list[min(i + 2, a.selected - 1)];
        scale = k_scales[next];
        i32 s[64];
        mbarrier_wait(k_full(stage), parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDim / 32; step++) {
            wgmma_s8<128>(s, q_tile + 2 * step, k_tiles + stage * (L::kTileBytes / 16) + 2 * step,
                          step > 0);
        }
        wgmma_commit();
        if (threadIdx.x == 0 && i + 1 < a.selected) {
            mbarrier_wait(v_empty((i + 1) % kStages), (i + 1) / kStages & 1 ^ 1);
            load_v(i + 1, next);
        }
        wgmma_wait<0>();
        wgmma_hold(s);
        release(k_empty(stage));
        u32 p[16];
        softmax.template raise<kMasked>(s, factor, limit);
        softmax.template weights<kMasked>(s, factor, limit, p);
        mbarrier_wait(v_full(stage), parity);
        float part[kDim / 2];
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const u32 x[4] = {p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3]};
            wgmma_e4m3<kDim>(part, x, v_tiles + stage * (L::kTileBytes / 16) + 2 * step, step > 0);
        }
        wgmma_commit();
        if (threadIdx.x == 0 && i + kStages < a.selected) {
            mbarrier_wait(k_empty(stage), parity);
            load_k(i + kStages, ahead);
        }
        wgmma_wait<0>();
        wgmma_hold(part);
        release(v_empty(stage));
#pragma unroll
        for (int n = 0; n < kDim / 2; n++) {
            o[n] = __fmaf_rn(o[n], softmax.decay[n / 2 % 2], part[n]);
        }
        next = ahead;
    };
    // Only the last key block can be incomplete.
    const int limit = a.keys - list[a.selected - 1] * kKeysPerBlock;
    const int whole = a.selected - (limit < kKeysPerBlock);
#pragma unroll 1
    for (int i = 0; i < whole; i++) visit.template operator()<false>(i, kKeysPerBlock);
    if (whole < a.selected) visit.template operator()<true>(whole, limit);

    const int lane = lane_id();
    const float* v_scale = a.v_scales + head * kDim + 2 * (lane % 4);
    const float inverse[2] = {1.0f / warp_sum<4>(softmax.sum[0]), 1.0f / warp_sum<4>(softmax.sum[1])};
    u32 x[2][kDim / 8];
#pragma unroll
    for (int j = 0; j < kDim / 8; j++) {
        const auto scale = Vector<float, 2>::load(v_scale + 8 * j);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            x[r][j] = pack_bf16(o[4 * j + 2 * r] * inverse[r] * scale[0],
                                o[4 * j + 2 * r + 1] * inverse[r] * scale[1]);
        }
    }
    const int row = query_block * kQueries + int(threadIdx.x) / 32 * 16 + lane / 4;
    const i64 stride = i64(a.heads) * kDim;
    const i64 first = row * stride + head * kDim;
    const int rows = a.queries - row;
    gather_rows(x, a.addend ? static_cast<const bf16*>(a.addend) + first : nullptr, stride, rows);
    write_rows(static_cast<bf16*>(a.out) + first, stride, rows, x);
}
