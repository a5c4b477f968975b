// The PTX instructions that kernels use, as functions. The name of each is its opcode with `_` in place of `.` and `::`,
// its parameters are the operands in their order; a list in braces is a List, an address in brackets its value.
// PTX ISA 9.0: https://docs.nvidia.com/cuda/parallel-thread-execution
#pragma once
#include "cuda.h"

namespace machine {

using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;

/// References to the operands of a list.
template <class T, int N>
struct List {
    T* operands[N];
    T& operator[](int i) const { return *operands[i]; }
};
template <class First, class... Rest>
auto list(First&& first, Rest&&... rest) {
    using T = std::remove_cvref_t<First>;
    return List<T, 1 + sizeof...(Rest)>{const_cast<T*>(&first), const_cast<T*>(&rest)...};
}

// ---- numbers ----------------------------------------------------------------------------------

inline float from_bf16(u16 bits) { return std::bit_cast<float>(u32(bits) << 16); }
inline u16 to_bf16(float x) {
    if (x != x) return 0x7fff;
    const u32 bits = std::bit_cast<u32>(x);
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_f16(u16 bits) { return float(std::bit_cast<_Float16>(bits)); }
inline u16 to_f16(float x) { return x != x ? 0x7fff : std::bit_cast<u16>(_Float16(x)); }
inline float from_e4m3(uint8_t bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if ((bits & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fffffffu);
    const float x = exponent == 0 ? std::ldexp(float(mantissa), -9) : std::ldexp(float(8 + mantissa), exponent - 10);
    return bits & 0x80 ? -x : x;
}
inline uint8_t to_e4m3(float x) {
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    if (x != x) return 0x7f;
    const float a = std::fmin(std::fabs(x), 448.0f);
    // Steps are 2^-9 below 2^-6, and an eighth of the power of two above.
    const int exponent = a < 0x1p-6f ? -6 : std::ilogb(a);
    const int steps = int(std::nearbyint(std::ldexp(a, 3 - exponent)));
    if (a < 0x1p-6f) return sign | uint8_t(steps);
    return sign | uint8_t(((exponent + 7) << 3) + steps - 8);
}

inline void ptx_cvt_rn_bf16_f32(u16& d, float a) { d = to_bf16(a); }
inline void ptx_cvt_rn_bf16x2_f32(u32& d, float high, float low) { d = u32(to_bf16(high)) << 16 | to_bf16(low); }
inline void ptx_cvt_rn_f16_f32(u16& d, float a) { d = to_f16(a); }
inline void ptx_cvt_rn_f16x2_f32(u32& d, float high, float low) { d = u32(to_f16(high)) << 16 | to_f16(low); }
inline void ptx_cvt_f32_f16(float& d, u16 a) { d = from_f16(a); }
inline void ptx_cvt_rn_satfinite_e4m3x2_f32(u16& d, float high, float low) {
    d = u16(to_e4m3(high) << 8 | to_e4m3(low));
}
inline void ptx_cvt_rn_f16x2_e4m3x2(u32& d, u16 a) {
    d = u32(to_f16(from_e4m3(uint8_t(a >> 8)))) << 16 | to_f16(from_e4m3(uint8_t(a)));
}
inline void ptx_cvt_rna_tf32_f32(u32& d, float a) {
    // To nearest, ties away from zero.
    d = std::isfinite(a) ? (std::bit_cast<u32>(a) + 0x1000) & ~0x1fffu : std::bit_cast<u32>(a);
}
inline void ptx_cvt_rni_sat_s8_f32(int& d, float a) {
    d = a != a ? 0 : int(std::fmin(std::fmax(std::nearbyint(a), -128.0f), 127.0f));
}
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
inline void ptx_ex2_approx_ftz_f32(float& d, float a) { d = flushed(std::exp2(flushed(a))); }
inline void ptx_rcp_approx_ftz_f32(float& d, float a) { d = flushed(1 / flushed(a)); }
inline void ptx_tanh_approx_f32(float& d, float a) { d = std::tanh(a); }
inline void ptx_setp_ne_b32(bool& d, int a, int b) { d = a != b; }
inline void ptx_selp_u32(u32& d, u32 a, u32 b, bool which) { d = which ? a : b; }
inline void ptx_mov_b32(const List<u16, 2>& d, u32 a) {
    d[0] = u16(a);
    d[1] = u16(a >> 16);
}
inline void ptx_mov_u32(u32& d, u32 a) { d = a; }
inline u32 ptx_laneid() { return self().lane; }
inline u32 ptx_cluster_ctarank() { return self().rank; }
template <class Work>
u32 each_half(Work work) {
    return u32(to_f16(work(16))) << 16 | to_f16(work(0));
}
inline void ptx_set_ge_f16x2_f16x2(u32& d, u32 a, u32 b) {
    d = each_half([&](int bit) { return from_f16(u16(a >> bit)) >= from_f16(u16(b >> bit)) ? 1.0f : 0.0f; });
}
inline void ptx_add_f16x2(u32& d, u32 a, u32 b) {
    d = each_half([&](int bit) { return from_f16(u16(a >> bit)) + from_f16(u16(b >> bit)); });
}

// ---- memory -----------------------------------------------------------------------------------

inline void ptx_ld_global_nc_L1_no_allocate_v4_u32(const List<u32, 4>& d, const void* p) {
    for (int i = 0; i < 4; i++) d[i] = static_cast<const u32*>(p)[i];
}
inline void ptx_ld_global_nc_u32(u32& d, const void* p) { d = *static_cast<const u32*>(p); }
inline void ptx_ld_global_nc_v2_f32(const List<float, 2>& d, const void* p) {
    for (int i = 0; i < 2; i++) d[i] = static_cast<const float*>(p)[i];
}
inline void ptx_ld_shared_u32(u32& d, u32 address) { memcpy(&d, at_shared(address, 4), 4); }
inline void ptx_ld_shared_v2_u32(const List<u32, 2>& d, u32 address) {
    const auto* p = static_cast<const u32*>(at_shared(address, 8));
    for (int i = 0; i < 2; i++) d[i] = p[i];
}
inline void ptx_st_shared_u16(u32 address, u16 a) { memcpy(at_shared(address, 2), &a, 2); }
inline void ptx_st_shared_u32(u32 address, u32 a) { memcpy(at_shared(address, 4), &a, 4); }
inline void ptx_st_shared_v2_f32(u32 address, const List<float, 2>& a) {
    auto* p = static_cast<float*>(at_shared(address, 8));
    for (int i = 0; i < 2; i++) p[i] = a[i];
}

inline void copy(u32 shared, const void* global, u32 size, u32 bytes) {
    if (shared % size != 0 || (bytes > 0 && reinterpret_cast<uintptr_t>(global) % size != 0)) {
        fail("an asynchronous copy of %u bytes from %p to shared address %u", size, global, shared);
    }
    copy_async({at_shared(shared, size), global, bytes, size - bytes});
}
inline void ptx_cp_async_cg_shared_global_L2_128B(u32 shared, const void* global, u32 size, u32 bytes) {
    copy(shared, global, size, bytes);
}
inline void ptx_cp_async_ca_shared_global(u32 shared, const void* global, u32 size, u32 bytes) {
    copy(shared, global, size, bytes);
}
inline void ptx_cp_async_commit_group() { copy_commit(); }
inline void ptx_cp_async_wait_group(u32 pending) { copy_wait(pending); }

// ---- barriers, fences, registers --------------------------------------------------------------

inline void ptx_bar_sync(u32 id, u32 count) { barrier(id, count, true); }
inline void ptx_bar_arrive(u32 id, u32 count) { barrier(id, count, false); }
inline void ptx_barrier_cluster_arrive_release_aligned() { cluster_arrive(); }
inline void ptx_barrier_cluster_wait_acquire_aligned() { cluster_wait(); }
inline void ptx_elect_sync(bool& d, u32) { d = self().lane == 0; }
inline void ptx_fence_mbarrier_init_release_cluster() {}
inline void ptx_fence_proxy_async_shared_cta() {}
inline void ptx_prefetch_tensormap(const void*) {}
inline void ptx_setmaxnreg_dec_sync_aligned_u32(u32) {}
inline void ptx_setmaxnreg_inc_sync_aligned_u32(u32) {}

inline void ptx_mbarrier_init_shared_cta_b64(u32 address, u32 arrivals) { mbarrier_init(address, arrivals); }
inline void ptx_mbarrier_arrive_shared_cta_b64(u32 address) { mbarrier_arrive(address, 0); }
inline void ptx_mbarrier_arrive_expect_tx_shared_cta_b64(u32 address, u32 bytes) { mbarrier_arrive(address, bytes); }
inline void ptx_mbarrier_try_wait_parity_shared_cta_b64(bool& d, u32 address, u32 parity) {
    d = mbarrier_try_wait(address, parity);
}
/// Addresses of other blocks have the block's number above their bits.
inline void ptx_mapa_shared_cluster_u32(u32& d, u32 address, u32 rank) { d = address | (rank + 1) << 24; }
inline void ptx_mbarrier_arrive_shared_cluster_b64(u32 address) {
    mbarrier_arrive(address & 0xffffff, 0, int(address >> 24) - 1);
}

// ---- bulk copies ------------------------------------------------------------------------------

template <int N>
BulkCopy bulk(u32 shared, const void* map, const List<int, N>& place, u32 mbarrier = 0, u16 blocks = 0) {
    BulkCopy copy{};
    memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.rank != N) fail("a copy of rank %d by a map of rank %d", N, copy.map.rank);
    if (shared % 128 != 0) fail("a bulk copy at shared address %u", shared);
    copy.shared = shared;
    copy.mbarrier = mbarrier;
    copy.blocks = blocks;
    for (int i = 0; i < N; i++) copy.place[i] = place[i];
    return copy;
}
#define MACHINE_TMA_LOAD(N)                                                                                       \
    inline void ptx_cp_async_bulk_tensor_##N##d_shared_cluster_global_tile_mbarrier_complete_tx_bytes(            \
        u32 shared, const void* map, const List<int, N>& place, u32 mbarrier) {                                   \
        bulk_load(bulk(shared, map, place, mbarrier));                                                            \
    }
MACHINE_TMA_LOAD(2)
MACHINE_TMA_LOAD(3)
MACHINE_TMA_LOAD(4)
#undef MACHINE_TMA_LOAD
inline void ptx_cp_async_bulk_tensor_2d_shared_cluster_global_tile_mbarrier_complete_tx_bytes_multicast_cluster(
    u32 shared, const void* map, const List<int, 2>& place, u32 mbarrier, u16 blocks) {
    bulk_load(bulk(shared, map, place, mbarrier, blocks));
}
inline void ptx_cp_async_bulk_tensor_2d_global_shared_cta_tile_bulk_group(
    const void* map, const List<int, 2>& place, u32 shared) {
    bulk_store(bulk(shared, map, place));
}
inline void ptx_cp_async_bulk_tensor_4d_global_shared_cta_tile_bulk_group(
    const void* map, const List<int, 4>& place, u32 shared) {
    bulk_store(bulk(shared, map, place));
}
inline void ptx_cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(
    u32 shared, const void* global, u32 bytes, u32 mbarrier) {
    if (shared % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0 || bytes % 16 != 0) {
        fail("a bulk copy of %u bytes from %p to shared address %u", bytes, global, shared);
    }
    BulkCopy copy{};
    copy.source = global;
    copy.shared = shared;
    copy.bytes = bytes;
    copy.mbarrier = mbarrier;
    bulk_load(copy);
}
inline void ptx_cp_async_bulk_commit_group() { bulk_commit(); }
inline void ptx_cp_async_bulk_wait_group(u32 pending) { bulk_wait(pending); }
inline void ptx_cp_async_bulk_wait_group_read(u32 pending) { bulk_wait(pending); }

}  // namespace machine
#include "tensor_core.h"
