// What all attention kernels share: their arguments, umT5's position buckets, block lists.
//
// Layouts: q, out [queries, heads, dim]; k, v [keys, heads, dim]; rows are heads * dim apart.
#pragma once
#include "ptx.cuh"

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

/// The arguments of every attention kernel; the fields that a kernel does not use are null or zero.
struct AttentionArguments {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    /// Added to the rounded result, rounded again (the linear branch of SLA). [queries, heads, dim]
    const void* addend;
    /// Of int8 results, in blocks of 128 queries of a head of 128: [ceil(queries / 128), heads]. Null: bf16.
    float* out_scales;
    /// umT5's position bias. f32 [32, heads]
    const float* table;
    /// Ascending key blocks of each query block. [heads, ceil(queries / query_block), selected]
    const int* indices;
    int queries, keys, heads, dim;
    /// Of the logits, times log2(e).
    float scale;
    /// log2 of how often the last two keys count, divided by `scale`.
    float last_keys[2];
    int selected, query_block, key_block;
    /// The first key that counts otherwise than once; the end where all do.
    int uncommon;
};

/// What is added to the logits of `key`: how often it counts; keys past the end never do.
DEVICE float multiplicity(const AttentionArguments& a, int key) {
    const int left = a.keys - key;
    return left > 2 ? 0.0f : left == 2 ? a.last_keys[0] : left == 1 ? a.last_keys[1] : -kInfinity;
}

/// The same for a tile of logits as mma leaves them, four a group of eight keys; `key` is the first.
template <int kCount>
DEVICE void add_multiplicities(float (&s)[kCount], const AttentionArguments& a, int key) {
    if (key + 2 * kCount <= a.uncommon) return;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        const int at = key + i / 4 * 8 + 2 * (lane_id() % 4) + i % 2;
        if (at >= a.keys) s[i] = -kInfinity;
        if (at == a.keys - 1) s[i] += a.last_keys[1];
        if (at == a.keys - 2) s[i] += a.last_keys[0];
    }
}

/// Which keys a query sees.
enum class Keys {
    /// All of them; the last two with their multiplicities.
    all,
    /// All of them, with umT5's position bias.
    relative,
    /// Those of the listed blocks.
    listed,
};

/// The bucket of umT5's relative position key - query: 16 more for keys after the query, distances below
/// 8 one by one, then eight logarithmic steps whose integer borders are 8 * 2^(k/2).
DEVICE int position_bucket(int relative) {
    const int n = relative < 0 ? -relative : relative;
    int bucket = n;
    if (n >= 8) {
        bucket = 8 + (n >= 12) + (n >= 16) + (n >= 23) + (n >= 32) + (n >= 46) + (n >= 64) + (n >= 91);
    }
    return bucket + (relative > 0 ? 16 : 0);
}
