// Vectors of sixteen numbers: one register with AVX-512, two with AVX2.
#ifndef LANES_H
#define LANES_H

#include <immintrin.h>
#include <math.h>
#include <string.h>

/// Lanes of a vector.
enum { LANES = 16 };

/// The number of valid lanes, counted from the first.
typedef size_t lanes_t;
static inline lanes_t first_lanes(size_t n) { return n >= LANES ? LANES : n; }

#if defined(CPU_AVX2)

#define TARGET __attribute__((target("avx2,fma,bmi,bmi2,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef struct {
    __m256 a, b;
} v16;
/// Sixteen 16-bit numbers, in both variants.
typedef __m256i h16;

INLINE v16 v_set(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE v16 v_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE v16 v_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void v_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
#define BINARY(name, f)                                                                            \
    INLINE v16 name(v16 x, v16 y) { return (v16){f(x.a, y.a), f(x.b, y.b)}; }
BINARY(v_add, _mm256_add_ps)
BINARY(v_sub, _mm256_sub_ps)
BINARY(v_mul, _mm256_mul_ps)
BINARY(v_div, _mm256_div_ps)
/// The second operand if one is NaN.
BINARY(v_min, _mm256_min_ps)
BINARY(v_max, _mm256_max_ps)
#undef BINARY
/// x y + z
INLINE v16 v_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
/// z - x y
INLINE v16 v_fnma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
/// The nearest integer, ties to even.
INLINE v16 v_round(v16 x) {
    return (v16){_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)};
}
/// The integer towards zero.
INLINE v16 v_truncate(v16 x) {
    return (v16){_mm256_round_ps(x.a, 11), _mm256_round_ps(x.b, 11)};
}
INLINE v16 v_abs(v16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
/// x, which is positive, with the sign of y.
INLINE v16 v_with_sign(v16 x, v16 y) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_or_ps(x.a, _mm256_and_ps(sign, y.a)),
                 _mm256_or_ps(x.b, _mm256_and_ps(sign, y.b))};
}
INLINE float v_first(v16 x) { return _mm256_cvtss_f32(x.a); }
INLINE float v_largest(v16 x) {
    const __m256 m = _mm256_max_ps(x.a, x.b);
    __m128 n = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    n = _mm_max_ps(n, _mm_movehl_ps(n, n));
    return _mm_cvtss_f32(_mm_max_ss(n, _mm_shuffle_ps(n, n, 1)));
}
INLINE float v_sum(v16 x) {
    const __m256 m = _mm256_add_ps(x.a, x.b);
    __m128 n = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    n = _mm_add_ps(n, _mm_movehl_ps(n, n));
    return _mm_cvtss_f32(_mm_add_ss(n, _mm_shuffle_ps(n, n, 1)));
}

/// All bits of the first `n` of eight lanes, of which `from` come before.
INLINE __m256i lane_mask(lanes_t n, int from) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - from), index);
}
/// x in the first lanes, `other` in the rest.
INLINE v16 v_keep(lanes_t lanes, v16 x, v16 other) {
    if (lanes >= LANES) return x;
    return (v16){
        _mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(lane_mask(lanes, 0))),
        _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(lane_mask(lanes, 8))),
    };
}
/// x with one lane multiplied.
INLINE v16 v_scale_lane(v16 x, size_t lane, float factor) {
    float all[LANES];
    v_store(all, x);
    all[lane] *= factor;
    return v_load(all);
}
/// Zeros beyond the first lanes, which alone are read.
INLINE v16 v_load_first(lanes_t lanes, const float *p) {
    if (lanes >= LANES) return v_load(p);
    return (v16){_mm256_maskload_ps(p, lane_mask(lanes, 0)),
                 _mm256_maskload_ps(p + 8, lane_mask(lanes, 8))};
}
INLINE void v_store_first(lanes_t lanes, float *p, v16 x) {
    if (lanes >= LANES) return v_store(p, x);
    _mm256_maskstore_ps(p, lane_mask(lanes, 0), x.a);
    _mm256_maskstore_ps(p + 8, lane_mask(lanes, 8), x.b);
}
/// x 2^n for whole n from -126 to 128.
INLINE __m256 scaled(__m256 x, __m256 n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i one = _mm256_set1_epi32(127);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const __m256i low = _mm256_slli_epi32(_mm256_add_epi32(half, one), 23);
    const __m256i high = _mm256_slli_epi32(_mm256_add_epi32(rest, one), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high));
}
/// x 2^n where y is not below `least`, otherwise 0.
INLINE v16 v_scale_unless_below(v16 x, v16 n, v16 y, float least) {
    const __m256 bound = _mm256_set1_ps(least);
    return (v16){
        _mm256_and_ps(_mm256_cmp_ps(y.a, bound, _CMP_NLT_UQ), scaled(x.a, n.a)),
        _mm256_and_ps(_mm256_cmp_ps(y.b, bound, _CMP_NLT_UQ), scaled(x.b, n.b)),
    };
}

INLINE v16 bf16_to_f32(h16 x) {
    const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(x));
    const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1));
    return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
INLINE __m256i rounded_half(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(sum, quiet, nan), 16);
}
/// Rounds to nearest, ties to even.
INLINE h16 f32_to_bf16(v16 x) {
    const __m256i both = _mm256_packus_epi32(rounded_half(x.a), rounded_half(x.b));
    return _mm256_permute4x64_epi64(both, 0xD8);
}
INLINE h16 h_load_first(lanes_t lanes, const uint16_t *p) {
    if (lanes >= LANES) return _mm256_loadu_si256((const __m256i *)p);
    if (lanes == 8) return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
    uint16_t all[LANES] = {0};
    memcpy(all, p, 2 * lanes);
    return _mm256_loadu_si256((const __m256i *)all);
}
INLINE void h_store_first(lanes_t lanes, uint16_t *p, h16 x) {
    if (lanes >= LANES) return _mm256_storeu_si256((__m256i *)p, x);
    if (lanes == 8) return _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(x));
    uint16_t all[LANES];
    _mm256_storeu_si256((__m256i *)all, x);
    memcpy(p, all, 2 * lanes);
}
/// The nearest number that f16 can represent, ties to even.
INLINE v16 v_round_f16(v16 x) {
    return (v16){_mm256_cvtph_ps(_mm256_cvtps_ph(x.a, 8)), _mm256_cvtph_ps(_mm256_cvtps_ph(x.b, 8))};
}
INLINE __m256 rounded_e4m3(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i sum =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFFF)));
    const __m256i kept = _mm256_and_si256(sum, _mm256_set1_epi32((int)0xFFF00000u));
    const __m256 unit = _mm256_set1_ps(24576.0f);
    const __m256 small = _mm256_sub_ps(_mm256_add_ps(x, unit), unit);
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const __m256 is_small = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ);
    return _mm256_blendv_ps(_mm256_castsi256_ps(kept), small, is_small);
}
/// The nearest number of e4m3's digits and least step, 2^-9, ties to even; |x| <= 448.
INLINE v16 v_round_e4m3(v16 x) { return (v16){rounded_e4m3(x.a), rounded_e4m3(x.b)}; }
/// Rounds to nearest, ties to even, and stores the first lanes as bytes, saturated.
INLINE void v_store_bytes(lanes_t lanes, int8_t *p, v16 x) {
    const __m256i both =
        _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    const __m256i words = _mm256_permute4x64_epi64(both, 0xD8);
    int8_t all[LANES];
    _mm_storeu_si128((__m128i *)all, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                     _mm256_extracti128_si256(words, 1)));
    memcpy(p, all, lanes);
}

#else

#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef __m512 v16;
typedef __m256i h16;

INLINE v16 v_set(float x) { return _mm512_set1_ps(x); }
INLINE v16 v_zero(void) { return _mm512_setzero_ps(); }
INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
INLINE v16 v_add(v16 x, v16 y) { return _mm512_add_ps(x, y); }
INLINE v16 v_sub(v16 x, v16 y) { return _mm512_sub_ps(x, y); }
INLINE v16 v_mul(v16 x, v16 y) { return _mm512_mul_ps(x, y); }
INLINE v16 v_div(v16 x, v16 y) { return _mm512_div_ps(x, y); }
/// The second operand if one is NaN.
INLINE v16 v_min(v16 x, v16 y) { return _mm512_min_ps(x, y); }
INLINE v16 v_max(v16 x, v16 y) { return _mm512_max_ps(x, y); }
/// x y + z
INLINE v16 v_fma(v16 x, v16 y, v16 z) { return _mm512_fmadd_ps(x, y, z); }
/// z - x y
INLINE v16 v_fnma(v16 x, v16 y, v16 z) { return _mm512_fnmadd_ps(x, y, z); }
/// The nearest integer, ties to even.
INLINE v16 v_round(v16 x) { return _mm512_roundscale_ps(x, 8); }
/// The integer towards zero.
INLINE v16 v_truncate(v16 x) { return _mm512_roundscale_ps(x, 11); }
INLINE v16 v_abs(v16 x) { return _mm512_abs_ps(x); }
/// x, which is positive, with the sign of y.
INLINE v16 v_with_sign(v16 x, v16 y) {
    return _mm512_or_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0f), y));
}
INLINE float v_first(v16 x) { return _mm512_cvtss_f32(x); }
INLINE float v_largest(v16 x) { return _mm512_reduce_max_ps(x); }
INLINE float v_sum(v16 x) { return _mm512_reduce_add_ps(x); }

INLINE __mmask16 lane_mask(lanes_t n) {
    return n >= LANES ? 0xFFFF : (__mmask16)((1u << n) - 1);
}
/// x in the first lanes, `other` in the rest.
INLINE v16 v_keep(lanes_t lanes, v16 x, v16 other) {
    return _mm512_mask_blend_ps(lane_mask(lanes), other, x);
}
/// x with one lane multiplied.
INLINE v16 v_scale_lane(v16 x, size_t lane, float factor) {
    return _mm512_mask_mul_ps(x, (__mmask16)(1u << lane), x, _mm512_set1_ps(factor));
}
/// Zeros beyond the first lanes, which alone are read.
INLINE v16 v_load_first(lanes_t lanes, const float *p) {
    return _mm512_maskz_loadu_ps(lane_mask(lanes), p);
}
INLINE void v_store_first(lanes_t lanes, float *p, v16 x) {
    _mm512_mask_storeu_ps(p, lane_mask(lanes), x);
}
/// x 2^n where y is not below `least`, otherwise 0.
INLINE v16 v_scale_unless_below(v16 x, v16 n, v16 y, float least) {
    const __mmask16 large = _mm512_cmp_ps_mask(y, _mm512_set1_ps(least), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(large, x, n);
}

INLINE v16 bf16_to_f32(h16 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
/// Rounds to nearest, ties to even; subnormal numbers become zero.
INLINE h16 f32_to_bf16(v16 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
INLINE h16 h_load_first(lanes_t lanes, const uint16_t *p) {
    return _mm256_maskz_loadu_epi16(lane_mask(lanes), p);
}
INLINE void h_store_first(lanes_t lanes, uint16_t *p, h16 x) {
    _mm256_mask_storeu_epi16(p, lane_mask(lanes), x);
}
/// The nearest number that f16 can represent, ties to even.
INLINE v16 v_round_f16(v16 x) { return _mm512_cvtph_ps(_mm512_cvtps_ph(x, 8)); }
/// The nearest number of e4m3's digits and least step, 2^-9, ties to even; |x| <= 448.
INLINE v16 v_round_e4m3(v16 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    const __m512i sum =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFFF)));
    const __m512i kept = _mm512_and_si512(sum, _mm512_set1_epi32((int)0xFFF00000u));
    const __m512 unit = _mm512_set1_ps(24576.0f);
    const __m512 small = _mm512_sub_ps(_mm512_add_ps(x, unit), unit);
    const __mmask16 is_small =
        _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(is_small, _mm512_castsi512_ps(kept), small);
}
/// Rounds to nearest, ties to even, and stores the first lanes as bytes, saturated.
INLINE void v_store_bytes(lanes_t lanes, int8_t *p, v16 x) {
    _mm512_mask_cvtsepi32_storeu_epi8(p, lane_mask(lanes), _mm512_cvtps_epi32(x));
}

#endif

#endif
