// Linear layers on Hopper: out = epilogue(x w^T), on wgmma with tiles loaded by bulk tensor copies.
//
// Persistent blocks of threads visit the tiles. Two blocks of a cluster work on neighbouring tiles and share their
// common operand by multicast: w if each has 128 rows of x, x if each has 128 rows of w.
#include "gemm_epilogue.cuh"
#include "gemm_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The position of tile `index`, in units of a cluster's tile. The order goes along bands of eight rows of tiles, so
/// that tiles computed at the same time share their operands in L2.
DEVICE int2 tile_position(int index, int tiles_m, int tiles_n) {
    constexpr int kBand = 8;
    const int band = index / (kBand * tiles_n);
    const int height = min(kBand, tiles_m - band * kBand);
    const int inside = index - band * kBand * tiles_n;
    return make_int2(band * kBand + inside % height, inside / height);
}

/// kM64: rows of a consumer, in units of 64; kN: columns of a tile. 8-bit operands need kM64 = 2 and kN = 128: then the
/// sums of a slice fit beside the accumulators, and the tile of a consumer is one block with one int8 scale.
///
/// kStages: the producer loads the residual into the ring behind a tile's last slice, one stage for each piece of the
/// results of both consumers, while they still multiply. This hides the loads if the inner size is small; if it is
/// large, occupying the ring costs more than it gains.
template <Element kElement, Output kOutput, Activation kActivation, bool kAdd, bool kStages, int kM64, int kN,
          int kCluster>
__global__ void __launch_bounds__(kGemmThreads, 1)
    linear_sm90(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                const __grid_constant__ TensorMap out_map,
                const __grid_constant__ TensorMap residual_map, const LinearArguments args) {
    constexpr int kM = 64 * kM64 * kConsumers;
    constexpr int kSliceElements = kElement == Element::bf16 ? 64 : 128;
    using S = Stage<kM, kN, 128, kRingBytes>;
    using P = Pipeline<S::kCount, kCluster>;
    // Two tall tiles of a cluster lie side by side, two wide ones above each other.
    constexpr bool kShareX = kCluster == 2 && kM > kN;
    constexpr bool kShareW = kCluster == 2 && !kShareX;
    constexpr int kClusterM = kShareW ? 2 * kM : kM;
    constexpr int kClusterN = kShareX ? 2 * kN : kN;
    static_assert(kElement == Element::bf16 || (kM64 == 2 && kN == 128));
    static_assert(kOutput != Output::i8 || kElement == Element::i8);

    constexpr int kSize = kOutput == Output::f32 ? 4 : kOutput == Output::bf16 ? 2 : 1;
    // The result is stored in pieces of 64 rows, through a consumer's staging memory.
    constexpr int kPanel = 128 / kSize;  // columns in 128 bytes
    constexpr int kFit = kOutput == Output::i8 ? 128 : int(kStagingBytes) / 64 / kSize;
    constexpr int kPiece = kN < kFit ? kN : kFit;
    constexpr int kPanels = (kPiece + kPanel - 1) / kPanel;
    constexpr u32 kPieceBytes = kPanels * 8192;
    constexpr bool kStaged = kAdd && kStages && kConsumers * kPieceBytes <= S::kBytes;

    extern __shared__ u8 shared[];
    const u32 ring_base = (shared_address(shared) + 1023) & ~1023u;
    const u32 staging_base = ring_base + kRingBytes;
    const P pipeline{staging_base + kConsumers * kStagingBytes};
    float* const words = reinterpret_cast<float*>(
        shared + (pipeline.barriers + 256 - shared_address(shared)));

    const int warp = uniform_warp_id();
    const int lane = lane_id();
    const int rank = kCluster == 1 ? 0 : int(cluster_rank());
    if (threadIdx.x == 0) {
        tma_prefetch(x_map);
        tma_prefetch(w_map);
        tma_prefetch(out_map);
        if (kStaged) tma_prefetch(residual_map);
        pipeline.init();
    }
    sync_blocks<kCluster>();

    const int slices = ceil_div(args.inputs, kSliceElements);
    const int tiles_m = ceil_div(args.rows, kClusterM);
    const int tiles_n = ceil_div(args.outputs, kClusterN);
    const int tiles = tiles_m * tiles_n;
    const int first = blockIdx.x / kCluster;
    const int step = gridDim.x / kCluster;
    Ring<S::kCount> ring;

    if (warp < 4) {
        setmaxnreg_dec<24>();
        if (warp == 0 && elect_one()) {
            for (int t = first; t < tiles; t += step) {
                const int2 position = tile_position(t, tiles_m, tiles_n);
                const int row = position.x * kClusterM + (kShareW ? rank * kM : 0);
                const int column = position.y * kClusterN + (kShareX ? rank * kN : 0);
                for (int i = 0; i < slices; i++) {
                    mbarrier_wait(pipeline.empty(ring.stage), ring.parity ^ 1);
                    const u32 full = pipeline.full(ring.stage);
                    const u32 stage = ring_base + ring.stage * S::kBytes;
                    const int k = i * kSliceElements;
                    mbarrier_arrive_expect_tx(full, S::kLoaded);
                    if constexpr (kShareX) {
                        constexpr int kHalf = kM / 2;
                        tma_load_2d_multicast(stage + S::kA + rank * kHalf * 128, x_map, full, k,
                                              row + rank * kHalf, 3);
                    } else {
                        tma_load_2d(stage + S::kA, x_map, full, k, row);
                    }
                    if constexpr (kShareW) {
                        constexpr int kHalf = kN / 2;
                        tma_load_2d_multicast(stage + S::kB + rank * kHalf * 128, w_map, full, k,
                                              column + rank * kHalf, 3);
                    } else {
                        tma_load_2d(stage + S::kB, w_map, full, k, column);
                    }
                    ring.advance();
                }
                if constexpr (kStaged) {
                    for (int piece = 0; piece < kM64 * kN / kPiece; piece++) {
                        mbarrier_wait(pipeline.empty(ring.stage), ring.parity ^ 1);
                        const u32 full = pipeline.full(ring.stage);
                        const u32 stage = ring_base + ring.stage * S::kBytes;
                        mbarrier_arrive_expect_tx(full, kConsumers * kPieceBytes);
                        for (int p = 0; p < kConsumers * kPanels; p++) {
                            const int m = piece / (kN / kPiece), c = piece % (kN / kPiece);
                            tma_load_2d(stage + p * 8192, residual_map, full,
                                        column + c * kPiece + p % kPanels * kPanel,
                                        row + 64 * (p / kPanels * kM64 + m));
                        }
                        ring.advance();
                    }
                }
            }
        }
    } else {
        setmaxnreg_inc<240>();
        const int group = warp / 4 - 1;
        const bool leader = threadIdx.x % kGroupThreads == 0;
        const u32 staging = staging_base + group * kStagingBytes;
        // This thread's place in 64 rows and 8 columns of accumulators.
        int thread_row = 16 * (warp % 4) + lane / 4;
        int thread_column = 2 * (lane % 4);
        for (int t = first; t < tiles; t += step) {
            const int2 position = tile_position(t, tiles_m, tiles_n);
            const int row0 = position.x * kClusterM + (kShareW ? rank * kM : 0) + group * 64 * kM64;
            const int column0 = position.y * kClusterN + (kShareX ? rank * kN : 0);
            float acc[kM64][kN / 2];
            if constexpr (kElement == Element::bf16) {
                multiply<S, P, kM64, kN, 128>(acc, ring_base, pipeline, ring, slices,
                                              group * 64 * kM64, lane);
            } else {
                // Tiles outside of the matrix are computed from zeros, but their scales must be readable.
                const int block_row = min(row0, args.rows - 1) / 128;
                const int block_column = min(column0, args.outputs - 1) / 128;
                multiply_slices<kElement, S, P, kM64, kN>(
                    acc, ring_base, pipeline, ring, slices, group * 64 * kM64, lane,
                    args.x_scales + i64(block_row) * slices,
                    args.w_scales + i64(block_column) * slices);
            }
            if (row0 >= args.rows || column0 >= args.outputs) {
                if constexpr (kStaged) {
                    for (int piece = 0; piece < kM64 * kN / kPiece; piece++) {
                        mbarrier_wait(pipeline.full(ring.stage), ring.parity);
                        pipeline.release(ring.stage, lane);
                        ring.advance();
                    }
                }
                continue;
            }
            // Keeps the compiler from computing all addresses below only once and spilling them.
            asm volatile("" : "+r"(thread_row), "+r"(thread_column));

            // thread_column * kSize is below 16, except for f32, where it can reach the next 16 bytes.
            const u32 staging_row = staging + thread_row * 128 + thread_column * kSize % 16;
            const u32 swizzle = thread_row % 8 * 16 ^ thread_column * kSize / 16 * 16;
            // The loads of 32 columns are in flight together.
            constexpr int kBatch = 4;
            float largest = 0.0f;
#pragma unroll
            for (int m = 0; m < kM64; m++) {
                const int row = row0 + 64 * m + thread_row;
                const Place<kElement, kOutput, kAdd> place(args, row, column0 + thread_column);
                if constexpr (kElement == Element::e4m3) {
                    const RowScales scales(args, row);
#pragma unroll
                    for (int j = 0; j < kN / 8; j++) {
                        float* const a = acc[m] + 4 * j;
                        scales.apply(args, column0 + 8 * j + thread_column, a[0], a[1], a[2], a[3]);
                    }
                }
#pragma unroll
                for (int c = 0; c < kN / kPiece; c++) {
                    if constexpr (kOutput != Output::i8) {
                        if (leader) bulk_wait_read<0>();
                        bar_sync(1 + group, kGroupThreads);
                    }
                    // The distance from the staging memory to the residual, which has the same layout.
                    u32 to_residual = 0;
                    if constexpr (kStaged) {
                        mbarrier_wait(pipeline.full(ring.stage), ring.parity);
                        to_residual = ring_base + ring.stage * S::kBytes + group * kPieceBytes - staging;
                    }
#pragma unroll
                    for (int first_j = 0; first_j < kPiece / 8; first_j += kBatch) {
                        Columns<kElement, kOutput, kAdd> columns[kBatch];
#pragma unroll
                        for (int j = 0; j < kBatch; j++) {
                            columns[j].template load<!kStaged>(place, c * kPiece + 8 * (first_j + j));
                        }
#pragma unroll
                        for (int j = 0; j < kBatch; j++) {
                            // Address with 128-byte swizzle; rows at a distance of 8 have the same pattern.
                            const int byte = 8 * (first_j + j) % kPanel * kSize;
                            const u32 address = staging_row + 8 * (first_j + j) / kPanel * 8192 +
                                                ((byte & 0x70) ^ swizzle) + (byte & 0xf);
                            if constexpr (kStaged) columns[j].load_residual(address + to_residual);
#pragma unroll
                            for (int h = 0; h < 2; h++) {
                                const int at = 4 * (c * kPiece / 8 + first_j + j) + 2 * h;
                                const float2 v =
                                    columns[j].template finish<kActivation>(
                                        make_float2(acc[m][at], acc[m][at + 1]), h);
                                if constexpr (kOutput == Output::bf16) {
                                    st_shared(address + 1024 * h, pack_bf16(v.x, v.y));
                                } else if constexpr (kOutput == Output::f32) {
                                    st_shared(address + 1024 * h, v);
                                } else {
                                    acc[m][at] = v.x;
                                    acc[m][at + 1] = v.y;
                                    if (row + 8 * h < args.rows) {
                                        largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
                                    }
                                }
                            }
                        }
                    }
                    if constexpr (kStaged) {
                        __syncwarp();
                        pipeline.release(ring.stage, lane);
                        ring.advance();
                    }
                    if constexpr (kOutput != Output::i8) {
                        fence_proxy_async();
                        bar_sync(1 + group, kGroupThreads);
                        if (leader) {
#pragma unroll
                            for (int p = 0; p < kPanels; p++) {
                                tma_store_2d(out_map, staging + p * 8192,
                                             column0 + c * kPiece + p * kPanel, row0 + 64 * m);
                            }
                            bulk_commit();
                        }
                    }
                }
            }
            if constexpr (kOutput == Output::i8) {
                // First the scale of this warpgroup's 128x128 values, then the codes.
                largest = warp_max(largest);
                if (lane == 0) words[4 * group + warp % 4] = largest;
                if (leader) bulk_wait_read<0>();
                bar_sync(1 + group, kGroupThreads);
                largest = fmaxf(fmaxf(words[4 * group], words[4 * group + 1]),
                                fmaxf(words[4 * group + 2], words[4 * group + 3]));
                largest = fmaxf(largest, kLeastMaximum);
                const float factor = 128.0f / largest;
                if (leader) {
                    args.out_scales[i64(row0 / 128) * (args.outputs / 128) + column0 / 128] =
                        largest / 128.0f;
                }
#pragma unroll
                for (int m = 0; m < kM64; m++) {
#pragma unroll
                    for (int at = 0; at < kN / 2; at += 2) {
                        const int row = 64 * m + thread_row + 4 * (at & 2);
                        const u32 byte = row * 128 + 2 * (at & ~3) + thread_column;
                        const u32 codes = __byte_perm(saturate_i8(acc[m][at] * factor),
                                                      saturate_i8(acc[m][at + 1] * factor), 0x0040);
                        st_shared_u16(staging + swizzle_128b(byte), u16(codes));
                    }
                }
                fence_proxy_async();
                bar_sync(1 + group, kGroupThreads);
                if (leader) {
                    tma_store_2d(out_map, staging, column0, row0);
                    tma_store_2d(out_map, staging + 8192, column0, row0 + 64);
                    bulk_commit();
                }
            }
        }
        if (leader) bulk_wait<0>();
    }
    __syncwarp();
    // The shared memory of a block must outlive the copies and arrivals of its neighbour.
    if constexpr (kCluster > 1) cluster_sync();
}

#endif
