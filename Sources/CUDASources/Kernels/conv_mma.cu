// Convolutions of bf16 frames as matrix products on mma.sync: a tile has 128 output pixels as rows, and K runs over the
// taps of the kernel and, within a tap, over slices of 32 channels. The number of channels is a multiple of 8.
//
// Two blocks share a multiprocessor: one multiplies while the other waits at its barrier.
#include "conv.cuh"
#include "tile.cuh"

constexpr int kPixels = 128;
constexpr int kThreads = 256;
constexpr int kSlice = 32;
/// Three stages fit twice into the shared memory of the smallest card.
constexpr int kStages = 3;

/// What a thread copies of both operands, slice by slice: eight channels of two pixels and of every 64th output. The
/// address of a pixel is computed once per tap.
template <int kOutputs>
struct TapWalk {
    static constexpr int kCopies = ceil_div(kOutputs, 64);
    const ConvolutionArguments& a;
    const int chunk = threadIdx.x % 4, line = threadIdx.x / 4;
    const int slices = ceil_div(a.inputs, kSlice);
    const i64 weight_row = i64(a.kernel_time * a.kernel_height * a.kernel_width) * a.inputs;
    /// Input coordinates of the kernel's first tap, for both pixels.
    int time[2], top[2], left[2];
    /// The tap and the channel that this thread copies next.
    int kt = 0, kh = 0, kw = 0, channel = chunk * 8;
    /// Addresses of the frames and pixels under that tap; null for zeros.
    const bf16* frame[2];
    const bf16* source[2];
    const bf16* weight;
    bool used[kCopies];

    DEVICE TapWalk(const ConvolutionArguments& a, int first_pixel, int first_output) : a(a) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int pixel = first_pixel + line + 64 * i;
            const bool inside = pixel < a.out_frames * a.out_height * a.out_width;
            left[i] = pixel % a.out_width * a.spatial_stride - a.pad_left;
            pixel /= a.out_width;
            top[i] = pixel % a.out_height * a.spatial_stride - a.pad_top;
            // A pixel past the end reads frames before the first, which are zeros.
            time[i] = inside ? pixel / a.out_height * a.time_stride : -a.kernel_time;
        }
        weight = static_cast<const bf16*>(a.w) + (first_output + line) * weight_row + channel;
#pragma unroll
        for (int i = 0; i < kCopies; i++) {
            used[i] = line + 64 * i < kOutputs && first_output + line + 64 * i < a.outputs;
        }
        find_frames();
        find_pixels();
    }

    DEVICE void find_frames() {
#pragma unroll
        for (int i = 0; i < 2; i++) frame[i] = source_frame<bf16>(a, time[i] + kt);
    }

    DEVICE void find_pixels() {
        const int shift = a.upsample;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int h = top[i] + kh, w = left[i] + kw;
            const bool inside = frame[i] != nullptr && u32(h) < u32(a.height << shift) &&
                                u32(w) < u32(a.width << shift);
            source[i] = inside ? frame[i] + (i64(h >> shift) * a.width + (w >> shift)) * a.inputs
                               : nullptr;
        }
    }

    /// Starts copying the next slice: pixels to `stage`, and the weights of the outputs after them. Rows have 64 bytes.
    DEVICE void load(u32 stage) {
        const u32 to = stage + swizzle_64b(line * 64 + chunk * 16);
        const bool some = channel < a.inputs;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const bool inside = some && source[i] != nullptr;
            cp_async_16(to + i * 64 * 64, inside ? source[i] + channel : a.x, inside);
        }
#pragma unroll
        for (int i = 0; i < kCopies; i++) {
            if (kOutputs % 64 != 0 && line + 64 * i >= kOutputs) continue;
            const bool valid = some && used[i];
            cp_async_16(to + (kPixels + i * 64) * 64, valid ? weight + 64 * i * weight_row : a.w,
                        valid);
        }
        advance();
    }

    DEVICE void advance() {
        channel += kSlice;
        if (channel < slices * kSlice) {
            weight += kSlice;
            return;
        }
        weight += a.inputs - (slices - 1) * kSlice;
        channel = chunk * 8;
        if (++kw == a.kernel_width) {
            kw = 0;
            if (++kh == a.kernel_height) {
                kh = 0;
                kt++;
                find_frames();
            }
        }
        find_pixels();
    }
};

/// Adds bias and residual to two rows and two columns of accumulators, and stores them. kPairs: `outputs` is even.
template <bool kPairs>
DEVICE void store(const ConvolutionArguments& a, const float (&acc)[4], int row, int column, int pixels) {
    const bf16* residual = static_cast<const bf16*>(a.residual);
    bf16* out = static_cast<bf16*>(a.out);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const i64 at = i64(row + 8 * h) * a.outputs + column;
        if (row + 8 * h >= pixels) continue;
        if constexpr (kPairs) {
            if (column >= a.outputs) continue;
            float x = acc[2 * h], y = acc[2 * h + 1];
            if (a.bias) x += __ldg(a.bias + column), y += __ldg(a.bias + column + 1);
            if (residual) {
                const float2 r = unpack_bf16(*reinterpret_cast<const u32*>(residual + at));
                x = r.x + round_bf16(x);
                y = r.y + round_bf16(y);
            }
            *reinterpret_cast<u32*>(out + at) = pack_bf16(x, y);
        } else {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                if (column + n >= a.outputs) continue;
                float x = acc[2 * h + n] + (a.bias ? __ldg(a.bias + column + n) : 0.0f);
                if (residual) x = float(residual[at + n]) + round_bf16(x);
                out[at + n] = bf16(x);
            }
        }
    }
}

/// Grid: tiles; those with the same pixels follow each other. kRows of the eight warps lie along the pixels of a tile,
/// the others along its kOutputs outputs. The narrowest tile also supports odd numbers of outputs.
template <int kOutputs, int kRows>
__global__ void __launch_bounds__(kThreads, 2) conv_mma(const ConvolutionArguments a) {
    constexpr int kColumns = kThreads / 32 / kRows;
    // The share of a warp, in tiles of 16 pixels and of 8 outputs.
    constexpr int kHigh = kPixels / kRows / 16, kWide = kOutputs / kColumns / 8;
    static_assert(kWide % 2 == 0);
    constexpr u32 kStageBytes = (kPixels + kOutputs) * kSlice * 2;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const int pixels = a.out_frames * a.out_height * a.out_width;
    const int tiles = ceil_div(a.outputs, kOutputs);
    const int row0 = blockIdx.x / tiles * kPixels, column0 = blockIdx.x % tiles * kOutputs;
    TapWalk<kOutputs> walk(a, row0, column0);
    const int slices = a.kernel_time * a.kernel_height * a.kernel_width * walk.slices;

    const int lane = lane_id();
    const int warp_row = warp_id() / kColumns * (kPixels / kRows);
    const int warp_column = warp_id() % kColumns * (kOutputs / kColumns);
    u32 x_at[2], w_at[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        x_at[k] = swizzle_64b((warp_row + lane % 16) * 64 + lane / 16 * 16 + 32 * k);
        w_at[k] = kPixels * 64 + swizzle_64b((warp_column + lane % 8 + lane / 16 * 8) * 64 +
                                             lane / 8 % 2 * 16 + 32 * k);
    }
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
        if (s < slices) walk.load(base + s * kStageBytes);
        cp_async_commit();
    }
    float acc[kHigh][kWide][4] = {};
    u32 stage = base, ahead = base + (kStages - 1) * kStageBytes;
    auto next = [&](u32 at) {
        return at == base + (kStages - 1) * kStageBytes ? base : at + kStageBytes;
    };
#pragma unroll 1
    for (int s = 0; s < slices; s++) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // slice s has arrived, and all threads are done with slice s - 1
        if (s + kStages - 1 < slices) walk.load(ahead);
        cp_async_commit();
#pragma unroll
        for (int k = 0; k < 2; k++) {
            u32 x[kHigh][4], w[kWide / 2][4];
#pragma unroll
            for (int i = 0; i < kHigh; i++) ldmatrix_x4(x[i], stage + x_at[k] + i * 16 * 64);
#pragma unroll
            for (int j = 0; j < kWide / 2; j++) ldmatrix_x4(w[j], stage + w_at[k] + j * 16 * 64);
#pragma unroll
            for (int i = 0; i < kHigh; i++) {
#pragma unroll
                for (int j = 0; j < kWide; j++) {
                    mma_m16n8k16_bf16(acc[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
        stage = next(stage);
        ahead = next(ahead);
    }
#pragma unroll
    for (int j = 0; j < kWide; j++) {
#pragma unroll
        for (int i = 0; i < kHigh; i++) {
            store<(kOutputs > 16)>(a, acc[i][j], row0 + warp_row + 16 * i + lane / 4,
                                   column0 + warp_column + 8 * j + 2 * (lane % 4), pixels);
        }
    }
}
