// What the SageAttention kernels share. Operands are those of sage_prepare.cu.
#pragma once
#include "attention.cuh"
#include "softmax.cuh"

/// P is multiplied by 2^8.807 = 448 so that it fills e4m3; the denominator carries the same factor.
constexpr float kProbabilityOffset = 8.807f;

struct SageArguments {
    /// bf16 [queries, heads, dim]
    void* out;
    /// Added to the rounded result, rounded again. bf16 [queries, heads, dim] or null.
    const void* addend;
    /// Of int8 results of sage_mma, in blocks of 128 queries of a head of 128: [ceil(queries / 128), heads]. Null: bf16.
    float* out_scales;
    /// Ascending key blocks of each query block. [heads, query_blocks, selected]
    const int* indices;
    /// [heads, query_blocks], [heads, key_blocks], [heads, dim]
    const float* q_scales;
    const float* k_scales;
    const float* v_scales;
    /// The operands, where a kernel does not get them as tensor maps.
    const i8* q;
    const i8* k;
    const void* v;
    int queries, keys, heads, query_blocks, key_blocks, selected;
    /// Of the logits, times log2(e).
    float scale;
    int padding;
};
