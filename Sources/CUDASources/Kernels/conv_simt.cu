// Convolutions without tensor cores, for f32 frames and for numbers of channels that are not multiples of 8.
#include "conv.cuh"
#include "rows.cuh"

/// A block of threads computes 64 pixels x 64 outputs, over 16 inputs at a time; a thread computes 4 x 4.
/// Grid: (tiles of pixels, tiles of outputs), 256 threads.
template <typename T>
__global__ void __launch_bounds__(256) conv_simt(const ConvolutionArguments a) {
    constexpr int kSide = 64, kDepth = 16;
    // Rows of 68, so that the transposing stores hit different banks and rows stay aligned for float4.
    __shared__ float patches[kDepth][kSide + 4], weights[kDepth][kSide + 4];
    const int pixels = a.out_frames * a.out_height * a.out_width;
    const int plane = a.kernel_height * a.kernel_width;
    const int depth = a.kernel_time * plane * a.inputs;
    const int scale = a.upsample ? 2 : 1;
    const int row0 = blockIdx.x * kSide, column0 = blockIdx.y * kSide;
    const int k_thread = threadIdx.x % kDepth, line = threadIdx.x / kDepth;
    const T* w = static_cast<const T*>(a.w);

    int time[4], top[4], left[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int pixel = row0 + line + 16 * i;
        const bool inside = pixel < pixels;
        left[i] = pixel % a.out_width * a.spatial_stride - a.pad_left;
        pixel /= a.out_width;
        top[i] = pixel % a.out_height * a.spatial_stride - a.pad_top;
        time[i] = inside ? pixel / a.out_height * a.time_stride : -a.kernel_time;
    }
    const int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
    float sums[4][4] = {}, total[4][4] = {};
    for (int k0 = 0; k0 < depth; k0 += kDepth) {
        const int k = k0 + k_thread;
        const int tap = k / a.inputs, channel = k % a.inputs;
        const int kt = tap / plane, kh = tap % plane / a.kernel_width, kw = tap % a.kernel_width;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int h = top[i] + kh, x = left[i] + kw;
            float value = 0.0f, weight = 0.0f;
            if (k < depth) {
                if (h >= 0 && h < a.height * scale && x >= 0 && x < a.width * scale) {
                    const T* frame = source_frame<T>(a, time[i] + kt);
                    if (frame) {
                        value = float(frame[(i64(h / scale) * a.width + x / scale) * a.inputs +
                                            channel]);
                    }
                }
                const int output = column0 + line + 16 * i;
                if (output < a.outputs) weight = float(w[i64(output) * depth + k]);
            }
            patches[k_thread][line + 16 * i] = value;
            weights[k_thread][line + 16 * i] = weight;
        }
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < kDepth; kk++) {
            const float4 u = *reinterpret_cast<const float4*>(&patches[kk][m]);
            const float4 v = *reinterpret_cast<const float4*>(&weights[kk][n]);
            const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += us[i] * vs[j];
            }
        }
        // The sum is made of partial sums over 256 products, because long sums in float lose digits.
        if (k0 % 256 == 256 - kDepth || k0 + kDepth >= depth) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    total[i][j] += sums[i][j];
                    sums[i][j] = 0.0f;
                }
            }
        }
        __syncthreads();
    }
    const T* residual = static_cast<const T*>(a.residual);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = row0 + m + i, column = column0 + n + j;
            if (row >= pixels || column >= a.outputs) continue;
            const i64 at = i64(row) * a.outputs + column;
            float y = total[i][j];
            if (a.bias) y += a.bias[column];
            if (residual) y = float(residual[at]) + round_to<T>(y);
            static_cast<T*>(a.out)[at] = T(y);
        }
    }
}
