// PTX instructions as functions, one per instruction and named after it (PTX ISA 9.0).
//
// From sm_80: mma, ldmatrix, cp.async. From sm_90: stmatrix, mbarrier, bulk tensor copies (TMA),
// fences, clusters. From sm_90a: setmaxnreg (wgmma is in wgmma.cuh).
// Addresses of shared memory are u32 byte addresses in the shared window; see `shared_address`.
#pragma once
#include "numeric.cuh"

/// The 128-byte descriptor of a tensor in global memory for bulk tensor copies. Kernels take it as
/// `const __grid_constant__ TensorMap map`.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

DEVICE int lane_id() {
    u32 r;
    asm("mov.u32 %0, %%laneid;" : "=r"(r));
    return int(r);
}

/// The warp's index in its block.
DEVICE int warp_id() { return int(threadIdx.x) / 32; }

/// The same, but the compiler knows that it is equal in all lanes. All 32 lanes must call it: in a branch that some
/// lanes do not take, the shuffle would wait for ever.
DEVICE int uniform_warp_id() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0); }

// ---- arithmetic -------------------------------------------------------------------------------

/// 2^x, relative error 2^-22.5; exp2(-inf) = 0.
DEVICE float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DEVICE float rcp_approx(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
/// tanh, maximal relative error 2^-11.
DEVICE float tanh_approx(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/// The sum over kWidth neighbouring lanes, a power of two, in every lane; `warp_max` is the largest.
template <int kWidth = 32>
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    return x;
}
template <int kWidth = 32>
DEVICE float warp_max(float x) {
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    }
    return x;
}

// ---- global memory with cache hints -----------------------------------------------------------

/// Loads 16 bytes that are read only once, bypassing L1.
DEVICE uint4 load_streaming(const void* p) {
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// ---- asynchronous copies of sm_80 -------------------------------------------------------------

/// Copies 16 bytes from global to shared memory, bypassing L1. If `valid` is false, the bytes become zero; the global
/// address is not read then, but must still be a legal pointer.
DEVICE void cp_async_16(u32 shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
/// Copies 4 or 8 bytes, through L1.
template <int kBytes>
DEVICE void cp_async_small(u32 shared, const void* global, bool valid = true) {
    static_assert(kBytes == 4 || kBytes == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global),
                 "n"(kBytes), "r"(valid ? kBytes : 0)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `kPending` of this thread's most recent groups are in flight.
template <int kPending>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- 8x8 matrices between shared memory and registers -----------------------------------------

/// Loads four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
DEVICE void ldmatrix_x2(u32 (&r)[2], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(u32 (&r)[2], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}

// ---- mma.sync: d = a * b + c for one warp, a row-major, b column-major ------------------------

/// [16, 16] x [16, 8], bf16 → float.
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// [16, 16] x [16, 8], f16 → float.
DEVICE void mma_m16n8k16_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// [16, 16] x [16, 8], f16 → f16 (two packed pairs).
DEVICE void mma_m16n8k16_f16_f16(u32 (&d)[2], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 "
        "{%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// The nearest number of TF32 (ten bits after the point), as a float.
DEVICE float round_tf32(float x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return __uint_as_float(y);
}
/// [16, 8] x [8, 8], tf32 → float.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// [16, 32] x [32, 8], int8 → int32.
DEVICE void mma_m16n8k32_s8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#if __CUDA_ARCH__ >= 890
/// [16, 32] x [32, 8], e4m3 → float (accumulated with only about 14 bits on sm_89 and sm_90).
DEVICE void mma_m16n8k32_e4m3(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// [16, 32] x [32, 8], e4m3 → f16 (two packed pairs).
DEVICE void mma_m16n8k32_e4m3_f16(u32 (&d)[2], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 "
        "{%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// ---- barriers within a block ------------------------------------------------------------------

/// Waits for `count` threads (a multiple of 32) at barrier `id` (1..15; 0 is __syncthreads).
DEVICE void bar_sync(int id, int count) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}
/// Arrives at the barrier without waiting.
DEVICE void bar_arrive(int id, int count) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory");
}

#if __CUDA_ARCH__ >= 900
#include "ptx_sm90.cuh"
#endif
