// A multiprocessor of threads that take turns: what kernels and the stand-in for the driver know of each other.
//
// Each CUDA thread of a block is a fibre of one thread of this machine. It runs until it has to wait: for the lanes of
// its warp, a barrier, a copy. Asynchronous work is done as late as the kernel allows, so that a missing wait shows.
#pragma once
#include <cstddef>
#include <cstdint>

struct Extent {
    unsigned x = 1, y = 1, z = 1;
};

namespace machine {

/// Bytes before which no shared address lies, so that null is none.
constexpr uint32_t kSharedBase = 1024;
/// More than any card has.
constexpr uint32_t kSharedLimit = 256 * 1024;

struct Block;
struct Fibre;

/// What a thread can see of itself.
struct Thread {
    Extent thread, block, blockDim, gridDim;
    unsigned lane, warp, rank;  // rank: of the block in its cluster
};
Thread& self() __attribute__((const));

/// Ends the process: the kernel did what no card would survive.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// Waits until every thread of `mask` in this warp (`size` 32) or of this warpgroup (128) is here, and calls `work` once
/// with what each one brought, null for those outside of the mask. `what` must be the same for all.
void meet(unsigned size, uint32_t mask, const char* what, void* mine, void (*work)(void* const* lanes));

/// Waits at barrier `id` for `count` threads, 0 for all that still run. Returns whether any of them brought true.
bool barrier(unsigned id, unsigned count, bool waits, bool brought = false);

/// The block's shared memory, and a checked pointer into that of this block or of another one of the cluster.
uint8_t* dynamic_shared();
void* at_shared(uint32_t address, size_t bytes, int rank = -1);
uint32_t shared_address(const void* pointer);

/// Lets the other threads run until `*word` is no longer `old`.
void wait_change(const volatile uint64_t* word, uint64_t old);

// ---- copies that go on by themselves ----------------------------------------------------------

/// A copy of this thread's next group; nothing is read or written before the group is waited for.
struct Copy {
    void* target;
    const void* source;
    uint32_t bytes, zeros;
};
void copy_async(const Copy& copy);
void copy_commit();
void copy_wait(unsigned pending);

/// A tensor's description, in the 128 bytes that a kernel passes on.
struct TensorMap {
    uint8_t* base;
    uint64_t strides[4];
    uint32_t extents[5];
    uint16_t box[5];
    uint8_t steps[5], rank, element, swizzle;
};
static_assert(sizeof(TensorMap) <= 128);

/// Copies between global and shared memory. A load counts its bytes at `mbarrier` in each block of `blocks` (0: this
/// one) some time later; a store reads shared memory when its group is waited for.
struct BulkCopy {
    TensorMap map;
    const void* source;  // of a copy without a map
    uint32_t shared, bytes, mbarrier;
    int32_t place[5];
    uint16_t blocks;
};
void bulk_load(const BulkCopy& copy);
void bulk_store(const BulkCopy& copy);
void bulk_commit();
void bulk_wait(unsigned pending);

// ---- mbarriers --------------------------------------------------------------------------------

void mbarrier_init(uint32_t address, uint32_t arrivals);
void mbarrier_arrive(uint32_t address, uint32_t bytes, int rank = -1);
bool mbarrier_try_wait(uint32_t address, uint32_t parity);

void cluster_arrive();
void cluster_wait();

// ---- launches ---------------------------------------------------------------------------------

struct Launch {
    const char* name;
    void (*kernel)(void** arguments);
    void** arguments;
    Extent grid, block, cluster;
    uint32_t shared;
};
void run(const Launch& launch);

}  // namespace machine
