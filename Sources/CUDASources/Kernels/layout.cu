// Kernels that only move numbers: latents to tokens and back, channels first and last, frames.
#include "rows.cuh"

DEVICE i64 element_index() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }

/// Writes one part of the latents to the features (channel, kh, kw) of the tokens.
/// in: [C, T, H, W] → out: [T * H/p * W/p, features], from feature `first` on
template <typename In, typename Out>
__global__ void patchify(Out* out, const In* in, int channels, int t, int h, int w, int p,
                         int features, int first) {
    const i64 i = element_index();
    const i64 tokens = i64(t) * (h / p) * (w / p);
    if (i >= tokens * channels * p * p) return;
    const int feature = int(i % (channels * p * p));
    const i64 token = i / (channels * p * p);
    const int column = int(token % (w / p)) * p + feature % p;
    const i64 line = token / (w / p);
    const int row = int(line % (h / p)) * p + feature / p % p;
    const i64 frame = line / (h / p);
    const i64 source = ((i64(feature / (p * p)) * t + frame) * h + row) * w + column;
    out[token * features + first + feature] = Out(float(in[source]));
}

/// in: [T * H/p * W/p, p*p * C], features (kh, kw, channel) → out: [C, T, H, W]
template <typename In>
__global__ void unpatchify(float* out, const In* in, int channels, int t, int h, int w, int p) {
    const i64 i = element_index();
    if (i >= i64(channels) * t * h * w) return;
    const int column = int(i % w);
    const int row = int(i / w % h);
    const int frame = int(i / (i64(w) * h) % t);
    const int channel = int(i / (i64(w) * h * t));
    const i64 token = (i64(frame) * (h / p) + row / p) * (w / p) + column / p;
    out[i] = float(in[((token * p + row % p) * p + column % p) * channels + channel]);
}

/// in: [C, n] → in * scale + shift as out: [n, C]; scale, shift: [C]
template <typename In, typename Out>
__global__ void channels_last(Out* out, const In* in, const float* scale, const float* shift,
                              int channels, i64 n) {
    const i64 i = element_index();
    if (i >= n * channels) return;
    const int channel = int(i % channels);
    out[i] = Out(float(in[channel * n + i / channels]) * scale[channel] + shift[channel]);
}

/// in: [n, C] → in * scale + shift as out: [C, n]; scale, shift: [C]
template <typename In>
__global__ void channels_first(float* out, const In* in, const float* scale, const float* shift,
                               int channels, i64 n) {
    const i64 i = element_index();
    if (i >= n * channels) return;
    const int channel = int(i / n);
    out[i] = float(in[i % n * channels + channel]) * scale[channel] + shift[channel];
}

/// The two halves of the channels become neighbouring frames.
/// in: [T, positions, 2, units] → out: [T, 2, positions, units]
template <typename Unit>
__global__ void interleave_time(Unit* out, const Unit* in, i64 count, i64 positions, int units) {
    const i64 i = element_index();
    if (i >= count) return;
    const int unit = int(i % units);
    const i64 position = i / units % positions;
    const i64 frame = i / (units * positions);  // of the output
    out[i] = in[((frame / 2 * positions + position) * 2 + frame % 2) * units + unit];
}

/// Moves the input channels of a convolution's kernel to the last axis.
/// in: [count / (inputs * taps), inputs, taps] → out: [.., taps, inputs]
template <typename Unit>
__global__ void kernel_channels_last(Unit* out, const Unit* in, i64 count, int inputs, int taps) {
    const i64 i = element_index();
    if (i >= count) return;
    const int input = int(i % inputs);
    const i64 row = i / inputs;
    out[i] = in[(row / taps * inputs + input) * taps + row % taps];
}

/// Runs of `width` units, `count` units in all, from one pitch to another (in units). out may be another GPU's memory.
template <typename T>
__global__ void copy_runs(T* out, const T* in, i64 count, i64 width, i64 out_pitch, i64 in_pitch) {
    for (i64 i = element_index(); i < count; i += i64(gridDim.x) * blockDim.x) {
        const u32 run = u32(i) / u32(width);
        const i64 column = i - run * width;
        out[run * out_pitch + column] = in[run * in_pitch + column];
    }
}

/// Sets *differs to 1 if a and b differ anywhere. `count`: number of 4-byte words
__global__ void compare_bits(u32* differs, const u32* a, const u32* b, i64 count) {
    bool different = false;
    for (i64 i = element_index(); i < count; i += i64(gridDim.x) * blockDim.x) {
        different |= a[i] != b[i];
    }
    if (__syncthreads_or(different) && threadIdx.x == 0) *differs = 1;
}
