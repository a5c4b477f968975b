// Convolutions of bf16 frames on Hopper, with tiles of 16x16 output pixels of one frame. The copy engine fetches once
// the input rectangle that all taps of one plane of the kernel read; wgmma then reads it in place, shifted by each tap,
// while the weights of the taps are streamed. Pixels outside of the frame arrive as zeros, which is the padding.
#include "conv_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kSide = 16;
/// Pixels of the largest rectangle: a tile with the halo of a 3x3 kernel.
constexpr int kRectangle = (kSide + 2) * (kSide + 2);
/// Staging memory of each consumer: 64 pixels of 64 channels.
constexpr u32 kPieceBytes = 8 * 1024;
constexpr u32 kConvSharedBytes = 227 * 1024;

/// Boxes of x and history: 64 (tail: 32) channels of a rectangle; of w: 64 (tail: 32) channels of one tap and kN
/// outputs; of out: 64 channels of 8x8 pixels.
struct ConvolutionMaps {
    TensorMap x, x_tail, history, history_tail, w, w_tail;
    /// With `upsample`, one for each parity (row, column) of output pixels; otherwise only the first is used.
    TensorMap out[4];
};

struct ConvolutionTiles {
    /// Numbers of tiles along each direction, and of parities.
    int across, down, outputs, parities;
    /// Width and height of the rectangle of pixels.
    int width, height;
    /// Whether one rectangle serves all taps of a plane; with a spatial stride each tap has its own.
    int shared;
};

/// The position of a tile. With `upsample` it has the pixels of one parity.
struct TilePosition {
    int column, line, frame, output, parity;

    DEVICE TilePosition(int index, const ConvolutionTiles& tiles, int frames, int kN) {
        // Tiles that read the same pixels follow each other: first those of other outputs, then of other frames.
        output = index % tiles.outputs * kN;
        index /= tiles.outputs;
        parity = index % tiles.parities;
        index /= tiles.parities;
        frame = index % frames;
        index /= frames;
        column = index % tiles.across * kSide;
        line = index / tiles.across * kSide;
    }
};

/// The first tap in time that does not read leading zeros; if all taps do, the last one, which reads zeros.
DEVICE int first_tap(const ConvolutionArguments& a, int frame) {
    return min(max(a.leading_zeros - frame * a.time_stride, 0), a.kernel_time - 1);
}

/// The source coordinate of a tap along one axis, relative to the tile's first pixel. For doubled frames it is half of
/// the coordinate 2 i + parity + tap - pad, rounded down.
DEVICE int tap_shift(const ConvolutionArguments& a, int parity, int tap, int pad) {
    return a.upsample ? (parity + tap - pad) >> 1 : tap - pad;
}

/// Shared memory: two rectangles, the weights of as many taps as fit, staging memory, barriers.
template <int kN, int kSlice>
struct Layout {
    static constexpr u32 kTailA = (kRectangle * 128 + 1023) / 1024 * 1024;
    static constexpr u32 kA =
        kSlice == 128 ? kTailA : kTailA + (kRectangle * 64 + 1023) / 1024 * 1024;
    static constexpr u32 kTailB = kN * 128;
    static constexpr u32 kB = (kN * kSlice + 1023) / 1024 * 1024;
    static constexpr int kCountA = 2;
    static constexpr u32 kFit =
        (kConvSharedBytes - 1024 - kTailBytes - kConsumers * kPieceBytes - kCountA * kA) / kB;
    static constexpr int kCountB = kFit < 8 ? kFit : 8;
    static constexpr u32 kBaseB = kCountA * kA;
    static constexpr u32 kStaging = kBaseB + kCountB * kB;
    static constexpr u32 kBarriers = kStaging + kConsumers * kPieceBytes;
};

/// kN: outputs of a tile; kSlice: bytes of a slice, 192 for channels in multiples of 96, otherwise 128.
template <int kN, int kSlice>
__global__ void __launch_bounds__(kGemmThreads, 1)
    conv_taps_sm90(const __grid_constant__ ConvolutionMaps maps, const ConvolutionArguments a,
                   const ConvolutionTiles tiles) {
    using L = Layout<kN, kSlice>;
    constexpr int kChannels = kSlice / 2;
    extern __shared__ u8 shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const Pipeline<L::kCountA, 1> pipeline_a{base + L::kBarriers};
    const Pipeline<L::kCountB, 1> pipeline_b{base + L::kBarriers + 64};
    const int warp = uniform_warp_id();
    const int lane = lane_id();
    if (threadIdx.x == 0) {
        pipeline_a.init();
        pipeline_b.init();
    }
    __syncthreads();

    const int plane = a.kernel_height * a.kernel_width;
    const int taps = tiles.shared ? plane : 1;
    const int channel_slices = ceil_div(a.inputs, kChannels);
    const int count =
        tiles.across * tiles.down * tiles.outputs * tiles.parities * a.out_frames;
    Ring<L::kCountA> ring_a;
    Ring<L::kCountB> ring_b;

    if (warp < 4) {
        setmaxnreg_dec<24>();
        if (warp == 0 && elect_one()) {
            const u32 rectangle_bytes = tiles.width * tiles.height * kSlice;
            for (int t = blockIdx.x; t < count; t += gridDim.x) {
                const TilePosition tile(t, tiles, a.out_frames, kN);
                const int first = first_tap(a, tile.frame) * plane;
                for (int tap = first; tap < a.kernel_time * plane; tap += taps) {
                    const int kt = tap / plane, kh = tap % plane / a.kernel_width;
                    const int time = tile.frame * a.time_stride + kt - a.leading_zeros;
                    const bool past = time >= 0 && time < a.history_frames;
                    const TensorMap& x = past ? maps.history : maps.x;
                    const TensorMap& x_tail = past ? maps.history_tail : maps.x_tail;
                    const int frame = past ? time : time - a.history_frames;
                    const int h = tile.line * a.spatial_stride +
                                  tap_shift(a, tile.parity / 2, kh, a.pad_top);
                    const int w =
                        tile.column * a.spatial_stride +
                        tap_shift(a, tile.parity % 2, tap % a.kernel_width, a.pad_left);
                    for (int c = 0; c < a.inputs; c += kChannels) {
                        mbarrier_wait(pipeline_a.empty(ring_a.stage), ring_a.parity ^ 1);
                        u32 full = pipeline_a.full(ring_a.stage);
                        u32 stage = base + ring_a.stage * L::kA;
                        mbarrier_arrive_expect_tx(full, rectangle_bytes);
                        tma_load_4d(stage, x, full, c, w, h, frame);
                        if constexpr (kSlice == 192) {
                            tma_load_4d(stage + L::kTailA, x_tail, full, c + 64, w, h, frame);
                        }
                        ring_a.advance();
                        for (int i = 0; i < taps; i++) {
                            mbarrier_wait(pipeline_b.empty(ring_b.stage), ring_b.parity ^ 1);
                            full = pipeline_b.full(ring_b.stage);
                            stage = base + L::kBaseB + ring_b.stage * L::kB;
                            mbarrier_arrive_expect_tx(full, kN * kSlice);
                            tma_load_3d(stage, maps.w, full, c, tap + i, tile.output);
                            if constexpr (kSlice == 192) {
                                tma_load_3d(stage + L::kTailB, maps.w_tail, full, c + 64, tap + i,
                                            tile.output);
                            }
                            ring_b.advance();
                        }
                    }
                }
            }
        }
    } else {
        setmaxnreg_inc<240>();
        const int group = warp / 4 - 1;
        const bool leader = threadIdx.x % kGroupThreads == 0;
        const u32 staging = base + L::kStaging + group * kPieceBytes;
        // A consumer has 8 lines: two squares of 8x8 pixels side by side. In each square this thread has two pixels,
        // one below the other.
        int thread_line = 2 * (warp % 4);
        int thread_column = lane / 4;
        const int scale = a.upsample ? 2 : 1;
        for (int t = blockIdx.x; t < count; t += gridDim.x) {
            const TilePosition tile(t, tiles, a.out_frames, kN);
            const int rectangles = (a.kernel_time - first_tap(a, tile.frame)) *
                                   (tiles.shared ? 1 : plane) * channel_slices;
            const int top = tap_shift(a, tile.parity / 2, 0, a.pad_top);
            const int left = tap_shift(a, tile.parity % 2, 0, a.pad_left);
            float acc[2][kN / 2];
            bool started = false;
            int read_a = -1, read_b = 0;
            for (int r = 0; r < rectangles; r++) {
                mbarrier_wait(pipeline_a.full(ring_a.stage), ring_a.parity);
                const u32 rectangle = base + ring_a.stage * L::kA;
                int kh = 0, kw = 0;
                for (int i = 0; i < taps; i++) {
                    // The index in the rectangle of the first pixel that this consumer reads for the tap.
                    const int pixel =
                        (8 * group + tap_shift(a, tile.parity / 2, kh, a.pad_top) - top) *
                            tiles.width +
                        tap_shift(a, tile.parity % 2, kw, a.pad_left) - left;
                    if (++kw == a.kernel_width) {
                        kw = 0;
                        kh++;
                    }
                    mbarrier_wait(pipeline_b.full(ring_b.stage), ring_b.parity);
                    const u32 weights = base + L::kBaseB + ring_b.stage * L::kB;
                    // Eight pixels of a line are 1024 bytes; the next line is tiles.width pixels further.
                    const u64 da = wgmma_descriptor(rectangle + pixel * 128, 16, tiles.width * 128,
                                                    Swizzle::bytes128);
                    const u64 db = wgmma_descriptor_128b(weights);
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < 4; k++) {
#pragma unroll
                        for (int m = 0; m < 2; m++) {
                            wgmma_bf16<kN>(acc[m], da + 64 * m + 2 * k, db + 2 * k,
                                           started || k > 0);
                        }
                    }
                    if constexpr (kSlice == 192) {
                        const u64 ta =
                            wgmma_descriptor(rectangle + L::kTailA + pixel * 64, 16,
                                             tiles.width * 64, Swizzle::bytes64);
                        const u64 tb = wgmma_descriptor_64b(weights + L::kTailB);
#pragma unroll
                        for (int k = 0; k < 2; k++) {
#pragma unroll
                            for (int m = 0; m < 2; m++) {
                                wgmma_bf16<kN>(acc[m], ta + 32 * m + 2 * k, tb + 2 * k, true);
                            }
                        }
                    }
                    wgmma_commit();
                    // One tap stays in flight while the next one's weights are waited for.
                    if (started) {
                        wgmma_wait<1>();
                        pipeline_b.release(read_b, lane);
                        if (read_a >= 0) pipeline_a.release(read_a, lane);
                        read_a = -1;
                    }
                    started = true;
                    read_b = ring_b.stage;
                    ring_b.advance();
                }
                read_a = ring_a.stage;
                ring_a.advance();
            }
            wgmma_wait<0>();
            wgmma_hold(acc[0]);
            wgmma_hold(acc[1]);
            pipeline_b.release(read_b, lane);
            pipeline_a.release(read_a, lane);

            // Keeps the compiler from computing all addresses below only once and spilling them.
            asm volatile("" : "+r"(thread_line), "+r"(thread_column));
            const u32 swizzle = thread_column * 16;
            const int channel = 2 * (lane % 4);
            const u32 staging_row =
                staging + (8 * thread_line + thread_column) * 128 + channel * 2;
#pragma unroll
            for (int m = 0; m < 2; m++) {
                PixelPair pixels;
                pixels.channel = channel;
                pixels.columns = a.outputs - tile.output - channel;
                pixels.staging_row = staging_row;
                pixels.swizzle = swizzle;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int line =
                        (tile.line + 8 * group + thread_line + h) * scale + tile.parity / 2;
                    const int column =
                        (tile.column + 8 * m + thread_column) * scale + tile.parity % 2;
                    pixels.inside[h] = line < a.out_height && column < a.out_width;
                    pixels.at[h] =
                        ((i64(tile.frame) * a.out_height + line) * a.out_width + column) *
                            a.outputs +
                        tile.output + channel;
                }
                write_piece<kN, kGroupThreads>(
                    acc[m], a, tile.output, pixels, 1 + group, leader, [&](int panel) {
                        tma_store_4d(maps.out[tile.parity], staging, tile.output + 64 * panel,
                                     tile.column + 8 * m, tile.line + 8 * group, tile.frame);
                    });
            }
        }
        if (leader) bulk_wait<0>();
    }
}

#endif
