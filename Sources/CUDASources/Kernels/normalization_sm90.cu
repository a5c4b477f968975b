// Layer norm to int8 in blocks of 128 x 128 on Hopper, in one pass: a cluster of eight blocks holds 128 rows in
// registers, a warp two of them, and joins the largest values of their blocks through each other's shared memory.
// Meanwhile each warp's next rows are on their way.
#include "norms.cuh"

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kOwn = 2;  // rows of a warp
constexpr int kCluster = 128 / (kWarps * kOwn);

/// Two pairs of 16-bit numbers, the larger ones.
DEVICE u32 larger(u32 a, u32 b) { return __vmaxu2(a, b); }

/// The largest magnitude of eight bf16, as 16 bits in the lower half.
DEVICE u32 largest_bits(const u32 (&words)[4]) {
    constexpr u32 kMagnitude = 0x7fff7fffu;
    const u32 x = larger(larger(words[0] & kMagnitude, words[1] & kMagnitude),
                         larger(words[2] & kMagnitude, words[3] & kMagnitude));
    return larger(x, x >> 16);
}

/// In the order they are written: the compiler would gather more parameters than there are registers for.
DEVICE void load_eight(float (&x)[8], const float* p) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(x[i]), "=f"(x[i + 1]), "=f"(x[i + 2]), "=f"(x[i + 3])
                     : "l"(p + i));
    }
}

template <int kVectors>
struct Layout {
    static constexpr int kRowBytes = kVectors * 512;
    static constexpr int kBlocks = 2 * kVectors;  // of columns
    static constexpr int kMaxima = kWarps * kOwn * kRowBytes;
    static constexpr int kJoined = kMaxima + kWarps * kBlocks * 4;
    /// What the blocks of a cluster send each other in one turn.
    static constexpr int kJoinedBytes = kCluster * kBlocks * 4;
    static constexpr int kBarriers = kJoined + 2 * kJoinedBytes;
    static constexpr int kBytes = kBarriers + (kWarps + 2) * 8;
    static_assert(kBarriers % 8 == 0);
};

/// x: [rows, columns of Row]; weight and bias are there → codes: int8, the same; scales: [ceil(rows / 128), columns / 128]. Clusters walk over
/// the blocks of rows; grid: a multiple of kCluster.
template <typename Row, bool kRounds>
__global__ void __launch_bounds__(kThreads, Row::kVectors <= 8 ? 2 : 1)
layer_norm_int8_sm90(i8* codes, float* scales, const bf16* x, Affine affine, int rows, float epsilon,
                     float padding) {
    using L = Layout<Row::kVectors>;
    constexpr int kBlocks = L::kBlocks;
    constexpr int kColumns = 128 * kBlocks;
    extern __shared__ __align__(16) u8 shared[];
    u32* const maxima = reinterpret_cast<u32*>(shared + L::kMaxima);  // [kWarps][kBlocks]
    const int warp = warp_id();
    const int lane = lane_id();
    const int rank = int(cluster_rank());
    const u32 barrier = shared_address(shared) + L::kBarriers + 8 * warp;  // of this warp's row
    const u32 joined_barriers = shared_address(shared) + L::kBarriers + 8 * kWarps;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kWarps + 2; i++) {
            mbarrier_init(shared_address(shared) + L::kBarriers + 8 * i, 1);
        }
        fence_mbarrier_init();
    }
    cluster_sync();

    const int tiles = ceil_div(rows, 128);
    const int step = int(gridDim.x) / kCluster;
    u8* const own = shared + warp * kOwn * L::kRowBytes;
    auto fetch = [&](int row) {
        if (lane == 0) {
            mbarrier_arrive_expect_tx(barrier, kOwn * L::kRowBytes);
            for (int r = 0; r < kOwn; r++) {
                // Beyond the end the last row again: that changes no maximum.
                bulk_load(shared_address(own) + r * L::kRowBytes, x + i64(min(row + r, rows - 1)) * kColumns,
                          L::kRowBytes, barrier);
            }
        }
        __syncwarp();
    };
    int row_index = int(blockIdx.x) / kCluster * 128 + (rank * kWarps + warp) * kOwn;
    if (int(blockIdx.x) / kCluster < tiles) fetch(row_index);
    u32 turn = 0;
#pragma unroll 1
    for (int tile = int(blockIdx.x) / kCluster; tile < tiles; tile += step) {
        Row row[kOwn];
        Statistics statistics[kOwn];
        mbarrier_wait(barrier, turn & 1);
#pragma unroll
        for (int r = 0; r < kOwn; r++) row[r].load_shared(own + r * L::kRowBytes);
        __syncwarp();
        if (tile + step < tiles) {
            fence_proxy_async();
            fetch(row_index + 128 * step);
        }
#pragma unroll
        for (int r = 0; r < kOwn; r++) {
            statistics[r] = layer_statistics(row[r], kColumns, epsilon, padding);
        }
#pragma unroll
        for (int i = 0; i < Row::kVectors; i++) {
            Affine::Columns<8> parameters;
            load_eight(parameters.weight, affine.weight + row[0].column(i));
            load_eight(parameters.bias, affine.bias + row[0].column(i));
#pragma unroll
            for (int j = 0; j < 8; j++) parameters.weight[j] += affine.weight_offset;
#pragma unroll
            for (int r = 0; r < kOwn; r++) {
                float values[8];
                row[r].get(values, i);
                parameters.apply<bf16, kRounds>(values, statistics[r]);
                row[r].kept[i].set(values);
                row[r].kept[i].forget();
            }
        }
        // Half a warp has a block's columns; two vectors' maxima are found together.
#pragma unroll
        for (int i = 0; i < Row::kVectors; i += 2) {
            u32 largest[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                largest[j] = largest_bits(row[0].kept[i + j].words);
#pragma unroll
                for (int r = 1; r < kOwn; r++) {
                    largest[j] = larger(largest[j], largest_bits(row[r].kept[i + j].words));
                }
            }
            u32 pair = __byte_perm(largest[0], largest[1], 0x5410);
#pragma unroll
            for (int distance = 8; distance > 0; distance /= 2) {
                pair = larger(pair, __shfl_xor_sync(0xffffffffu, pair, distance));
            }
            if (lane % 16 == 0) {
                u32* to = maxima + warp * kBlocks + 2 * i + lane / 16;
                to[0] = pair << 16;
                to[2] = pair & 0xffff0000u;
            }
        }
        __syncthreads();
        // The block's maxima go to all blocks of the cluster; two turns have a place each.
        const u32 joined = L::kJoined + (turn & 1) * L::kJoinedBytes;
        const u32 joined_barrier = joined_barriers + (turn & 1) * 8;
        if (threadIdx.x == 0) mbarrier_arrive_expect_tx(joined_barrier, L::kJoinedBytes);
        if (int(threadIdx.x) < kCluster * kBlocks / 4) {
            const int first = int(threadIdx.x) % (kBlocks / 4) * 4;
            uint4 largest = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int w = 0; w < kWarps; w++) {
                const uint4 y = *reinterpret_cast<const uint4*>(maxima + w * kBlocks + first);
                largest.x = max(largest.x, y.x), largest.y = max(largest.y, y.y);
                largest.z = max(largest.z, y.z), largest.w = max(largest.w, y.w);
            }
            cluster_store(shared_address(shared) + joined + (rank * kBlocks + first) * 4, joined_barrier,
                          int(threadIdx.x) / (kBlocks / 4), largest);
        }
        __syncwarp();
        mbarrier_wait(joined_barrier, turn / 2 & 1);
        // A lane makes the factors of two blocks, all take them from there.
        float factors[(kBlocks + 31) / 32];
#pragma unroll
        for (int h = 0; h < (kBlocks + 31) / 32; h++) {
            const int block = min(lane + 32 * h, kBlocks - 1);
            float most = kLeastMaximum;
#pragma unroll
            for (int r = 0; r < kCluster; r++) {
                most = fmaxf(most, reinterpret_cast<const float*>(shared + joined)[r * kBlocks + block]);
            }
            factors[h] = 128.0f / most;
            if (rank == 0 && warp == 0) scales[i64(tile) * kBlocks + block] = most / 128.0f;
        }
#pragma unroll
        for (int i = 0; i < Row::kVectors; i++) {
            const float factor =
                __shfl_sync(0xffffffffu, factors[2 * i / 32], 2 * i % 32 + lane / 16);
#pragma unroll
            for (int r = 0; r < kOwn; r++) {
                float values[8];
                row[r].get(values, i);
#pragma unroll
                for (int j = 0; j < 8; j++) values[j] *= factor;
                if (row_index + r < rows) {
                    store_i8(codes + i64(row_index + r) * kColumns + row[r].column(i), values);
                }
            }
        }
        row_index += 128 * step;
        turn++;
    }
}
