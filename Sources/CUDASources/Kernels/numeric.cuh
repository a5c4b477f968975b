// The number types of the kernels: fixed-width integers, bf16, f16, fp8 (e4m3), and packed vectors.
//
// No header of the CUDA toolkit is included, because NVRTC compiles the kernels on machines that have none.
// These types are only for storage; arithmetic is done in float. Conversions round to nearest, ties to even.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
static_assert(sizeof(i64) == 8 && sizeof(u32) == 4 && sizeof(u16) == 2);

#define DEVICE __device__ __forceinline__

/// n / d, rounded up.
constexpr __host__ __device__ __forceinline__ int ceil_div(int n, int d) { return (n + d - 1) / d; }

/// Lower bound of a block's or row's largest magnitude, so that no 8-bit scale is zero:
/// `LinearFormat.leastMaximum`.
constexpr float kLeastMaximum = 1e-8f;

// ---- bf16 -------------------------------------------------------------------------------------

/// bfloat16: the upper half of a float.
struct alignas(2) bf16 {
    u16 bits;

    bf16() = default;
    DEVICE bf16(float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    DEVICE operator float() const { return __uint_as_float(u32(bits) << 16); }
    static DEVICE bf16 from_bits(u16 bits) {
        bf16 r;
        r.bits = bits;
        return r;
    }
};

/// Two floats as two bf16: `low` in bits 0..15 (the lower address).
DEVICE u32 pack_bf16(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float2 unpack_bf16(u32 pair) { return make_float2(bf16_low(pair), bf16_high(pair)); }

/// x rounded to bf16 and widened again, as the original rounds between its operators.
DEVICE float round_bf16(float x) { return float(bf16(x)); }

// ---- f16 --------------------------------------------------------------------------------------

/// IEEE half precision.
struct alignas(2) f16 {
    u16 bits;

    f16() = default;
    DEVICE f16(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    DEVICE operator float() const {
        float r;
        asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
        return r;
    }
};

DEVICE u32 pack_f16(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEVICE float2 unpack_f16(u32 pair) {
    float2 r;
    asm("{\n\t.reg .b16 l, h;\n\tmov.b32 {l, h}, %2;\n\tcvt.f32.f16 %0, l;\n\tcvt.f32.f16 %1, h;\n\t}"
        : "=f"(r.x), "=f"(r.y)
        : "r"(pair));
    return r;
}

// ---- fp8 --------------------------------------------------------------------------------------

/// Two floats as two e4m3 (saturating to ±448; NaN stays NaN): `low` in bits 0..7.
DEVICE u16 pack_e4m3(float low, float high) {
#if __CUDA_ARCH__ >= 890
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
    return r;
#else
    auto encode = [](float x) -> u32 {
        const u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
        const float a = fabsf(x);
        if (a != a) return 0x7fu;
        if (a < 0.015625f) {  // below 2^-6 the step is 2^-9: let a float addition round for us
            return sign | (__float_as_uint(a + 16384.0f) & 0xfu);
        }
        u32 bits = __float_as_uint(fminf(a, 448.0f));
        bits += 0x7ffffu + ((bits >> 20) & 1u);
        return sign | ((bits >> 20) - (120u << 3));
    };
    return u16(encode(low) | (encode(high) << 8));
#endif
}

/// Two e4m3 as two floats.
DEVICE float2 unpack_e4m3(u16 pair) {
#if __CUDA_ARCH__ >= 890
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    return unpack_f16(halves);
#else
    auto decode = [](u32 x) -> float {
        if ((x & 0x7fu) == 0x7fu) return __uint_as_float(0x7fffffffu);
        // Read as a half, the exponent is 8 too small, also for subnormals.
        f16 h;
        h.bits = u16(((x & 0x80u) << 8) | ((x & 0x7fu) << 7));
        return float(h) * 256.0f;
    };
    return make_float2(decode(pair & 0xffu), decode(pair >> 8));
#endif
}

/// Four floats as four e4m3, the first in the lowest byte.
DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
    return u32(pack_e4m3(a, b)) | (u32(pack_e4m3(c, d)) << 16);
}

/// One e4m3 number.
struct e4m3 {
    u8 bits;

    e4m3() = default;
    DEVICE e4m3(float value) : bits(u8(pack_e4m3(value, 0.0f))) {}
    DEVICE operator float() const { return unpack_e4m3(bits).x; }
};

// ---- int8 -------------------------------------------------------------------------------------

/// Round to nearest even, then saturate to [-128, 127].
DEVICE i32 saturate_i8(float x) {
    i32 r;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}

/// Four floats as four int8 (round to nearest even, saturate), the first in the lowest byte.
DEVICE u32 pack_i8(float a, float b, float c, float d) {
    const u32 low = __byte_perm(saturate_i8(a), saturate_i8(b), 0x0040);
    const u32 high = __byte_perm(saturate_i8(c), saturate_i8(d), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

// ---- packed vectors ---------------------------------------------------------------------------

/// N values of T moved as one access; N * sizeof(T) is 1, 2, 4, 8 or 16 (one ld/st.v4 at 16).
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
    static_assert(N * sizeof(T) <= 16, "one access moves at most 16 bytes");
    T values[N];

    DEVICE T& operator[](int i) { return values[i]; }
    DEVICE const T& operator[](int i) const { return values[i]; }

    static DEVICE Vector load(const T* p) { return *reinterpret_cast<const Vector*>(p); }
    DEVICE void store(T* p) const { *reinterpret_cast<Vector*>(p) = *this; }
};
