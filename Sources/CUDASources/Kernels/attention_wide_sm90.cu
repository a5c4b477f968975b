// Attention of bf16 tensors with a head dimension of 384 on Hopper, for the video autoencoder.
//
// The results of 64 queries fill the registers of one warpgroup. So a block of threads is one warpgroup, which computes
// the logits of 32 keys, their softmax, and P V, one after the other. Two such blocks share a multiprocessor if there
// are enough queries. The first thread loads the next K as soon as this one is used, and the next V during the
// logits.
#include "attention.cuh"
#include "attention_tile.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

constexpr int kQueries = 64;
constexpr int kBlock = 32;
constexpr int kThreads = 128;

template <int kDim>
struct Layout {
    static constexpr int kQueryBytes = kQueries * kDim * 2;
    static constexpr int kTileBytes = kBlock * kDim * 2;
    static constexpr int kKeys = kQueryBytes;
    static constexpr int kValues = kKeys + kTileBytes;
    static constexpr int kBarriers = kValues + kTileBytes;
    static constexpr int kBytes = kBarriers + 5 * 8;
};

/// The maps: bf16 [rows, heads, dim] as (dim, heads, rows), boxes of 64 columns of one head, 64 rows of queries and
/// 32 of keys. grid (ceil(queries / 64), heads)
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2)
attention_wide_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                    const __grid_constant__ TensorMap v_map, const __grid_constant__ AttentionArguments a) {
    using L = Layout<kDim>;
    constexpr int kPanels = kDim / 64;
    constexpr int kHalf = kDim / 2;  // columns of the result, of one instruction
    static_assert(kHalf <= 256 && kHalf % 64 == 0);
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    // Phases: a tile is there; all warps are done with it.
    const u32 q_full = base + L::kBarriers;
    const u32 k_full = q_full + 8, v_full = q_full + 16, k_empty = q_full + 24, v_empty = q_full + 32;
    const int first = blockIdx.x * kQueries;
    const int head = blockIdx.y;
    const int tiles = ceil_div(a.keys, kBlock);
    auto load = [&](u32 to, const TensorMap& map, u32 barrier, int rows, int row) {
        mbarrier_arrive_expect_tx(barrier, rows * kDim * 2);
#pragma unroll 1
        for (int panel = 0; panel < kPanels; panel++) {
            tma_load_3d(to + panel * rows * 128, map, barrier, panel * 64, head, row);
        }
    };
    auto load_k = [&](int tile) { load(base + L::kKeys, k_map, k_full, kBlock, tile * kBlock); };
    auto load_v = [&](int tile) { load(base + L::kValues, v_map, v_full, kBlock, tile * kBlock); };
    if (threadIdx.x == 0) {
        mbarrier_init(q_full, 1);
        mbarrier_init(k_full, 1);
        mbarrier_init(v_full, 1);
        mbarrier_init(k_empty, 4);
        mbarrier_init(v_empty, 4);
        fence_mbarrier_init();
        load(base, q_map, q_full, kQueries, first);
        load_k(0);
        load_v(0);
    }
    __syncthreads();

    const int lane = lane_id();
    auto release = [&](u32 barrier) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barrier);
    };
    const u64 q_tile = wgmma_descriptor_128b(base);
    const u64 k_tile = wgmma_descriptor_128b(base + L::kKeys);
    const u64 v_tile = wgmma_descriptor_128b_transposed(base + L::kValues, kBlock * 128);
    float o[2][kHalf / 2] = {};
    RunningSoftmax softmax;
    mbarrier_wait(q_full, 0);
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        const u32 parity = tile & 1;
        float s[kBlock / 2];
        mbarrier_wait(k_full, parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDim / 16; step++) {
            // A descriptor counts 16 bytes: 32 bytes a step, then the next panel.
            const int along = step % 4 * 2;
            wgmma_bf16<kBlock>(s, q_tile + step / 4 * (kQueries * 8) + along,
                               k_tile + step / 4 * (kBlock * 8) + along, step > 0);
        }
        wgmma_commit();
        if (threadIdx.x == 0 && tile > 0) {
            mbarrier_wait(v_empty, parity ^ 1);
            load_v(tile);
        }
        __syncwarp();
        wgmma_wait<0>();
        wgmma_hold(s);
        release(k_empty);
        if (threadIdx.x == 0 && tile + 1 < tiles) {
            mbarrier_wait(k_empty, parity);
            load_k(tile + 1);
        }
        __syncwarp();
        add_multiplicities(s, a, tile * kBlock);
        float largest[2];
        row_maxima(s, largest);
        softmax.raise(largest, a.scale);
        softmax.soften(s, a.scale);
        if (softmax.rose()) {
            softmax.fade(o[0]);
            softmax.fade(o[1]);
        }
        u32 p[kBlock / 16][4];
#pragma unroll
        for (int i = 0; i < kBlock / 4; i++) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
        mbarrier_wait(v_full, parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kBlock / 16; step++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wgmma_bf16<kHalf, true>(o[half], p[step],
                                        v_tile + half * (kHalf / 64 * kBlock * 8) + step * 128);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(o[0]);
        wgmma_hold(o[1]);
        release(v_empty);
    }

    const int row = first + int(threadIdx.x) / 32 * 16 + lane / 4;
    const i64 stride = i64(a.heads) * kDim;
    bf16* out = static_cast<bf16*>(a.out) + row * stride + head * kDim;
    const float inverse[2] = {softmax.inverse(0), softmax.inverse(1)};
#pragma unroll
    for (int c = 0; c < kDim / 32; c++) {
        u32 x[2][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int i = (4 * c + j) * 4;  // of 8 columns
            const float* y = o[i / (kHalf / 2)] + i % (kHalf / 2);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                x[r][j] = pack_bf16(y[2 * r] * inverse[r], y[2 * r + 1] * inverse[r]);
            }
        }
        gather_rows(x, nullptr, stride, a.queries - row);
        write_rows(out + 32 * c, stride, a.queries - row, x);
    }
}
