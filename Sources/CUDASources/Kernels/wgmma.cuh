// Warpgroup matrix instructions of sm_90a: d[64, N] (+)= a[64, K] * b[K, N], issued by four warps.
//
// K is 16 for bf16 and f16, 32 for int8 and e4m3 (32 bytes in all cases). B comes from shared memory,
// A from shared memory ("ss") or registers ("rs"). d[i] of thread t, warp w = t / 32, lane l = t % 32:
//   row    16 w + l / 4 + 8 (i / 2 % 2)
//   column 8 (i / 4) + 2 (l % 4) + i % 2
// A in registers is the m16k16 (m16k32) fragment of mma.sync, rows as above.
// Order: wgmma_fence, instructions, wgmma_commit, wgmma_wait<n>; d may be accessed after the wait.
#pragma once
#include "ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Needed before the first instruction, and whenever registers that an instruction reads have been written since.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending committed groups are in flight.
template <int kPending>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving uses of accumulators across a wait. (The operands must have the accumulators' own
/// type: another type would mean a copy before the wait, for which ptxas would serialise the instructions.)
template <int N>
DEVICE void wgmma_hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
DEVICE void wgmma_hold(i32 (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// ---- shared-memory descriptors ----------------------------------------------------------------

enum class Swizzle : u64 { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };

/// A descriptor of any kind; offsets are in bytes, in multiples of 16.
DEVICE u64 wgmma_descriptor(u32 shared, u32 leading, u32 stride, Swizzle swizzle) {
    return u64((shared & 0x3ffffu) >> 4) | (u64(leading >> 4) << 16) | (u64(stride >> 4) << 32) |
           (u64(swizzle) << 62);
}

/// A K-major tile (rows of A, or of B as [N, K]) with rows of 128 bytes and 128-byte swizzle, as written by a bulk
/// tensor copy with a box of 128 bytes; 8 rows are 1024 bytes. `shared` of the whole tile must be a multiple of 1024. A
/// step along K adds 32 bytes to the address: descriptor + 2.
DEVICE u64 wgmma_descriptor_128b(u32 shared) {
    return wgmma_descriptor(shared, 16, 1024, Swizzle::bytes128);
}

/// An N-major tile [K rows, N columns] of 16-bit values, for B with kTransposeB or A with kTransposeA: panels of 64
/// columns, with rows of 128 bytes and 128-byte swizzle; `panel` is the distance between panels in bytes (K * 128). A
/// step of 16 rows along K adds 2048 bytes to the address: descriptor + 128.
DEVICE u64 wgmma_descriptor_128b_transposed(u32 shared, u32 panel) {
    return wgmma_descriptor(shared, panel, 1024, Swizzle::bytes128);
}

// ---- the instructions -------------------------------------------------------------------------

// The accumulators of an instruction with N columns are operands %0 .. %(N/2 - 1); the others follow.

#define WGMMA_D8 "{%0, %1, %2, %3}"
#define WGMMA_D16 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define WGMMA_D32 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define WGMMA_D64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_D96 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}"
#define WGMMA_D128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WGMMA_D192 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, " \
    "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}"
#define WGMMA_D256 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
    "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, " \
    "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
    "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
    "%126, %127}"

#define WGMMA_OPS4(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define WGMMA_OPS8(C, i) WGMMA_OPS4(C, i), WGMMA_OPS4(C, i + 4)
#define WGMMA_OPS16(C, i) WGMMA_OPS8(C, i), WGMMA_OPS8(C, i + 8)
#define WGMMA_OPS32(C, i) WGMMA_OPS16(C, i), WGMMA_OPS16(C, i + 16)
#define WGMMA_OPS48(C, i) WGMMA_OPS32(C, i), WGMMA_OPS16(C, i + 32)
#define WGMMA_OPS64(C, i) WGMMA_OPS32(C, i), WGMMA_OPS32(C, i + 32)
#define WGMMA_OPS96(C, i) WGMMA_OPS64(C, i), WGMMA_OPS32(C, i + 64)
#define WGMMA_OPS128(C, i) WGMMA_OPS64(C, i), WGMMA_OPS64(C, i + 64)

// One instruction. SHAPE: its type suffixes; C: the constraint of an accumulator; H = N / 2; A, B, P (and A0..A3):
// numbers of operands; TAIL: the immediates after the predicate.
#define WGMMA_SS(N, H, C, SHAPE, A, B, P, TAIL, ...)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" P                                    \
                 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #N SHAPE " " WGMMA_D##N ", %" A     \
                 ", %" B ", p" TAIL ";\n\t}"                                                     \
                 : WGMMA_OPS##H(C, 0)                                                              \
                 : "l"(a), "l"(b), "r"(int(accumulate)) __VA_OPT__(, ) __VA_ARGS__)
#define WGMMA_RS(N, H, C, SHAPE, A0, A1, A2, A3, B, P, TAIL, ...)                                  \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" P                                    \
                 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #N SHAPE " " WGMMA_D##N ", {%" A0   \
                 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p" TAIL ";\n\t}"                         \
                 : WGMMA_OPS##H(C, 0)                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                             \
                   "r"(int(accumulate)) __VA_OPT__(, ) __VA_ARGS__)

// Chooses the instruction by N.
#define WGMMA_SS_ANY(C, SHAPE, TAIL_OF, ...) \
    if constexpr (N == 8) { \
        WGMMA_SS(8, 4, C, SHAPE, "4", "5", "6", TAIL_OF("7"), __VA_ARGS__); \
    } else if constexpr (N == 16) { \
        WGMMA_SS(16, 8, C, SHAPE, "8", "9", "10", TAIL_OF("11"), __VA_ARGS__); \
    } else if constexpr (N == 32) { \
        WGMMA_SS(32, 16, C, SHAPE, "16", "17", "18", TAIL_OF("19"), __VA_ARGS__); \
    } else if constexpr (N == 64) { \
        WGMMA_SS(64, 32, C, SHAPE, "32", "33", "34", TAIL_OF("35"), __VA_ARGS__); \
    } else if constexpr (N == 96) { \
        WGMMA_SS(96, 48, C, SHAPE, "48", "49", "50", TAIL_OF("51"), __VA_ARGS__); \
    } else if constexpr (N == 128) { \
        WGMMA_SS(128, 64, C, SHAPE, "64", "65", "66", TAIL_OF("67"), __VA_ARGS__); \
    } else if constexpr (N == 192) { \
        WGMMA_SS(192, 96, C, SHAPE, "96", "97", "98", TAIL_OF("99"), __VA_ARGS__); \
    } else if constexpr (N == 256) { \
        WGMMA_SS(256, 128, C, SHAPE, "128", "129", "130", TAIL_OF("131"), __VA_ARGS__); \
    } else { \
        static_assert(N == 0, "no wgmma wrapper for this N"); \
    }

#define WGMMA_RS_ANY(C, SHAPE, TAIL_OF, ...) \
    if constexpr (N == 8) { \
        WGMMA_RS(8, 4, C, SHAPE, "4", "5", "6", "7", "8", "9", TAIL_OF("10"), __VA_ARGS__); \
    } else if constexpr (N == 16) { \
        WGMMA_RS(16, 8, C, SHAPE, "8", "9", "10", "11", "12", "13", TAIL_OF("14"), __VA_ARGS__); \
    } else if constexpr (N == 32) { \
        WGMMA_RS(32, 16, C, SHAPE, "16", "17", "18", "19", "20", "21", TAIL_OF("22"), __VA_ARGS__); \
    } else if constexpr (N == 64) { \
        WGMMA_RS(64, 32, C, SHAPE, "32", "33", "34", "35", "36", "37", TAIL_OF("38"), __VA_ARGS__); \
    } else if constexpr (N == 96) { \
        WGMMA_RS(96, 48, C, SHAPE, "48", "49", "50", "51", "52", "53", TAIL_OF("54"), __VA_ARGS__); \
    } else if constexpr (N == 128) { \
        WGMMA_RS(128, 64, C, SHAPE, "64", "65", "66", "67", "68", "69", TAIL_OF("70"), __VA_ARGS__); \
    } else if constexpr (N == 192) { \
        WGMMA_RS(192, 96, C, SHAPE, "96", "97", "98", "99", "100", "101", TAIL_OF("102"), __VA_ARGS__); \
    } else if constexpr (N == 256) { \
        WGMMA_RS(256, 128, C, SHAPE, "128", "129", "130", "131", "132", "133", TAIL_OF("134"), __VA_ARGS__); \
    } else { \
        static_assert(N == 0, "no wgmma wrapper for this N"); \
    }

#define WGMMA_NO_TAIL(T) ""
#define WGMMA_SCALES(T) ", 1, 1"
#define WGMMA_SCALES_B(T) ", 1, 1, %" T
#define WGMMA_SCALES_AB(T) ", 1, 1, 0, %" T
#define WGMMA_SCALES_TRANSPOSED_A(T) ", 1, 1, 1, %" T

/// d: [64, N] float; a, b: descriptors of bf16 tiles [64, 16] and [N, 16] (transposed: [16, 64], [16, N]).
template <int N, bool kTransposeB = false, bool kTransposeA = false>
DEVICE void wgmma_bf16(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    if constexpr (kTransposeA) {
        WGMMA_SS_ANY("+f", "k16.f32.bf16.bf16", WGMMA_SCALES_TRANSPOSED_A, "n"(int(kTransposeB)))
    } else {
        WGMMA_SS_ANY("+f", "k16.f32.bf16.bf16", WGMMA_SCALES_AB, "n"(int(kTransposeB)))
    }
}
/// a: this thread's m16k16 fragment.
template <int N, bool kTransposeB = false>
DEVICE void wgmma_bf16(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    WGMMA_RS_ANY("+f", "k16.f32.bf16.bf16", WGMMA_SCALES_B, "n"(int(kTransposeB)))
}

/// As wgmma_bf16, for f16 operands.
template <int N, bool kTransposeB = false>
DEVICE void wgmma_f16(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    WGMMA_SS_ANY("+f", "k16.f32.f16.f16", WGMMA_SCALES_AB, "n"(int(kTransposeB)))
}
template <int N, bool kTransposeB = false>
DEVICE void wgmma_f16(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    WGMMA_RS_ANY("+f", "k16.f32.f16.f16", WGMMA_SCALES_B, "n"(int(kTransposeB)))
}

/// d: [64, N] int32; a, b: descriptors of int8 tiles [64, 32] and [N, 32].
template <int N>
DEVICE void wgmma_s8(i32 (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    WGMMA_SS_ANY("+r", "k32.s32.s8.s8", WGMMA_NO_TAIL)
}
template <int N>
DEVICE void wgmma_s8(i32 (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    WGMMA_RS_ANY("+r", "k32.s32.s8.s8", WGMMA_NO_TAIL)
}

/// d: [64, N] float; a, b: descriptors of e4m3 tiles [64, 32] and [N, 32].
template <int N>
DEVICE void wgmma_e4m3(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    WGMMA_SS_ANY("+f", "k32.f32.e4m3.e4m3", WGMMA_SCALES)
}
template <int N>
DEVICE void wgmma_e4m3(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    WGMMA_RS_ANY("+f", "k32.f32.e4m3.e4m3", WGMMA_SCALES)
}

#endif
