// What the convolution kernels share: the arguments of a causal convolution of frames with channels last.
#pragma once
#include "ptx.cuh"

/// The input is `leading_zeros` frames of zeros, then history: [history_frames, height, width, inputs], then
/// x: [frames, height, width, inputs]. w: [outputs, kernel_time, kernel_height, kernel_width, inputs] →
/// out: [out_frames, out_height, out_width, outputs].
struct ConvolutionArguments {
    const void* x;
    const void* history;
    const void* w;
    /// [outputs], or null
    const float* bias;
    /// Added to the result: same shape as out, or null.
    const void* residual;
    void* out;
    int frames, history_frames, leading_zeros, height, width, inputs;
    int out_frames, out_height, out_width, outputs;
    int kernel_time, kernel_height, kernel_width;
    int time_stride, spatial_stride, pad_top, pad_left;
    /// Whether height and width are doubled first, by repeating each pixel.
    int upsample;
};

/// The address of frame `time`, counted from the first leading zero; null for a frame of zeros.
template <typename T>
DEVICE const T* source_frame(const ConvolutionArguments& a, int time) {
    const i64 frame = i64(a.height) * a.width * a.inputs;
    time -= a.leading_zeros;
    if (time < 0) return nullptr;
    if (time < a.history_frames) return static_cast<const T*>(a.history) + time * frame;
    return static_cast<const T*>(a.x) + (time - a.history_frames) * frame;
}
