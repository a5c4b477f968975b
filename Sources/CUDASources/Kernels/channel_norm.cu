// The autoencoder's norm: x / max(||x||, 1e-12) * sqrt(C) * gamma over the channels, then SiLU.
#include "rows.cuh"

/// x / (1 + exp(-x)), to the precision of T.
template <typename T>
DEVICE float silu(float x) {
    if constexpr (sizeof(T) == 2) return x * rcp_approx(1.0f + __expf(-x));
    return x / (1.0f + expf(-x));
}

/// kLanes neighbouring lanes hold the channels of one position, in kCount vectors each.
/// x: [positions, channels] → out: [positions, channels], in runs of `run` positions, each `x_pitch` and `out_pitch`
/// positions after the one before; gamma: [channels]
template <typename T, int kVector, int kLanes, int kCount>
__global__ void __launch_bounds__(256)
    channel_norm(T* out, const T* x, const float* gamma, i64 positions, i64 run, i64 x_pitch,
                 i64 out_pitch, int channels, float root, int applies_silu) {
    const i64 position = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
    const int lane = threadIdx.x % kLanes;
    const bool inside = position < positions;
    // Frames have fewer than 2^32 positions.
    const i64 before = run < positions ? u32(position) / u32(run) : 0;
    x += (position + before * (x_pitch - run)) * channels;
    out += (position + before * (out_pitch - run)) * channels;
    float values[kCount][kVector];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int channel = (i * kLanes + lane) * kVector;
        if (inside && channel < channels) {
            load_floats(values[i], x + channel);
#pragma unroll
            for (int j = 0; j < kVector; ++j) squares += values[i][j] * values[i][j];
        }
    }
    const float factor = root / fmaxf(sqrtf(warp_sum<kLanes>(squares)), 1e-12f);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int channel = (i * kLanes + lane) * kVector;
        if (inside && channel < channels) {
            float g[kVector];
            load_floats(g, gamma + channel);
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const float y = values[i][j] * factor * g[j];
                values[i][j] = applies_silu ? silu<T>(y) : y;
            }
            store_floats(out + channel, values[i]);
        }
    }
}
