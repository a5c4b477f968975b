// What the convolution kernels share: the geometry of a causal convolution over channels-last frames.
#pragma once
#include "ptx.cuh"

/// x: [frames, height, width, inputs], behind history: [history_frames, height, width, inputs], behind
/// `leading_zeros` frames of zeros; w: [outputs, kernel_time, kernel_height, kernel_width, inputs] →
/// out: [out_frames, out_height, out_width, outputs].
struct ConvolutionArguments {
    const void* x;
    const void* history;
    const void* w;
    /// [outputs], or null.
    const float* bias;
    /// The shape of out, or null.
    const void* residual;
    void* out;
    int frames, history_frames, leading_zeros, height, width, inputs;
    int out_frames, out_height, out_width, outputs;
    int kernel_time, kernel_height, kernel_width;
    int time_stride, spatial_stride, pad_top, pad_left;
    /// Height and width are doubled (nearest) before the kernel sees them.
    int upsample;
};

/// Where frame `time`, counted from the first leading zero, is; null where it is zero.
template <typename T>
DEVICE const T* source_frame(const ConvolutionArguments& a, int time) {
    const i64 frame = i64(a.height) * a.width * a.inputs;
    time -= a.leading_zeros;
    if (time < 0) return nullptr;
    if (time < a.history_frames) return static_cast<const T*>(a.history) + time * frame;
    return static_cast<const T*>(a.x) + (time - a.history_frames) * frame;
}
