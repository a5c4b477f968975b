// CUDA C++ for a compiler of the host: what kernels use of the language, its vectors and its functions.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define threadIdx (machine::self().thread)
#define blockIdx (machine::self().block)
#define blockDim (machine::self().blockDim)
#define gridDim (machine::self().gridDim)

// ---- vectors ----------------------------------------------------------------------------------

template <class T, int kAlignment>
struct alignas(kAlignment) Pair {
    T x, y;
};
template <class T>
struct alignas(16) Quadruple {
    T x, y, z, w;
};
using float2 = Pair<float, 8>;
using int2 = Pair<int, 8>;
using uint2 = Pair<unsigned, 8>;
using float4 = Quadruple<float>;
using uint4 = Quadruple<unsigned>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- bits and numbers -------------------------------------------------------------------------

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned which = selector >> (4 * i);
        unsigned byte = unsigned(bytes >> (8 * (which & 7))) & 0xff;
        if (which & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __vmaxu2(unsigned x, unsigned y) {
    const unsigned low = std::max(x & 0xffff, y & 0xffff), high = std::max(x >> 16, y >> 16);
    return high << 16 | low;
}
template <class T>
const T& __ldg(const T* pointer) {
    return *pointer;
}

#define MACHINE_MIN_MAX(T)                                   \
    constexpr T min(T x, T y) { return y < x ? y : x; }      \
    constexpr T max(T x, T y) { return x < y ? y : x; }
MACHINE_MIN_MAX(int)
MACHINE_MIN_MAX(unsigned)
MACHINE_MIN_MAX(long long)
MACHINE_MIN_MAX(unsigned long long)
MACHINE_MIN_MAX(float)
#undef MACHINE_MIN_MAX

inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
    *sine = std::sin(x);
    *cosine = std::cos(x);
}

// ---- threads that meet ------------------------------------------------------------------------

inline void __syncthreads() { machine::barrier(0, 0, true); }
inline int __syncthreads_or(int x) { return machine::barrier(0, 0, true, x != 0); }

namespace machine {

/// Each lane of the mask brings a value; `work` sees all and answers each.
template <class Value>
struct Exchange {
    Value brought, answer;
    unsigned lane;

    Exchange(Value value, unsigned lane, unsigned mask, const char* what, void (*work)(void* const*))
        : brought(value), lane(lane) {
        meet(32, mask, what, this, work);
    }
    static Exchange& at(void* const* lanes, unsigned lane) { return *static_cast<Exchange*>(lanes[lane]); }
};

template <class Value>
Value shuffle(unsigned mask, Value value, unsigned from) {
    using All = Exchange<Value>;
    return All(value, from, mask, "shfl", [](void* const* lanes) {
               for (unsigned i = 0; i < 32; i++) {
                   if (!lanes[i]) continue;
                   const unsigned from = All::at(lanes, i).lane % 32;
                   // A lane that is not there has nothing that could be relied on.
                   All::at(lanes, i).answer = lanes[from] ? All::at(lanes, from).brought : All::at(lanes, i).brought;
               }
           })
        .answer;
}

}  // namespace machine

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int from) {
    return machine::shuffle(mask, value, unsigned(from));
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes) {
    return machine::shuffle(mask, value, machine::self().lane ^ unsigned(lanes));
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    int nothing = 0;
    machine::meet(32, mask, "syncwarp", &nothing, [](void* const*) {});
}
inline unsigned __ballot_sync(unsigned mask, int x) {
    using All = machine::Exchange<unsigned>;
    return All(x != 0, 0, mask, "ballot", [](void* const* lanes) {
               unsigned bits = 0;
               for (unsigned i = 0; i < 32; i++) bits |= lanes[i] ? All::at(lanes, i).brought << i : 0;
               for (unsigned i = 0; i < 32; i++) {
                   if (lanes[i]) All::at(lanes, i).answer = bits;
               }
           })
        .answer;
}
inline int __any_sync(unsigned mask, int x) { return __ballot_sync(mask, x) != 0; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned x) {
    using All = machine::Exchange<unsigned>;
    return All(x, 0, mask, "redux", [](void* const* lanes) {
               unsigned sum = 0;
               for (unsigned i = 0; i < 32; i++) sum += lanes[i] ? All::at(lanes, i).brought : 0;
               for (unsigned i = 0; i < 32; i++) {
                   if (lanes[i]) All::at(lanes, i).answer = sum;
               }
           })
        .answer;
}
inline uint32_t __cvta_generic_to_shared(const void* pointer) { return machine::shared_address(pointer); }

// ---- kernels as functions of their arguments' addresses ---------------------------------------

namespace machine {

template <class T>
T argument(void* address) {
    std::remove_const_t<T> value;
    memcpy(&value, address, sizeof value);
    return value;
}
template <class... Argument>
void call(void (*kernel)(Argument...), void** arguments) {
    int i = 0;
    // Braces evaluate in order.
    struct Call {
        Call(void (*kernel)(Argument...), Argument... argument) { kernel(argument...); }
    };
    Call{kernel, argument<Argument>(arguments[i++])...};
}

}  // namespace machine
