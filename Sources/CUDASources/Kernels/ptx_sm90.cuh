// Instructions of sm_90: stmatrix, mbarrier, bulk (tensor) copies, fences, clusters, setmaxnreg.
// Included by ptx.cuh if the target has them.
#pragma once
#include "numeric.cuh"

/// Stores four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
/// Before a bulk copy reads them, each writing thread must call fence_proxy_async, then a barrier must follow.
DEVICE void stmatrix_x4(u32 shared, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
                 "r"(r0), "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}
/// True in exactly one lane of a converged warp.
DEVICE bool elect_one() {
    u32 r;
    asm volatile(
        "{\n\t.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(r));
    return r != 0;
}

// ---- mbarrier: `barrier` is the shared address of a u64 ---------------------------------------

DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Must be called after mbarrier_init, before other threads, bulk copies or other blocks of the cluster use the
/// barriers.
DEVICE void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and adds `bytes` to what bulk copies have to write in this phase.
DEVICE void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
/// Whether the phase of parity `parity` has completed; may suspend the thread for a while.
DEVICE bool mbarrier_try_wait(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}
/// Waits until the phase of parity `parity` has completed. A new barrier is in phase 0, so waiting for parity 1 returns
/// at once (a producer's first wait for an empty stage), and waiting for parity 0 blocks.
DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}

// ---- proxies ----------------------------------------------------------------------------------

/// Makes this thread's ordinary shared-memory writes visible to wgmma and bulk copies.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies ------------------------------------------------------------------------------

DEVICE void tma_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's store groups still read shared memory.
template <int kPending>
DEVICE void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// Waits until at most kPending of this thread's store groups are incomplete.
template <int kPending>
DEVICE void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Copies `bytes`, a multiple of 16, between addresses that are multiples of 16. One thread issues the copy.
DEVICE void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

// tma_load_Nd(shared, map, barrier, x, y, ...) loads one box of a tensor. Coordinates are indices of elements,
// innermost dimension first; elements with a negative index or past the end become zero. tma_store_Nd(map, shared, x,
// y, ...) stores a box and skips such elements. One thread issues the copy.
#define TMA_LOAD(RANK, PLACES, PARAMETERS, ...)                                                     \
    DEVICE void tma_load_##RANK##d(u32 shared, const TensorMap& map, u32 barrier, PARAMETERS) {     \
        asm volatile("cp.async.bulk.tensor." #RANK                                                  \
                     "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" PLACES \
                     "}], [%2];" ::"r"(shared),                                                     \
                     "l"(&map), "r"(barrier), __VA_ARGS__                                           \
                     : "memory");                                                                   \
    }
#define TMA_COMMA ,
TMA_LOAD(2, "%3, %4", int x TMA_COMMA int y, "r"(x), "r"(y))
TMA_LOAD(3, "%3, %4, %5", int x TMA_COMMA int y TMA_COMMA int z, "r"(x), "r"(y), "r"(z))
TMA_LOAD(4, "%3, %4, %5, %6", int x TMA_COMMA int y TMA_COMMA int z TMA_COMMA int w, "r"(x),
         "r"(y), "r"(z), "r"(w))
#undef TMA_LOAD

#define TMA_STORE(RANK, PLACES, PARAMETERS, ...)                                                    \
    DEVICE void tma_store_##RANK##d(const TensorMap& map, u32 shared, PARAMETERS) {                 \
        asm volatile("cp.async.bulk.tensor." #RANK                                                  \
                     "d.global.shared::cta.tile.bulk_group [%0, {" PLACES "}], [%1];" ::"l"(&map),  \
                     "r"(shared), __VA_ARGS__                                                       \
                     : "memory");                                                                   \
    }
TMA_STORE(2, "%2, %3", int x TMA_COMMA int y, "r"(x), "r"(y))
TMA_STORE(4, "%2, %3, %4, %5", int x TMA_COMMA int y TMA_COMMA int z TMA_COMMA int w, "r"(x),
          "r"(y), "r"(z), "r"(w))
#undef TMA_STORE
#undef TMA_COMMA

/// Loads a 2-d box to the same shared address in every block whose bit is set in `blocks`. Each of these blocks counts
/// the bytes at its own barrier, which has the same address too.
DEVICE void tma_load_2d_multicast(u32 shared, const TensorMap& map, u32 barrier, int x, int y,
                                  u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}

// ---- clusters ---------------------------------------------------------------------------------

DEVICE u32 cluster_rank() {
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// ---- registers --------------------------------------------------------------------------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
/// Reduces (`inc`: raises) the registers per thread to kCount, a multiple of 8, for all four warps of a warpgroup. The
/// kernel needs __launch_bounds__(threads, 1).
template <int kCount>
DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
#endif
