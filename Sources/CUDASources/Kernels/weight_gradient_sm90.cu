// Gradients of linear weights on Hopper: G^T X, a sum over all rows, on wgmma with tiles loaded by bulk tensor copies.
//
// Both operands come as they lie, rows by rows: wgmma reads them turned. A weight has few tiles and a long sum, so the
// sum is cut into parts, by the shapes alone; each writes its own share of the result, and they are added in order.
// Two blocks of a cluster have tiles one below the other and share X by multicast.
#include "gemm_epilogue.cuh"
#include "gemm_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kM = 64 * kConsumers, kN = 256, kCluster = 2;
/// Rows in a stage, and columns in a panel of 128 bytes.
constexpr int kRows = 64, kPanel = 64;

/// What one block of a cluster does at a time: a tile of the result, over some rows.
struct Item {
    int part, row, column, begin, count;

    DEVICE Item(int index, int tiles_m, int tiles, int slices, int chunk) {
        const int tile = index % tiles;
        part = index / tiles;
        row = (tile % tiles_m * kCluster + int(cluster_rank())) * kM;
        column = tile / tiles_m * kN;
        begin = part * chunk;
        count = min(chunk, slices - begin);
    }
};

/// g: bf16 [rows, outputs], x: bf16 [rows, inputs], as maps with boxes of 64 rows and 64 columns
/// → out: f32 [parts, outputs, inputs]; a part has `chunk` times 64 rows, inputs is even. Clusters are persistent.
__global__ void __launch_bounds__(kGemmThreads, 1)
weight_gradient_sm90(const __grid_constant__ TensorMap g_map, const __grid_constant__ TensorMap x_map, float* out,
                     int rows, int outputs, int inputs, int chunk) {
    using S = Stage<kM, kN, 128, kRingBytes>;
    using P = Pipeline<S::kCount, kCluster>;
    extern __shared__ u8 shared[];
    const u32 ring_base = (shared_address(shared) + 1023) & ~1023u;
    const P pipeline{ring_base + kRingBytes};
    const int warp = uniform_warp_id();
    const int lane = lane_id();
    if (threadIdx.x == 0) {
        tma_prefetch(g_map);
        tma_prefetch(x_map);
        pipeline.init();
    }
    cluster_sync();

    const int slices = ceil_div(rows, kRows);
    const int tiles_m = ceil_div(outputs, kCluster * kM);
    const int tiles = tiles_m * ceil_div(inputs, kN);
    const int items = tiles * ceil_div(slices, chunk);
    const int first = blockIdx.x / kCluster, step = gridDim.x / kCluster;
    Ring<S::kCount> ring;
    if (warp < 4) {
        setmaxnreg_dec<24>();
        if (warp == 0 && elect_one()) {
            constexpr int kOwn = kN / kPanel / kCluster;  // panels of X that this block loads for both
            const int own = int(cluster_rank()) * kOwn;
            for (int index = first; index < items; index += step) {
                const Item item(index, tiles_m, tiles, slices, chunk);
                for (int i = item.begin; i < item.begin + item.count; i++) {
                    mbarrier_wait(pipeline.empty(ring.stage), ring.parity ^ 1);
                    const u32 full = pipeline.full(ring.stage);
                    const u32 stage = ring_base + ring.stage * S::kBytes;
                    mbarrier_arrive_expect_tx(full, S::kLoaded);
#pragma unroll
                    for (int p = 0; p < kM / kPanel; p++) {
                        tma_load_2d(stage + S::kA + p * kRows * 128, g_map, full, item.row + p * kPanel, i * kRows);
                    }
#pragma unroll
                    for (int p = own; p < own + kOwn; p++) {
                        tma_load_2d_multicast(stage + S::kB + p * kRows * 128, x_map, full, item.column + p * kPanel,
                                              i * kRows, 3);
                    }
                    ring.advance();
                }
            }
        }
    } else {
        setmaxnreg_inc<240>();
        const int group = warp / 4 - 1;
        for (int index = first; index < items; index += step) {
            const Item item(index, tiles_m, tiles, slices, chunk);
            float acc[1][kN / 2];
            multiply<S, P, 1, kN, 128, true>(acc, ring_base, pipeline, ring, item.count, group * 64, lane);
            const int row = item.row + group * 64 + 16 * (warp % 4) + lane / 4;
            const int column = item.column + 2 * (lane % 4);
            float* const to = out + (i64(item.part) * outputs + row) * inputs + column;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (row + 8 * h >= outputs) continue;
#pragma unroll
                for (int j = 0; j < kN / 8; j++) {
                    if (column + 8 * j >= inputs) continue;
                    *reinterpret_cast<float2*>(to + i64(8 * h) * inputs + 8 * j) =
                        make_float2(acc[0][4 * j + 2 * h], acc[0][4 * j + 2 * h + 1]);
                }
            }
        }
    }
    __syncwarp();
    // The shared memory of a block must outlive the copies and arrivals of its neighbour.
    cluster_sync();
}

#endif
