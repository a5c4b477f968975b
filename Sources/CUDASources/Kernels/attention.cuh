// What all attention kernels share: their arguments, multiplicities of keys, umT5's position buckets.
//
// Layouts: q, out [queries, heads, dim]; k, v [keys, heads, dim], so the rows of one head are heads * dim apart.
#pragma once
#include "ptx.cuh"

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);

/// The arguments of every attention kernel; fields that a kernel does not use are null or zero.
struct AttentionArguments {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    /// Added to the rounded result, which is then rounded again; the linear branch of SLA. [queries, heads, dim]
    const void* addend;
    /// Scales of int8 results, one for 128 queries of a head with dim 128: [ceil(queries / 128), heads]. Null for bf16.
    float* out_scales;
    /// umT5's position bias. f32 [32, heads]
    const float* table;
    /// The key blocks of each query block, ascending. [heads, ceil(queries / query_block), selected]
    const int* indices;
    int queries, keys, heads, dim;
    /// The factor of q.k in the exponent of 2: the scale of the logits times log2(e).
    float scale;
    /// log2 of how many times each of the last two keys counts, divided by `scale`.
    float last_keys[2];
    int selected, query_block, key_block;
    /// The first key that does not count once; `keys` if all do.
    int uncommon;
};

/// What is added to the logits of `key` so that it counts as often as it should; keys past the end never count.
DEVICE float multiplicity(const AttentionArguments& a, int key) {
    const int left = a.keys - key;
    return left > 2 ? 0.0f : left == 2 ? a.last_keys[0] : left == 1 ? a.last_keys[1] : -kInfinity;
}

/// The same for the accumulators of mma: a tile of logits, four for each eight keys. `key` is the tile's first.
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
    /// All keys; the last two with their multiplicities.
    all,
    /// All keys, with umT5's position bias.
    relative,
    /// The keys of the listed blocks.
    listed,
};

/// The bucket of umT5's relative position key - query: the distance itself below 8, then eight logarithmic steps with
/// integer borders at 8 * 2^(k/2); 16 more for keys after the query.
DEVICE int position_bucket(int relative) {
    const int n = relative < 0 ? -relative : relative;
    int bucket = n;
    if (n >= 8) {
        bucket = 8 + (n >= 12) + (n >= 16) + (n >= 23) + (n >= 32) + (n >= 46) + (n >= 64) + (n >= 91);
    }
    return bucket + (relative > 0 ? 16 : 0);
}
