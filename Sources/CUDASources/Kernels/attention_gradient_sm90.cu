// Gradients of attention of bf16 tensors on Hopper: what attention_gradient_mma.cu computes, on wgmma, with tiles loaded
// by bulk tensor copies. Head dimension 72 to 128: with own rows in registers heads of 64 are compiled wrongly by ptxas of
// CUDA 12.9 and 13.0, which gives D the registers of G's fragments although the next tile reads them again.
//
// A warpgroup owns 64 rows of one head; all warpgroups of a block of threads visit the same tiles of 64 rows of the other
// side, which one thread loads into a ring. A warpgroup adds a tile's products to its sums while it computes the next
// tile's logits; other warpgroups, of this block or of its neighbour, keep the tensor cores busy meanwhile.
#include "attention_gradient.cuh"
#include "attention_tile.cuh"
#include "wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kBlock = 64;
constexpr float kLog2E = 1.4426950408889634f;

/// Where the loading thread is. It lies in shared memory: the other threads have no registers for it.
template <bool kByKeys>
struct Loading {
    Walk<kBlock, kByKeys> walk;
    /// The tile that comes next, and its first row.
    int tile, row;
    bool has_ended;

    DEVICE Loading(const GradientArguments& a, int head, int first)
        : walk(a, head, first), tile(walk.begin), row(tile < walk.end ? walk.at(tile) : 0), has_ended(false) {}

    DEVICE void advance() {
        if (++tile < walk.end) row = walk.at(tile);
    }
};

/// Shared memory: two own tiles for each warpgroup; stages of two tiles; statistics of each stage; its first row; barriers;
/// `Loading`.
template <int kDim, int kGroups>
struct Layout {
    static constexpr int kStages = kGroups == 1 ? 2 : 4;
    static constexpr u32 kTile = kBlock * kDim * 2;
    static constexpr u32 kOthers = 2 * kGroups * kTile;
    static constexpr u32 kStatistics = kOthers + kStages * 2 * kTile;
    static constexpr u32 kStarts = kStatistics + kStages * kBlock * 8;
    static constexpr u32 kBarriers = kStarts + 8 * kStages;
    static constexpr u32 kLoading = kBarriers + (2 * kStages + 1) * 8;
    static constexpr u32 kBytes = kLoading + 64;
    /// A phase of a stage ends when its bytes have arrived, or when all warps are done with them.
    static DEVICE u32 full(u32 shared, int stage) { return shared + kBarriers + stage * 8; }
    static DEVICE u32 empty(u32 shared, int stage) { return shared + kBarriers + (kStages + stage) * 8; }
    static DEVICE u32 own(u32 shared) { return shared + kBarriers + 2 * kStages * 8; }
};
// What `AttentionGradients.Tile.sharedBytes` reckons; a test of the host has the same figures.
static_assert(Layout<128, 1>::kBytes == 99448);
static_assert(Layout<128, 2>::kBytes == 198824);

/// d = A B^T. a: 64 rows of this warpgroup, as fragments or as a descriptor; b: descriptor of 64 rows
template <int kDim>
DEVICE void multiply_rows(float (&d)[kBlock / 2], const u32 (&a)[kDim / 16][4], u64 b) {
#pragma unroll
    for (int k = 0; k < kDim / 16; k++) wgmma_bf16<kBlock>(d, a[k], b + k / 4 * (kBlock * 8) + k % 4 * 2, k > 0);
}
template <int kDim>
DEVICE void multiply_rows(float (&d)[kBlock / 2], u64 a, u64 b) {
#pragma unroll
    for (int k = 0; k < kDim / 16; k++) {
        const int along = k / 4 * (kBlock * 8) + k % 4 * 2;
        wgmma_bf16<kBlock>(d, a + along, b + along, k > 0);
    }
}

/// sum += A B. a: fragments of 64 rows and 64 columns; b: turned descriptor of 64 rows
template <int kDim>
DEVICE void add_rows(float (&sum)[kDim / 2], const u32 (&a)[kBlock / 16][4], u64 b) {
#pragma unroll
    for (int k = 0; k < kBlock / 16; k++) wgmma_bf16<kDim, true>(sum, a[k], b + k * 128);
}

/// Accumulators as the left operand of the next product.
DEVICE void pack_rows(u32 (&a)[kBlock / 16][4], const float (&x)[kBlock / 2]) {
#pragma unroll
    for (int i = 0; i < kBlock / 4; i++) a[i / 4][i % 4] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

/// grid (ceil(owned rows / (64 kGroups)), heads, parts of the other rows: 1 but for dk and dv); lists need kGroups = 1.
/// The maps: bf16 [rows, heads, dim] as (dim, heads, rows), with boxes of 64 columns of one head and 64 rows: the two own
/// tensors, then those of the other side. Statistics have a stride of whole blocks of 128 queries from head to head; what
/// they are multiplied by has been multiplied into them.
template <int kDim, int kGroups, Pass kPass>
__global__ void __launch_bounds__(128 * kGroups, 2 / kGroups)
attention_gradient_sm90(const __grid_constant__ TensorMap own1_map, const __grid_constant__ TensorMap own2_map,
                        const __grid_constant__ TensorMap other1_map, const __grid_constant__ TensorMap other2_map,
                        const __grid_constant__ GradientArguments a) {
    using L = Layout<kDim, kGroups>;
    constexpr bool kByKeys = kPass == Pass::key_gradient;
    constexpr bool kStatistics = kPass == Pass::reverse_statistics;
    /// Tiles that a stage's reuse lags behind its reading: a faster warpgroup need not wait for the other one.
    constexpr int kLag = kStatistics ? kGroups - 1 : kGroups;
    extern __shared__ __align__(1024) u8 memory[];
    const u32 shared = shared_address(memory);
    const int head = blockIdx.y, lane = lane_id(), group = int(threadIdx.x) / 128;
    const int first = blockIdx.x * 64 * kGroups;
    const int own_count = kByKeys ? a.keys : a.queries, other_count = kByKeys ? a.queries : a.keys;
    const int padded = ceil_div(a.queries, 128) * 128;
    const float scale = a.scale * kLog2E;
    volatile int* const starts = reinterpret_cast<int*>(memory + L::kStarts);

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < L::kStages; stage++) {
            mbarrier_init(L::full(shared, stage), 1);
            mbarrier_init(L::empty(shared, stage), 4 * kGroups);
        }
        mbarrier_init(L::own(shared), 1);
        fence_mbarrier_init();
    }
    __syncthreads();

    auto load_tile = [&](u32 to, const TensorMap& map, u32 barrier, int row) {
#pragma unroll
        for (int panel = 0; panel < kDim / 64; panel++) {
            tma_load_3d(to + panel * kBlock * 128, map, barrier, panel * 64, head, row);
        }
    };
    // One thread loads: tile after tile, then a stage that only says that this was the last one.
    static_assert(sizeof(Loading<kByKeys>) <= L::kBytes - L::kLoading);
    Loading<kByKeys>& loading = *reinterpret_cast<Loading<kByKeys>*>(memory + L::kLoading);
    Ring<L::kStages> filling;
    auto fill = [&] {
        if (loading.has_ended) return;
        // Of a list's last block whole tiles may lie past the end.
        while (loading.tile < loading.walk.end && loading.row >= other_count) loading.advance();
        const u32 full = L::full(shared, filling.stage);
        mbarrier_wait(L::empty(shared, filling.stage), filling.parity ^ 1);
        const int start = loading.row;
        if (loading.tile >= loading.walk.end) {
            loading.has_ended = true;
            starts[filling.stage] = -1;
            mbarrier_arrive(full);
            return;
        }
        starts[filling.stage] = start;
        const u32 to = shared + L::kOthers + filling.stage * 2 * L::kTile;
        mbarrier_arrive_expect_tx(full, 2 * L::kTile + (kByKeys ? kBlock * 8 : 0));
        load_tile(to, other1_map, full, start);
        load_tile(to + L::kTile, other2_map, full, start);
        if (kByKeys) {
            bulk_load(shared + L::kStatistics + filling.stage * kBlock * 8,
                      a.statistics + i64(head) * padded + start, kBlock * 8, full);
        }
        filling.advance();
        loading.advance();
    };
    if (threadIdx.x == 0) {
        loading = Loading<kByKeys>(a, head, first);
        mbarrier_arrive_expect_tx(L::own(shared), 2 * kGroups * L::kTile);
        for (int g = 0; g < kGroups; g++) {
            load_tile(shared + g * L::kTile, own1_map, L::own(shared), first + 64 * g);
            load_tile(shared + (kGroups + g) * L::kTile, own2_map, L::own(shared), first + 64 * g);
        }
        for (int stage = 0; stage < L::kStages; stage++) fill();
    }
    __syncwarp();

    // What this thread knows of its two rows: of queries their statistics, of keys how often they count.
    const int row = first + int(threadIdx.x) / 32 * 16 + lane / 4;  // and 8 below
    float2 known[2] = {};
    float counted[2] = {};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (kByKeys) counted[r] = multiplicity(a, row + 8 * r) * kLog2E;
        if (!kByKeys && !kStatistics) known[r] = a.statistics[i64(head) * padded + row + 8 * r];
    }
    RunningStatistics running;
    float sum1[kStatistics ? 1 : kDim / 2] = {}, sum2[kByKeys ? kDim / 2 : 1] = {};

    const u32 own1 = shared + group * L::kTile, own2 = own1 + kGroups * L::kTile;
    u32 rows1[kByKeys ? 1 : kDim / 16][4], rows2[kByKeys ? 1 : kDim / 16][4];
    mbarrier_wait(L::own(shared), 0);
    if constexpr (!kByKeys) {
        const TileLane lane1(own1, warp_id() % 4 * 16, TileLane::rows), lane2(own2, warp_id() % 4 * 16, TileLane::rows);
#pragma unroll
        for (int k = 0; k < kDim / 16; k++) {
            ldmatrix_x4(rows1[k], lane1.at<kBlock>(0, k));
            ldmatrix_x4(rows2[k], lane2.at<kBlock>(0, k));
        }
    }
    const u64 tiles = wgmma_descriptor_128b(shared + L::kOthers);
    const u64 turned = wgmma_descriptor_128b_transposed(shared + L::kOthers, kBlock * 128);

    Ring<L::kStages> ring;
    int previous = 0, visited = 0;
    auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(L::empty(shared, stage));
        if (threadIdx.x == 0 && visited >= kLag) fill();
        __syncwarp();
    };
    u32 d[kBlock / 16][4], p[kBlock / 16][4];
#pragma unroll 1
    for (;; visited++) {
        mbarrier_wait(L::full(shared, ring.stage), ring.parity);
        const int start = starts[ring.stage];
        if (start < 0) break;
        const u32 place = ring.stage * (2 * L::kTile / 16);
        float s[kBlock / 2], e[kBlock / 2];
        wgmma_fence();
        if constexpr (kByKeys) {
            multiply_rows<kDim>(s, wgmma_descriptor_128b(own1), tiles + place);
            multiply_rows<kDim>(e, wgmma_descriptor_128b(own2), tiles + place + L::kTile / 16);
        } else {
            multiply_rows<kDim>(s, rows1, tiles + place);
            multiply_rows<kDim>(e, rows2, tiles + place + L::kTile / 16);
        }
        wgmma_commit();
        if (!kStatistics && visited > 0) {
            wgmma_wait<1>();
            release(previous);
        }
        wgmma_wait<0>();
        wgmma_hold(s);
        wgmma_hold(e);

        const bool ends = !kByKeys && start + kBlock > other_count - 2;
        if constexpr (kStatistics) {
            release(ring.stage);
#pragma unroll
            for (int i = 0; i < kBlock / 2; i++) {
                s[i] *= scale;
                if (ends) s[i] += multiplicity(a, start + i / 4 * 8 + 2 * (lane % 4) + i % 2) * kLog2E;
            }
            running.add(s, e);
        } else {
            if (ends) {
#pragma unroll
                for (int i = 0; i < kBlock / 2; i++) {
                    // Before the scale is multiplied in.
                    const float times = multiplicity(a, start + i / 4 * 8 + 2 * (lane % 4) + i % 2);
                    if (times != 0.0f) s[i] += times / a.scale;
                }
            }
            const float2* const statistics =
                reinterpret_cast<const float2*>(memory + L::kStatistics) + ring.stage * kBlock + 2 * (lane % 4);
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const float2 column = kByKeys ? statistics[8 * j + c] : make_float2(0.0f, 0.0f);
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int i = 4 * j + 2 * r + c;
                        const float2 of = kByKeys ? column : known[r];
                        const float x = exp2_approx(fmaf(s[i], scale, counted[r] - of.x));
                        s[i] = x;
                        e[i] = x * fmaf(e[i], a.scale, -of.y);
                    }
                }
            }
            pack_rows(d, e);
            if constexpr (kByKeys) pack_rows(p, s);
            wgmma_fence();
            add_rows<kDim>(sum1, d, turned + place);
            if constexpr (kByKeys) add_rows<kDim>(sum2, p, turned + place + L::kTile / 16);
            wgmma_commit();
        }
        previous = ring.stage;
        ring.advance();
    }
    if constexpr (!kStatistics) {
        wgmma_wait<0>();
        wgmma_hold(sum1);
        if constexpr (kByKeys) wgmma_hold(sum2);
    }

    const i64 stride = i64(a.heads) * a.dim;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int own = row + 8 * r;
        if constexpr (kStatistics) {
            const float2 found = running.of(r);
            // Queries past the end have no weight.
            if (lane % 4 == 0) {
                a.statistics[i64(head) * padded + own] =
                    own < a.queries ? make_float2(found.x, found.y * a.scale)
                                    : make_float2(kInfinity, 0.0f);
            }
        } else if (own < own_count) {
            const i64 part = kByKeys ? i64(blockIdx.z) * a.keys * stride : 0;
            const i64 line = part + own * stride + head * a.dim;
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                const int column = 8 * j + 2 * (lane % 4);
                if (column >= a.dim) continue;
                float* to = (kByKeys ? a.dk : a.out) + line + column;
                *reinterpret_cast<float2*>(to) = make_float2(sum1[4 * j + 2 * r], sum1[4 * j + 2 * r + 1]);
                if constexpr (kByKeys) {
                    *reinterpret_cast<float2*>(a.dv + line + column) =
                        make_float2(sum2[4 * j + 2 * r], sum2[4 * j + 2 * r + 1]);
                }
            }
        }
    }
}

#endif
