// Block-sparse SageAttention on Hopper: int8 Q K^T and e4m3 P V on wgmma, blocks of 64 queries x 128 keys.
//
// A block of threads takes two neighbouring query blocks of one head, one per consumer warpgroup, and walks
// over the union of their two ascending lists of key blocks. Neighbours like the same keys, so most tiles
// are loaded once for both: the kernel's limit is the L2 cache. One producer warp merges the lists and
// feeds a ring of stages; each stage says whose it is. Blocks of threads are persistent: the next pair's
// tiles load while this one's result is written.
#include "attention_tile.cuh"
#include "sage.cuh"
#include "wgmma.cuh"

constexpr int kQueries = 64;
constexpr int kKeysPerBlock = 128;
constexpr int kStages = 6;
constexpr int kConsumers = 2;
constexpr int kThreads = 128 * (kConsumers + 1);

/// What the producer says about a stage.
struct Stage {
    int block;
    /// Bit w: consumer w's list has this block. Bit 2: the last of the pair.
    u32 flags;
    float k_scale;
    int padding;
};
constexpr u32 kLast = 4;

template <int kDim>
struct Layout {
    static constexpr int kTileBytes = kKeysPerBlock * kDim;  // of K, and of V
    static constexpr int kStageBytes = 2 * kTileBytes;
    static constexpr int kQueryBytes = kQueries * kDim;
    static constexpr int kQuery = kStages * kStageBytes;
    static constexpr int kInfo = kQuery + kConsumers * kQueryBytes;
    static constexpr int kBarriers = kInfo + kStages * int(sizeof(Stage));
    static constexpr int kBytes = kBarriers + (2 * kStages + 2) * 8;
};

struct Barriers {
    u32 base;
    /// Phase: the stage's tiles and its `Stage` are there. Consumers wait.
    DEVICE u32 full(int stage) const { return base + stage * 8; }
    /// Phase: all consumer warps are done with the stage. The producer waits.
    DEVICE u32 empty(int stage) const { return base + (kStages + stage) * 8; }
    /// The same for the queries of a pair.
    DEVICE u32 query_full() const { return base + 2 * kStages * 8; }
    DEVICE u32 query_empty() const { return base + (2 * kStages + 1) * 8; }
};

/// An ascending list of blocks, 32 entries at a time, one per lane.
struct BlockList {
    const int* indices;
    const float* scales;
    int count;
    int next = 0;
    int block = 0;
    float scale = 0;
    int fetched = -1;

    /// The next block, or a number above all blocks at the end. Whole warp.
    DEVICE int head() {
        if (next >= count) return 0x7fffffff;
        if (next % 32 == 0 && fetched != next) {
            const int i = next + lane_id();
            block = i < count ? indices[i] : 0;
            scale = i < count ? scales[block] : 0.0f;
            fetched = next;
        }
        return __shfl_sync(0xffffffffu, block, next % 32);
    }
    DEVICE float head_scale() const { return __shfl_sync(0xffffffffu, scale, next % 32); }
};

template <int kDim>
DEVICE void produce(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                    const SageArguments& a, u8* shared, Barriers barriers) {
    using L = Layout<kDim>;
    const u32 base = shared_address(shared);
    Stage* info = reinterpret_cast<Stage*>(shared + L::kInfo);
    const int pairs = ceil_div(a.query_blocks, kConsumers);
    Ring<kStages> ring;
    u32 query_parity = 1;
    for (int item = blockIdx.x; item < pairs * a.heads; item += gridDim.x) {
        const int head = item / pairs;
        const int first = item % pairs * kConsumers;
        if (lane_id() == 0) {
            mbarrier_wait(barriers.query_empty(), query_parity);
            mbarrier_arrive_expect_tx(barriers.query_full(), kConsumers * L::kQueryBytes);
            tma_load_3d(base + L::kQuery, q_map, barriers.query_full(), 0, first * kQueries, head);
        }
        query_parity ^= 1;
        const i64 row = i64(head) * a.query_blocks + first;
        const float* scales = a.k_scales + i64(head) * a.key_blocks;
        BlockList one{a.indices + row * a.selected, scales, a.selected};
        BlockList two{a.indices + (row + 1) * a.selected, scales,
                      first + 1 < a.query_blocks ? a.selected : 0};
        int x = one.head();
        int y = two.head();
        while (min(x, y) != 0x7fffffff) {
            Stage stage{min(x, y), u32(x <= y) + 2 * u32(y <= x), 0.0f, 0};
            stage.k_scale = x <= y ? one.head_scale() : two.head_scale();
            if (stage.flags & 1) one.next++;
            if (stage.flags & 2) two.next++;
            x = one.head();
            y = two.head();
            if (min(x, y) == 0x7fffffff) stage.flags |= kLast;
            if (lane_id() == 0) {
                mbarrier_wait(barriers.empty(ring.stage), ring.parity ^ 1);
                info[ring.stage] = stage;
                const u32 full = barriers.full(ring.stage);
                const u32 tile = base + ring.stage * L::kStageBytes;
                mbarrier_arrive_expect_tx(full, L::kStageBytes);
                tma_load_3d(tile, k_map, full, 0, stage.block * kKeysPerBlock, head);
                tma_load_2d(tile + L::kTileBytes, v_map, full, stage.block * kKeysPerBlock,
                            head * kDim);
            }
            ring.advance();
        }
    }
}

/// The running softmax of this thread's two rows.
struct Softmax {
    float maximum[2] = {kLowestLogit, kLowestLogit};
    float sum[2] = {1.0f, 1.0f};  // of this thread's columns; the first decay makes it zero
    float decay[2];

    /// Takes the new maxima. s: integer logits, `factor` what one is worth; columns from `limit` on do
    /// not exist (kMasked).
    template <bool kMasked>
    DEVICE void raise(const i32 (&s)[64], float factor, int limit) {
        const int column = 2 * (lane_id() % 4);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            i32 largest = -0x7fffffff;
#pragma unroll
            for (int j = 0; j < 16; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (kMasked && 8 * j + column + e >= limit) continue;
                    largest = max(largest, s[4 * j + 2 * r + e]);
                }
            }
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            const float m = fmaxf(maximum[r], float(largest) * factor);
            decay[r] = exp2_approx(maximum[r] - m);
            maximum[r] = m;
            sum[r] *= decay[r];
        }
    }

    /// The probabilities of half of the keys: e4m3 in the order of the A operand.
    template <bool kMasked>
    DEVICE void weights(const i32 (&s)[64], int half, float factor, int limit, u32 (&p)[8]) {
        const int column = 2 * (lane_id() % 4);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float offset = kProbabilityOffset - maximum[r];
            float total = 0;
#pragma unroll
            for (int j = 8 * half; j < 8 * half + 8; j += 2) {
                float x[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int i = 4 * (j + e / 2) + 2 * r + e % 2;
                    x[e] = exp2_approx(__fmaf_rn(float(s[i]), factor, offset));
                    if (kMasked && 8 * (j + e / 2) + column + e % 2 >= limit) x[e] = 0.0f;
                }
                total += (x[0] + x[1]) + (x[2] + x[3]);
                // Keys 32 t + 0..15 are the low half of the fragment, rows 8 and up its odd registers.
                p[j / 4 % 2 * 4 + j / 2 % 2 * 2 + r] = pack_e4m3(x[0], x[1], x[2], x[3]);
            }
            sum[r] += total;
        }
    }
};

/// part (+)= P V for half of the keys of a block.
template <int kDim>
DEVICE void weigh(float (&part)[kDim / 2], const u32 (&p)[8], u64 v_tile, int half) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; step++) {
        const u32 x[4] = {p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3]};
        wgmma_e4m3<kDim>(part, x, v_tile + 4 * half + 2 * step, half + step > 0);
    }
    wgmma_commit();
}

template <int kDim>
DEVICE void consume(const SageArguments& a, u8* shared, Barriers barriers, int consumer) {
    using L = Layout<kDim>;
    constexpr Swizzle kRowSwizzle = kDim == 128 ? Swizzle::bytes128 : Swizzle::bytes64;
    const u32 base = shared_address(shared);
    const Stage* info = reinterpret_cast<const Stage*>(shared + L::kInfo);
    const u64 q_tile = wgmma_descriptor(base + L::kQuery + consumer * L::kQueryBytes, 16, 8 * kDim,
                                        kRowSwizzle);
    const u64 k_tiles = wgmma_descriptor(base, 16, 8 * kDim, kRowSwizzle);
    const u64 v_tiles = wgmma_descriptor_128b(base + L::kTileBytes);
    auto pairs = [&] { return ceil_div(a.query_blocks, kConsumers); };
    auto block_of = [&](int item) { return item % pairs() * kConsumers + consumer; };
    Ring<kStages> ring;

    auto release = [&](int stage) {
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(barriers.empty(stage));
    };
    // Goes to the next stage that is ours and fills `stage`; false after the pair's last one (`ended`), or
    // after `most` stages. A list that has none at all (beyond the last query block) ends there, too.
    Stage stage;
    int at = 0;
    bool ended = false;
    constexpr int kAll = 0x7fffffff;
    auto advance = [&](int most) {
        for (; !ended && most > 0; most--) {
            mbarrier_wait(barriers.full(ring.stage), ring.parity);
            const Stage next = info[ring.stage];
            ended = next.flags & kLast;
            const int here = ring.stage;
            ring.advance();
            if (next.flags >> consumer & 1) {
                stage = next;
                at = here;
                return true;
            }
            release(here);
        }
        return false;
    };
    i32 s[64];
    auto multiply = [&] {
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDim / 32; step++) {
            wgmma_s8<128>(s, q_tile + 2 * step, k_tiles + at * (L::kStageBytes / 16) + 2 * step,
                          step > 0);
        }
        wgmma_commit();
    };

    for (int item = blockIdx.x; item < pairs() * a.heads; item += gridDim.x) {
        const float q_factor = block_of(item) < a.query_blocks
                                   ? a.q_scales[i64(item / pairs()) * a.query_blocks + block_of(item)] *
                                         a.scale
                                   : 0.0f;
        float o[kDim / 2] = {};
        Softmax softmax;
        mbarrier_wait(barriers.query_full(), u32(item) / gridDim.x & 1);
        ended = false;
        bool more = advance(kAll);
        if (more) {
            multiply();
            while (more) {
                wgmma_wait<0>();
                wgmma_hold(s);
                const int current = at;
                const u64 v_tile = v_tiles + current * (L::kStageBytes / 16);
                const float factor = q_factor * stage.k_scale;
                const int limit = a.keys - stage.block * kKeysPerBlock;
                float part[kDim / 2];
                u32 low[8], high[8];
                if (limit >= kKeysPerBlock) {
                    softmax.raise<false>(s, factor, limit);
                    softmax.weights<false>(s, 0, factor, limit, low);
                } else {
                    softmax.raise<true>(s, factor, limit);
                    softmax.weights<true>(s, 0, factor, limit, low);
                }
                weigh<kDim>(part, low, v_tile, 0);
                if (limit >= kKeysPerBlock) {
                    softmax.weights<false>(s, 1, factor, limit, high);
                } else {
                    softmax.weights<true>(s, 1, factor, limit, high);
                }
                weigh<kDim>(part, high, v_tile, 1);
                // The next block's products follow at once; after the last block they are this one's
                // again, and nobody looks. A block further away than the ring is long cannot come while
                // we keep this one.
                more = advance(kStages - 1);
                const bool far = !more && !ended;
                if (far) {
                    wgmma_wait<0>();
                    release(current);
                    more = advance(kAll);
                }
                multiply();
                wgmma_wait<1>();
                wgmma_hold(part);
                if (!far) release(current);
#pragma unroll
                for (int i = 0; i < kDim / 2; i++) {
                    o[i] = __fmaf_rn(o[i], softmax.decay[i / 2 % 2], part[i]);
                }
            }
            wgmma_wait<0>();
            wgmma_hold(s);
        }
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(barriers.query_empty());

        // Where the result goes is computed anew: in the loop above no register is free.
        asm volatile("" : "+r"(item));
        const int head = item / pairs();
        const int block = block_of(item);
        const int lane = lane_id();
        const float* v_scale = a.v_scales + head * kDim + 2 * (lane % 4);
        const int row = block * kQueries + int(threadIdx.x) % 128 / 32 * 16 + lane / 4;
        const i64 stride = i64(a.heads) * kDim;
        const i64 place = row * stride + head * kDim;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float inverse = 1.0f / warp_sum<4>(softmax.sum[r]);
            bf16* out = static_cast<bf16*>(a.out) + place + 8 * r * stride;
            const bf16* addend =
                a.addend ? static_cast<const bf16*>(a.addend) + place + 8 * r * stride : nullptr;
#pragma unroll
            for (int j = 0; j < kDim / 8; j += 4) {
                u32 x[4];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const auto scale = Vector<float, 2>::load(v_scale + 8 * (j + n));
                    const int i = 4 * (j + n) + 2 * r;
                    x[n] = pack_bf16(o[i] * inverse * scale[0], o[i + 1] * inverse * scale[1]);
                }
                store_row(out + 8 * j, addend ? addend + 8 * j : nullptr, x,
                          row + 8 * r < a.queries);
            }
        }
    }
}

/// q_map, k_map: int8 [heads, blocks * rows, dim], boxes of 128 rows; v_map: e4m3 [heads * dim, keys],
/// boxes of dim rows x 128. Persistent: the grid is the multiprocessors.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
sage_sm90(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
          const __grid_constant__ TensorMap v_map, const __grid_constant__ SageArguments a) {
    extern __shared__ __align__(1024) u8 shared[];
    const Barriers barriers{shared_address(shared) + u32(Layout<kDim>::kBarriers)};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; stage++) {
            mbarrier_init(barriers.full(stage), 1);
            mbarrier_init(barriers.empty(stage), 4 * kConsumers);
        }
        mbarrier_init(barriers.query_full(), 1);
        mbarrier_init(barriers.query_empty(), 4 * kConsumers);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0);
    if (group == kConsumers) {
        setmaxnreg_dec<40>();
        if (warp_id() == 4 * kConsumers) {
            produce<kDim>(q_map, k_map, v_map, a, shared, barriers);
        }
    } else {
        setmaxnreg_inc<232>();
        consume<kDim>(a, shared, barriers, group);
    }
}
