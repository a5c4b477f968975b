// Convolutions of bf16 frames on Hopper, as matrix products whose A tile is a rectangle of pixels of one frame. For
// each tap of the kernel the copy engine fetches the rectangle, shifted by that tap; pixels outside of the frame arrive
// as zeros, which is the padding.
#include "conv_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Pixels of a tile: 128 for each of two consumers.
constexpr int kPixels = 256;
/// Staging memory of each consumer: 64 pixels of 64 channels.
constexpr u32 kPieceBytes = 8 * 1024;
constexpr u32 kConvRingBytes = 204 * 1024;
constexpr u32 kConvSharedBytes = 1024 + kConvRingBytes + kConsumers * kPieceBytes + kTailBytes;
static_assert(kConvSharedBytes <= 227 * 1024);

/// Boxes of x and history: 64 (tail: 32) channels of a tile's pixels; of w: 64 (tail: 32) channels of one tap and kN
/// outputs; of out: 64 channels of 64 pixels.
struct ConvolutionMaps {
    TensorMap x, x_tail, history, history_tail, w, w_tail;
    /// With `upsample`, one for each parity (row, column) of output pixels; otherwise only the first is used.
    TensorMap out[4];
};

/// A tile is 2^width_log2 pixels wide. With `upsample` it has the pixels of one parity.
struct ConvolutionTiles {
    int width_log2;
    /// Numbers of tiles along each direction, and of parities.
    int across, down, outputs, parities;
};

/// The position of a tile.
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
        column = index % tiles.across << tiles.width_log2;
        line = index / tiles.across * (kPixels >> tiles.width_log2);
    }
};

/// The first tap in time that does not read leading zeros; if all taps do, the last one, which reads zeros.
DEVICE int first_tap(const ConvolutionArguments& a, int frame) {
    return min(max(a.leading_zeros - frame * a.time_stride, 0), a.kernel_time - 1);
}

/// kN: outputs of a tile; kSlice: bytes of a slice, 192 for channels in multiples of 96, otherwise 128.
template <int kN, int kSlice>
__global__ void __launch_bounds__(kGemmThreads, 1)
    conv_sm90(const __grid_constant__ ConvolutionMaps maps, const ConvolutionArguments a,
              const ConvolutionTiles tiles) {
    using S = Stage<kPixels, kN, kSlice, kConvRingBytes>;
    using P = Pipeline<S::kCount, 1>;
    constexpr int kChannels = kSlice / 2;
    extern __shared__ u8 shared[];
    const u32 ring_base = (shared_address(shared) + 1023) & ~1023u;
    const u32 staging_base = ring_base + kConvRingBytes;
    const P pipeline{staging_base + kConsumers * kPieceBytes};
    const int warp = uniform_warp_id();
    const int lane = lane_id();
    if (threadIdx.x == 0) pipeline.init();
    __syncthreads();

    const int plane = a.kernel_height * a.kernel_width;
    const int channel_slices = ceil_div(a.inputs, kChannels);
    const int count =
        tiles.across * tiles.down * tiles.outputs * tiles.parities * a.out_frames;
    Ring<S::kCount> ring;

    if (warp < 4) {
        setmaxnreg_dec<24>();
        if (warp == 0 && elect_one()) {
            for (int t = blockIdx.x; t < count; t += gridDim.x) {
                const TilePosition tile(t, tiles, a.out_frames, kN);
                for (int kt = first_tap(a, tile.frame); kt < a.kernel_time; kt++) {
                    const int time = tile.frame * a.time_stride + kt - a.leading_zeros;
                    const bool past = time >= 0 && time < a.history_frames;
                    const TensorMap& x = past ? maps.history : maps.x;
                    const TensorMap& x_tail = past ? maps.history_tail : maps.x_tail;
                    const int frame = past ? time : time - a.history_frames;
                    for (int tap = 0; tap < plane; tap++) {
                        int h = tap / a.kernel_width - a.pad_top;
                        int w = tap % a.kernel_width - a.pad_left;
                        if (a.upsample) {
                            // The source pixel of coordinate 2 i + parity + h of the doubled frame is half of that,
                            // rounded down.
                            h = tile.line + ((tile.parity / 2 + h) >> 1);
                            w = tile.column + ((tile.parity % 2 + w) >> 1);
                        } else {
                            h += tile.line * a.spatial_stride;
                            w += tile.column * a.spatial_stride;
                        }
                        for (int i = 0; i < channel_slices; i++) {
                            mbarrier_wait(pipeline.empty(ring.stage), ring.parity ^ 1);
                            const u32 full = pipeline.full(ring.stage);
                            const u32 stage = ring_base + ring.stage * S::kBytes;
                            const int c = i * kChannels;
                            mbarrier_arrive_expect_tx(full, S::kLoaded);
                            tma_load_4d(stage + S::kA, x, full, c, w, h, frame);
                            tma_load_3d(stage + S::kB, maps.w, full, c, kt * plane + tap,
                                        tile.output);
                            if constexpr (kSlice == 192) {
                                tma_load_4d(stage + S::kTailA, x_tail, full, c + 64, w, h, frame);
                                tma_load_3d(stage + S::kTailB, maps.w_tail, full, c + 64,
                                            kt * plane + tap, tile.output);
                            }
                            ring.advance();
                        }
                    }
                }
            }
        }
    } else {
        setmaxnreg_inc<240>();
        const int group = warp / 4 - 1;
        const bool leader = threadIdx.x % kGroupThreads == 0;
        const u32 staging = staging_base + group * kPieceBytes;
        int thread_row = 16 * (warp % 4) + lane / 4;
        int thread_column = 2 * (lane % 4);
        const int scale = a.upsample ? 2 : 1;
        for (int t = blockIdx.x; t < count; t += gridDim.x) {
            const TilePosition tile(t, tiles, a.out_frames, kN);
            const int slices =
                (a.kernel_time - first_tap(a, tile.frame)) * plane * channel_slices;
            float acc[2][kN / 2];
            multiply<S, P, 2, kN, kSlice>(acc, ring_base, pipeline, ring, slices, group * 128, lane);
            // Keeps the compiler from computing all addresses below only once and spilling them.
            asm volatile("" : "+r"(thread_row), "+r"(thread_column));
            const u32 swizzle = thread_row % 8 * 16;
            const u32 staging_row = staging + thread_row * 128 + thread_column * 2;
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const int first_row = group * 128 + 64 * m;
                PixelPair pixels;
                pixels.channel = thread_column;
                pixels.columns = a.outputs - tile.output - thread_column;
                pixels.staging_row = staging_row;
                pixels.swizzle = swizzle;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int row = first_row + thread_row + 8 * h;
                    const int line = (tile.line + (row >> tiles.width_log2)) * scale +
                                     tile.parity / 2;
                    const int column =
                        (tile.column + (row & ((1 << tiles.width_log2) - 1))) * scale +
                        tile.parity % 2;
                    pixels.inside[h] = line < a.out_height && column < a.out_width;
                    pixels.at[h] =
                        ((i64(tile.frame) * a.out_height + line) * a.out_width + column) *
                            a.outputs +
                        tile.output + thread_column;
                }
                write_piece<kN, kGroupThreads>(
                    acc[m], a, tile.output, pixels, 1 + group, leader, [&](int panel) {
                        tma_store_4d(maps.out[tile.parity], staging, tile.output + 64 * panel,
                                     tile.column, tile.line + (first_row >> tiles.width_log2),
                                     tile.frame);
                    });
            }
        }
        if (leader) bulk_wait<0>();
    }
}

#endif
