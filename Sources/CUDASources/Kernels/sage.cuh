// What the SageAttention kernels share. Their operands are made by sage_prepare.cu.
#pragma once
#include "attention_tile.cuh"
#include "attention.cuh"
#include "softmax.cuh"

/// P is multiplied by 2^8.807 = 448, to use the whole range of e4m3; the denominator has the same factor.
constexpr float kProbabilityOffset = 8.807f;

/// The int8 scale of a block of rows.
DEVICE float sage_scale(float largest) { return largest / 127.0f + 1e-7f; }

/// x rounded to the nearest integer, halves away from zero.
DEVICE u32 round_away(float x) { return u32(int(x + copysignf(0.5f, x))); }

/// The low bytes of four words.
DEVICE u32 pack_bytes(u32 a, u32 b, u32 c, u32 d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/// Eight bf16 as int8, times `inverse`, the scale's reciprocal.
DEVICE uint2 sage_codes(uint4 words, float inverse) {
    float x[8];
    unpack_bf16(x, words);
    u32 codes[8];
#pragma unroll
    for (int e = 0; e < 8; e++) codes[e] = round_away(x[e] * inverse);
    return make_uint2(pack_bytes(codes[0], codes[1], codes[2], codes[3]),
                      pack_bytes(codes[4], codes[5], codes[6], codes[7]));
}

struct SageArguments {
    /// bf16 [queries, heads, dim]
    void* out;
    /// Added to the rounded result, which is then rounded again. bf16 [queries, heads, dim] or null
    const void* addend;
    /// Scales of int8 results of sage_mma, one for 128 queries of a head with dim 128: [ceil(queries / 128), heads].
    /// Null for bf16.
    float* out_scales;
    /// The key blocks of each query block, ascending. [heads, query_blocks, selected]
    const int* indices;
    /// [heads, query_blocks], [heads, key_blocks], [heads, dim]
    const float* q_scales;
    const float* k_scales;
    const float* v_scales;
    /// The operands, for kernels that do not take them as tensor maps.
    const i8* q;
    const i8* k;
    const void* v;
    int queries, keys, heads, query_blocks, key_blocks, selected;
    /// The scale of the logits times log2(e).
    float scale;
    int padding;
};
