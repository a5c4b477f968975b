// Attention of bf16 tensors on Hopper (FlashAttention-3, arXiv 2407.08608), head dimension 64 or 128.
//
// Two consumer warpgroups have 64 queries each and visit the same tiles of kBlock keys, which a producer warp loads
// into rings for K and V with bulk tensor copies. A warpgroup issues Q K(i)^T before P V(i - 1), so its softmax
// overlaps with its own P V. Named barriers make the two warpgroups issue in turn, so that the softmax of one overlaps
// with the products of the other. Blocks of threads are persistent.
#include "attention.cuh"
#include "attention_tile.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

constexpr int kConsumers = 2;
constexpr int kQueries = 64 * kConsumers;
constexpr int kThreads = 128 * (kConsumers + 1);

template <int kDim, int kBlock, int kStages>
struct Layout {
    static constexpr int kQueryBytes = kQueries * kDim * 2;
    static constexpr int kTileBytes = kBlock * kDim * 2;
    static constexpr int kKeys = kQueryBytes;
    static constexpr int kValues = kKeys + kStages * kTileBytes;
    static constexpr int kBarriers = kValues + kStages * kTileBytes;
    /// Each warp's largest result, for this work item and the one before.
    static constexpr int kMaxima = kBarriers + (4 * kStages + 2) * 8;
    static constexpr int kBytes = kMaxima + 2 * 4 * kConsumers * 4;
};

template <int kStages>
struct Barriers {
    u32 base;
    /// A phase ends when the tile has arrived. Consumers wait for it.
    DEVICE u32 key_full(int stage) const { return base + stage * 8; }
    DEVICE u32 value_full(int stage) const { return base + (kStages + stage) * 8; }
    /// A phase ends when all consumer warps are done with the tile. The producer waits for it.
    DEVICE u32 key_empty(int stage) const { return base + (2 * kStages + stage) * 8; }
    DEVICE u32 value_empty(int stage) const { return base + (3 * kStages + stage) * 8; }
    /// The same for the queries.
    DEVICE u32 query_full() const { return base + 4 * kStages * 8; }
    DEVICE u32 query_empty() const { return base + (4 * kStages + 1) * 8; }
};

/// One work item of a block of threads: 128 queries of a head, and the tiles of keys that they visit.
template <int kBlock, Keys kKeys>
struct Work {
    int head, first, tiles, steps;
    const int* list;

    DEVICE Work(int item, const AttentionArguments& a) {
        const int query_tiles = ceil_div(a.queries, kQueries);
        head = item / query_tiles;
        first = item % query_tiles * kQueries;
        steps = kKeys == Keys::listed ? a.key_block / kBlock : 1;
        tiles = kKeys == Keys::listed ? a.selected * steps : ceil_div(a.keys, kBlock);
        list = nullptr;
        if (kKeys == Keys::listed) {
            const int query_blocks = ceil_div(a.queries, a.query_block);
            list = a.indices + (i64(head) * query_blocks + first / a.query_block) * a.selected;
        }
    }
    static DEVICE int count(const AttentionArguments& a) {
        return ceil_div(a.queries, kQueries) * a.heads;
    }
    DEVICE int key(int tile, const AttentionArguments& a) const {
        if (kKeys != Keys::listed) return tile * kBlock;
        return list[tile / steps] * a.key_block + tile % steps * kBlock;
    }
};

/// Loads a tile of kRows rows in panels of 64 columns.
template <int kDim, int kRows>
DEVICE void load_tile(u32 shared, const TensorMap& map, u32 barrier, int head, int row) {
#pragma unroll
    for (int panel = 0; panel < kDim / 64; panel++) {
        tma_load_3d(shared + panel * kRows * 128, map, barrier, panel * 64, head, row);
    }
}

template <int kDim, int kBlock, int kStages, Keys kKeys>
DEVICE void produce(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                    const AttentionArguments& a, u32 shared, Barriers<kStages> barriers) {
    using L = Layout<kDim, kBlock, kStages>;
    Ring<kStages> ring;
    u32 query_parity = 1;
    for (int item = blockIdx.x; item < Work<kBlock, kKeys>::count(a); item += gridDim.x) {
        const Work<kBlock, kKeys> work(item, a);
        mbarrier_wait(barriers.query_empty(), query_parity);
        query_parity ^= 1;
        mbarrier_arrive_expect_tx(barriers.query_full(), L::kQueryBytes);
        load_tile<kDim, kQueries>(shared, q_map, barriers.query_full(), work.head, work.first);
        for (int tile = 0; tile < work.tiles; tile++) {
            const int key = work.key(tile, a);
            const u32 place = ring.stage * L::kTileBytes;
            mbarrier_wait(barriers.key_empty(ring.stage), ring.parity ^ 1);
            mbarrier_arrive_expect_tx(barriers.key_full(ring.stage), L::kTileBytes);
            load_tile<kDim, kBlock>(shared + L::kKeys + place, k_map, barriers.key_full(ring.stage),
                                    work.head, key);
            mbarrier_wait(barriers.value_empty(ring.stage), ring.parity ^ 1);
            mbarrier_arrive_expect_tx(barriers.value_full(ring.stage), L::kTileBytes);
            load_tile<kDim, kBlock>(shared + L::kValues + place, v_map,
                                    barriers.value_full(ring.stage), work.head, key);
            ring.advance();
        }
    }
}

/// s = Q K^T for one warpgroup. q, k: descriptors of the first panels of the tiles
template <int kDim, int kBlock>
DEVICE void scores(float (&s)[kBlock / 2], u64 q, u64 k) {
#pragma unroll
    for (int step = 0; step < kDim / 16; step++) {
        // Descriptors count in units of 16 bytes: a step is 32 bytes, and after four steps comes the next panel.
        const int along = step % 4 * 2;
        wgmma_bf16<kBlock>(s, q + step / 4 * (kQueries * 8) + along,
                           k + step / 4 * (kBlock * 8) + along, step > 0);
    }
}

/// o += P V.
template <int kDim, int kBlock>
DEVICE void weigh(float (&o)[kDim / 2], const u32 (&p)[kBlock / 4], u64 v) {
#pragma unroll
    for (int step = 0; step < kBlock / 16; step++) {
        const u32 x[4] = {p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3]};
        wgmma_bf16<kDim, true>(o, x, v + step * 128);
    }
}

/// One step of the running softmax. s: the logits of the tile that begins with `key` → its probabilities
template <int kBlock>
DEVICE void soften(RunningSoftmax& softmax, float (&s)[kBlock / 2], int key, const AttentionArguments& a) {
    add_multiplicities(s, a, key);
    float largest[2];
    row_maxima(s, largest);
    softmax.raise(largest, a.scale);
    softmax.soften(s, a.scale);
}

/// Accumulators as the A operand: k-step t consists of the tiles 2 t and 2 t + 1.
template <int kBlock>
DEVICE void pack(u32 (&p)[kBlock / 4], const float (&s)[kBlock / 2]) {
#pragma unroll
    for (int i = 0; i < kBlock / 4; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

template <int kDim, int kBlock, int kStages, Keys kKeys>
DEVICE void consume(const AttentionArguments& a, u8* memory, Barriers<kStages> barriers,
                    int consumer) {
    using L = Layout<kDim, kBlock, kStages>;
    const u32 shared = shared_address(memory);
    const u64 q_tile = wgmma_descriptor_128b(shared + consumer * 64 * 128);
    const u64 k_tiles = wgmma_descriptor_128b(shared + L::kKeys);
    const u64 v_tiles = wgmma_descriptor_128b_transposed(shared + L::kValues, kBlock * 128);
    const int lane = lane_id();
    auto done = [&](u32 barrier) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barrier);
    };
    // The warpgroups take turns at issuing products.
    auto take_turn = [&] { bar_sync(1 + consumer, 256); };
    auto pass_turn = [&] { bar_arrive(2 - consumer, 256); };
    if (consumer == 1) bar_arrive(1, 256);

    Ring<kStages> keys, values;
    u32 query_parity = 0;
    for (int item = blockIdx.x; item < Work<kBlock, kKeys>::count(a); item += gridDim.x) {
        const Work<kBlock, kKeys> work(item, a);
        RunningSoftmax softmax;
        float s[kBlock / 2];
        float o[kDim / 2] = {};
        u32 p[kBlock / 4];

        mbarrier_wait(barriers.query_full(), query_parity);
        query_parity ^= 1;
        mbarrier_wait(barriers.key_full(keys.stage), keys.parity);
        take_turn();
        wgmma_fence();
        scores<kDim, kBlock>(s, q_tile, k_tiles + keys.stage * (L::kTileBytes / 16));
        wgmma_commit();
        pass_turn();
        wgmma_wait<0>();
        wgmma_hold(s);
        done(barriers.key_empty(keys.stage));
        keys.advance();
        soften<kBlock>(softmax, s, work.key(0, a), a);

        // Waits for P V(tile - 2) and turns the logits of tile - 1 into P. It must come after the loop that waits for
        // the next tile: otherwise ptxas moves the wait to the start of its basic block, before the softmax.
        auto finish = [&](int tile) {
            wgmma_wait<0>();
            wgmma_hold(o);
            if (tile > 1) {
                done(barriers.value_empty(values.stage));
                values.advance();
            }
            softmax.fade(o);
            pack<kBlock>(p, s);
        };
        for (int tile = 1; tile < work.tiles; tile++) {
            mbarrier_wait(barriers.key_full(keys.stage), keys.parity);
            finish(tile);
            take_turn();
            wgmma_fence();
            scores<kDim, kBlock>(s, q_tile, k_tiles + keys.stage * (L::kTileBytes / 16));
            wgmma_commit();
            mbarrier_wait(barriers.value_full(values.stage), values.parity);
            wgmma_fence();
            weigh<kDim, kBlock>(o, p, v_tiles + values.stage * (L::kTileBytes / 16));
            wgmma_commit();
            pass_turn();
            wgmma_wait<1>();
            wgmma_hold(s);
            done(barriers.key_empty(keys.stage));
            keys.advance();
            soften<kBlock>(softmax, s, work.key(tile, a), a);
            wgmma_hold(s);
        }
        done(barriers.query_empty());
        finish(work.tiles);
        mbarrier_wait(barriers.value_full(values.stage), values.parity);
        wgmma_fence();
        weigh<kDim, kBlock>(o, p, v_tiles + values.stage * (L::kTileBytes / 16));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(o);
        done(barriers.value_empty(values.stage));
        values.advance();

        const int row = work.first + int(threadIdx.x) / 32 * 16 + lane / 4;
        const i64 stride = i64(a.heads) * kDim;
        const i64 place = row * stride + work.head * kDim;
        u32 x[2][kDim / 8];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float inverse = softmax.inverse(r);
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                x[r][j] = pack_bf16(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
            }
        }
        const int rows = a.queries - row;
        gather_rows(x, a.addend ? static_cast<const bf16*>(a.addend) + place : nullptr, stride, rows);
        if (kDim != 128 || a.out_scales == nullptr) {
            write_rows(static_cast<bf16*>(a.out) + place, stride, rows, x);
            continue;
        }
        // The rows of both warpgroups together have one scale.
        float* maxima = reinterpret_cast<float*>(memory + L::kMaxima) + query_parity * 4 * kConsumers;
        float largest = warp_max(largest_magnitude(x, rows));
        if (lane == 0) maxima[threadIdx.x / 32] = largest;
        bar_sync(3, 128 * kConsumers);
#pragma unroll
        for (int w = 0; w < 4 * kConsumers; w++) largest = fmaxf(largest, maxima[w]);
        if (threadIdx.x == 0) a.out_scales[work.first / 128 * a.heads + work.head] = code_scale(largest);
        write_codes(static_cast<i8*>(a.out) + place, stride, rows, x, code_factor(largest));
    }
}

/// The maps: bf16 [rows, heads, dim] as (dim, heads, rows), with boxes of 64 columns of one head and 128 queries or
/// kBlock keys. Blocks are persistent: at most one per multiprocessor.
template <int kDim, int kBlock, int kStages, Keys kKeys>
__global__ void __launch_bounds__(kThreads, 1)
attention_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
               const __grid_constant__ TensorMap v_map, const __grid_constant__ AttentionArguments a) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    const Barriers<kStages> barriers{shared + u32(Layout<kDim, kBlock, kStages>::kBarriers)};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; stage++) {
            mbarrier_init(barriers.key_full(stage), 1);
            mbarrier_init(barriers.value_full(stage), 1);
            mbarrier_init(barriers.key_empty(stage), 4 * kConsumers);
            mbarrier_init(barriers.value_empty(stage), 4 * kConsumers);
        }
        mbarrier_init(barriers.query_full(), 1);
        mbarrier_init(barriers.query_empty(), 4 * kConsumers);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0);
    if (group == kConsumers) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 128 * kConsumers) {
            produce<kDim, kBlock, kStages, kKeys>(q_map, k_map, v_map, a, shared, barriers);
        }
    } else {
        setmaxnreg_inc<232>();
        consume<kDim, kBlock, kStages, kKeys>(a, memory, barriers, group);
    }
}
