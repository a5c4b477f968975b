// Convolutions of bf16 frames as matrix products by mma.sync: rows are output pixels, K walks over the
// kernel's taps and, within a tap, over slices of 64 channels. The channels are a multiple of 8.
#include "conv.cuh"
#include "gemm_mma.cuh"

/// Grid: (tiles of pixels, tiles of outputs). kPairs: the outputs are even, and are stored in pairs.
template <bool kPairs>
__global__ void __launch_bounds__(kMmaThreads, 1) conv_mma(const ConvolutionArguments a) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const int pixels = a.out_frames * a.out_height * a.out_width;
    const int row0 = blockIdx.x * kTile, column0 = blockIdx.y * kTile;
    const int channel_slices = ceil_div(a.inputs, 64);
    const int plane = a.kernel_height * a.kernel_width;
    const int slices = a.kernel_time * plane * channel_slices;
    const int scale = a.upsample ? 2 : 1;

    // A thread copies 16 bytes of each of four pixels and four outputs.
    constexpr int kCopies = kTile * 8 / kMmaThreads;
    const int chunk = threadIdx.x % 8;
    int time[kCopies], top[kCopies], left[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; i++) {
        int pixel = row0 + threadIdx.x / 8 + i * (kMmaThreads / 8);
        const bool inside = pixel < pixels;
        left[i] = pixel % a.out_width * a.spatial_stride - a.pad_left;
        pixel /= a.out_width;
        top[i] = pixel % a.out_height * a.spatial_stride - a.pad_top;
        // A pixel past the end reads a frame before the first: zeros.
        time[i] = inside ? pixel / a.out_height * a.time_stride : -a.kernel_time;
    }

    auto load = [&](int slice, u32 tile_a, u32 tile_b) {
        const int tap = slice / channel_slices;
        const int channel = slice % channel_slices * 64 + chunk * 8;
        const int kt = tap / plane, kh = tap % plane / a.kernel_width, kw = tap % a.kernel_width;
#pragma unroll
        for (int i = 0; i < kCopies; i++) {
            const int row = threadIdx.x / 8 + i * (kMmaThreads / 8);
            const u32 place = swizzle_128b(row * 128 + chunk * 16);
            const int h = top[i] + kh, w = left[i] + kw;
            const bf16* source = nullptr;
            if (channel < a.inputs && h >= 0 && h < a.height * scale && w >= 0 &&
                w < a.width * scale) {
                source = source_frame<bf16>(a, time[i] + kt);
            }
            const bool inside = source != nullptr;
            if (inside) source += (i64(h / scale) * a.width + w / scale) * a.inputs + channel;
            cp_async_16(tile_a + place, inside ? source : a.x, inside);

            const int output = column0 + row;
            const bool used = output < a.outputs && channel < a.inputs;
            const bf16* weight = static_cast<const bf16*>(a.w);
            if (used) {
                weight += (i64(output) * (a.kernel_time * plane) + tap) * a.inputs + channel;
            }
            cp_async_16(tile_b + place, weight, used);
        }
    };
    WarpTile acc = {};
    run_stages(base, slices, load, [&](int, u32 tile_a, u32 tile_b) {
        multiply_stage<Element::bf16>(acc, tile_a, tile_b);
    });

    const int lane = lane_id();
    const bf16* residual = static_cast<const bf16*>(a.residual);
    bf16* out = static_cast<bf16*>(a.out);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int column = column0 + warp_column() + 8 * j + 2 * (lane % 4);
        float2 bias = make_float2(0.0f, 0.0f);
        if (a.bias && column < a.outputs) bias.x = a.bias[column];
        if (a.bias && column + 1 < a.outputs) bias.y = a.bias[column + 1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = row0 + warp_row() + 16 * i + lane / 4 + 8 * h;
                if (row >= pixels || column >= a.outputs) continue;
                const i64 at = i64(row) * a.outputs + column;
                float x = acc[i][j][2 * h] + bias.x, y = acc[i][j][2 * h + 1] + bias.y;
                if constexpr (kPairs) {
                    if (residual) {
                        const float2 r =
                            unpack_bf16(*reinterpret_cast<const u32*>(residual + at));
                        x = r.x + round_bf16(x);
                        y = r.y + round_bf16(y);
                    }
                    *reinterpret_cast<u32*>(out + at) = pack_bf16(x, y);
                } else {
                    if (residual) x = float(residual[at]) + round_bf16(x);
                    out[at] = bf16(x);
                    if (column + 1 < a.outputs) {
                        if (residual) y = float(residual[at + 1]) + round_bf16(y);
                        out[at + 1] = bf16(y);
                    }
                }
            }
        }
    }
}
