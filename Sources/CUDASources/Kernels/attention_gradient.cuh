// What the kernels of attention's derivatives share: arguments, passes, and which tiles are visited.
#pragma once
#include "softmax.cuh"

constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

/// `AttentionGradientArguments` of AttentionGradients.swift. q and its like: [queries, heads, dim]; k, v: [keys, heads,
/// dim]. Inputs are f32 or bf16, as the kernel says; results are f32.
struct GradientArguments {
    const void* q;
    const void* k;
    const void* v;
    /// The cotangent of the result; null in forward mode.
    const void* g;
    /// Tangents; null for constants and in reverse mode.
    const void* tq;
    const void* tk;
    const void* tv;
    /// Of each query: log of the denominator, rowsum(P * E). [heads, queries]; Hopper's kernels have them in another
    /// form, padded (attention_gradient_sm90.cu).
    float2* statistics;
    /// dq, or the tangent of the result.
    float* out;
    /// [gridDim.z, keys, heads, dim]: each part of the queries adds its own sums.
    float* dk;
    float* dv;
    /// The key blocks of each query block, ascending. [heads, query blocks, selected]; null for all keys.
    const int* indices;
    /// The query blocks of each key block, ascending, and how many. [heads, key blocks, query blocks], [heads, key blocks]
    const int* inverted;
    const int* counts;
    int queries, keys, heads, dim;
    float scale;
    /// log of how many times each of the last two keys counts.
    float last_keys[2];
    int selected, query_block, key_block;
};

enum class Pass { reverse_statistics, forward_statistics, query_gradient, key_gradient, tangent };

/// The tiles that a block of threads visits: their first rows.
template <int kTile, bool kByKeys>
struct Walk {
    const int* list = nullptr;
    int count, steps = 1, block = kTile;
    /// The part of the tiles that this block of threads takes, of gridDim.z parts.
    int begin, end;

    DEVICE Walk(const GradientArguments& a, int head, int first) {
        find(a, head, first);
        const int part = ceil_div(count, int(gridDim.z));
        begin = int(blockIdx.z) * part;
        end = min(count, begin + part);
    }

    DEVICE void find(const GradientArguments& a, int head, int first) {
        if (a.indices == nullptr) {
            count = ceil_div(kByKeys ? a.queries : a.keys, kTile);
            return;
        }
        const int query_blocks = ceil_div(a.queries, a.query_block);
        if (kByKeys) {
            const i64 own = i64(head) * ceil_div(a.keys, a.key_block) + first / a.key_block;
            list = a.inverted + own * query_blocks;
            block = a.query_block;
            steps = block / kTile;
            count = a.counts[own] * steps;
        } else {
            list = a.indices + (i64(head) * query_blocks + first / a.query_block) * a.selected;
            block = a.key_block;
            steps = block / kTile;
            count = a.selected * steps;
        }
    }

    DEVICE int at(int i) const { return list ? list[i / steps] * block + i % steps * kTile : i * kTile; }
};

/// What is added to the logits of a key so that it counts as often as it should; keys past the end never count.
DEVICE float multiplicity(const GradientArguments& a, int key) {
    const int left = a.keys - key;
    return left > 2 ? 0.0f : left == 2 ? a.last_keys[0] : left == 1 ? a.last_keys[1] : -kInfinity;
}

/// What the way back has to know of two rows of logits, found tile after tile: the log of the softmax's denominator, and the
/// mean of other numbers under its probabilities. On the accumulators of the products, as `RunningSoftmax`.
struct RunningStatistics {
    float largest[2] = {-kInfinity, -kInfinity};
    /// Sums over this thread's columns: of 2^(logit - largest), and of the numbers times that.
    float total[2] = {}, along[2] = {};

    /// s: logits to the base 2; e: the numbers.
    template <int kCount>
    DEVICE void add(const float (&s)[kCount], const float (&e)[kCount]) {
        float found[2];
        row_maxima(s, found);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float most = fmaxf(largest[r], found[r]);
            const float decay = exp2_approx(largest[r] - most);
            largest[r] = most;
            total[r] *= decay;
            along[r] *= decay;
#pragma unroll
            for (int i = 2 * r; i < kCount; i += 4) {
#pragma unroll
                for (int c = i; c < i + 2; c++) {
                    const float x = exp2_approx(s[c] - most);
                    total[r] += x;
                    along[r] += x * e[c];
                }
            }
        }
    }

    /// Of the whole row r: log2 of the denominator, the mean.
    DEVICE float2 of(int r) const {
        const float sum = warp_sum<4>(total[r]);
        return make_float2(largest[r] + log2f(sum), warp_sum<4>(along[r]) / sum);
    }
};
