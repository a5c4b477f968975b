// The running softmax of the attention kernels (FlashAttention, arXiv 2205.14135), on the accumulators of the products:
// four threads share two rows, and element i of a thread belongs to row i / 2 % 2.
#pragma once
#include "ptx.cuh"

/// Initial value of a running maximum. It is finite, so that a tile without any key changes nothing.
constexpr float kLowestLogit = -1e30f;

/// The accumulators of all tiles as one array.
template <typename T, int kTiles>
DEVICE T (&flat(T (&x)[kTiles][4]))[4 * kTiles] {
    return reinterpret_cast<T(&)[4 * kTiles]>(x);
}

/// The largest logit of each row.
template <int kCount>
DEVICE void row_maxima(const float (&s)[kCount], float (&largest)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        largest[r] = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
        for (int i = 4; i < kCount; i += 4) {
            largest[r] = fmaxf(largest[r], fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
        }
        largest[r] = warp_max<4>(largest[r]);
    }
}

/// Probabilities are 2^(logit - maximum); at the end the result is divided by the sum of all.
struct RunningSoftmax {
    float maximum[2] = {kLowestLogit, kLowestLogit};
    /// Sums over this thread's columns.
    float sum[2] = {0, 0};
    /// The factors of earlier sums and results after the maxima have risen.
    float decay[2];

    /// Updates the maxima. `largest`: of the tile's logits, which are to be multiplied by `scale`.
    DEVICE void raise(const float (&largest)[2], float scale) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float m = fmaxf(maximum[r], largest[r] * scale);
            decay[r] = exp2_approx(maximum[r] - m);
            maximum[r] = m;
        }
    }

    /// Turns the tile's logits into probabilities, times 2^boost. With kSums, adds them to the sums; otherwise the
    /// caller does that, after rounding. Each is added as soon as it is computed, so that the additions overlap with
    /// the exponentials.
    template <bool kSums = true, int kCount>
    DEVICE void soften(float (&s)[kCount], float scale, float boost = 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float offset = boost == 0.0f ? -maximum[r] : boost - maximum[r];
            float total = 0;
#pragma unroll
            for (int i = 0; i < kCount; i += 4) {
#pragma unroll
                for (int e = i + 2 * r; e < i + 2 * r + 2; e++) {
                    s[e] = exp2_approx(__fmaf_rn(s[e], scale, offset));
                    if (kSums) total += s[e];
                }
            }
            if (kSums) add(r, total);
        }
    }

    /// Adds a tile's sum of row r; must follow `raise`.
    DEVICE void add(int r, float total) { sum[r] = __fmaf_rn(sum[r], decay[r], total); }

    /// Whether any maximum of the warp has risen.
    DEVICE bool rose() const { return __any_sync(0xffffffffu, decay[0] != 1.0f || decay[1] != 1.0f); }

    /// Scales earlier results to the new maxima.
    template <int kCount>
    DEVICE void fade(float (&o)[kCount]) const {
#pragma unroll
        for (int i = 0; i < kCount; i++) o[i] *= decay[i / 2 % 2];
    }

    /// 1 / the sum of the whole row r.
    DEVICE float inverse(int r) const { return 1.0f / warp_sum<4>(sum[r]); }
};
