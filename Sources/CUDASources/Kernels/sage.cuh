// What the SageAttention kernels share. Their operands are made by sage_prepare.cu.
#pragma once
#include "attention.cuh"
#include "softmax.cuh"

/// P is multiplied by 2^8.807 = 448, to use the whole range of e4m3; the denominator has the same factor.
constexpr float kProbabilityOffset = 8.807f;

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
