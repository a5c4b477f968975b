// The autoencoder's norm: x / max(||x||, 1e-12) * sqrt(C) * gamma over the channels, then SiLU.
#include "rows.cuh"

/// x / (1 + exp(-x)), to the precision of T.
template <typename T>
DEVICE float silu(float x) {
    if constexpr (sizeof(T) == 2) return x * rcp_approx(1.0f + __expf(-x));
    return x / (1.0f + expf(-x));
}

/// kLanes neighbouring lanes hold the channels of one position, in kCount vectors each, and do so for kPositions
/// positions: all their loads come first.
/// x: [positions, channels] → out: [positions, channels]; gamma: [channels]
template <typename T, int kVector, int kLanes, int kCount, int kPositions>
__global__ void __launch_bounds__(256)
    channel_norm(T* out, const T* x, const float* gamma, i64 positions, int channels, float root,
                 int applies_silu) {
    constexpr int kGroups = 256 / kLanes;
    const i64 first = i64(blockIdx.x) * (kGroups * kPositions) + threadIdx.x / kLanes;
    const int lane = threadIdx.x % kLanes;
    auto holds = [&](int p, int i) {
        return first + p * kGroups < positions && (i * kLanes + lane) * kVector < channels;
    };
    auto place = [&](int p, int i) {
        return (first + p * kGroups) * channels + (i * kLanes + lane) * kVector;
    };
    Kept<T, kVector> kept[kPositions][kCount];
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (holds(p, i)) kept[p][i].load(x + place(p, i));
        }
    }
    float factors[kPositions];
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (holds(p, i)) {
                float values[kVector];
                kept[p][i].get(values);
#pragma unroll
                for (int j = 0; j < kVector; ++j) squares += values[j] * values[j];
            }
        }
        factors[p] = root / fmaxf(sqrtf(warp_sum<kLanes>(squares)), 1e-12f);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int channel = (i * kLanes + lane) * kVector;
        if (channel >= channels) break;
        float g[kVector];
        load_floats(g, gamma + channel);
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
            if (!holds(p, i)) break;
            float values[kVector];
            kept[p][i].get(values);
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const float y = values[j] * factors[p] * g[j];
                values[j] = applies_silu ? silu<T>(y) : y;
            }
            store_floats(out + place(p, i), values);
        }
    }
}
