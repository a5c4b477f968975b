// Fibres, blocks and clusters.
#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace machine {
namespace {

constexpr size_t kStack = 512 * 1024;
constexpr unsigned kMostThreads = 1024;

/// The groups of copies of one thread, the oldest first, and the one that is open.
template <class Element>
struct Groups {
    std::vector<std::vector<Element>> committed;
    std::vector<Element> open;

    void commit() {
        committed.push_back(std::move(open));
        open.clear();
    }
    template <class Work>
    void wait(size_t pending, Work work) {
        if (committed.size() <= pending) return;
        const auto end = committed.end() - ptrdiff_t(pending);
        for (auto group = committed.begin(); group != end; ++group) {
            for (const Element& one : *group) work(one);
        }
        committed.erase(committed.begin(), end);
    }
};

/// Threads that meet: a warp or a warpgroup.
struct Meeting {
    uint64_t generation = 0;
    uint32_t present = 0, mask = 0;
    unsigned arrived = 0;
    const char* what = nullptr;
    const void* place = nullptr;  // in the kernel's code
    void (*work)(void* const*) = nullptr;
    void* brought[128] = {};
};

struct Barrier {
    uint64_t phase = 0;
    unsigned arrived = 0, count = 0;
    bool any = false, result = false;
};

/// A barrier in shared memory, as these threads see its 64 bits.
struct MBarrier {
    uint64_t phase : 8, expected : 12, pending : 12, bytes : 32;
    static MBarrier of(uint64_t word) { return __builtin_bit_cast(MBarrier, word); }
    uint64_t word() const { return __builtin_bit_cast(uint64_t, *this); }
};
static_assert(sizeof(MBarrier) == 8);

}  // namespace

struct Fibre {
    Thread thread;
    void* stack_pointer = nullptr;
    const volatile uint64_t* word = nullptr;
    uint64_t old = 0;
    uint64_t cluster_phase = 0;  // in which it arrived
    bool runs = false;
    Groups<Copy> copies;
    Groups<BulkCopy> stores;
};

namespace {

struct Cluster;

}  // namespace

/// One block, and what it keeps from block to block: stacks and shared memory.
struct Block {
    uint8_t* shared = nullptr;
    uint8_t* stacks = nullptr;
    std::vector<Fibre> fibres{kMostThreads};
    std::vector<BulkCopy> loads;
    Meeting warps[kMostThreads / 32], warpgroups[kMostThreads / 128];
    Barrier barriers[16];
    const Launch* launch = nullptr;
    Cluster* cluster = nullptr;
    Extent index;
    unsigned rank = 0, count = 0, live = 0;
    uint32_t alive[kMostThreads / 32];  // lanes of each warp
    Fibre* current = nullptr;
    void* scheduler = nullptr;
    std::minstd_rand random{1};

    Block() {
        shared = static_cast<uint8_t*>(aligned_alloc(1024, kSharedLimit));
        void* memory = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for the stacks of a block");
        stacks = static_cast<uint8_t*>(memory);
    }
    ~Block() {
        free(shared);
        munmap(stacks, kMostThreads * kStack);
    }
    void run();
    bool finish_loads();
    void settle(Meeting& meeting, unsigned size, unsigned first);
    void settle(Barrier& barrier);
};

namespace {

/// Blocks that see each other's shared memory. Barriers and copies change under its lock.
struct Cluster {
    std::vector<Block*> blocks;
    std::recursive_mutex lock;
    uint64_t phase = 0;
    unsigned arrived = 0, expected = 0;
};

thread_local Block* block = nullptr;

/// Whether threads take turns in a random order.
const bool kShuffles = getenv("EMULATOR_SHUFFLE") != nullptr;

extern "C" void machine_switch(void** from, void* to);
asm(R"(
.text
.globl machine_switch
.type machine_switch, @function
machine_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size machine_switch, .-machine_switch
)");

void leave() { machine_switch(&block->current->stack_pointer, block->scheduler); }

void finish_copy(const Copy& copy) {
    memcpy(copy.target, copy.source, copy.bytes);
    memset(static_cast<uint8_t*>(copy.target) + copy.bytes, 0, copy.zeros);
}

/// The place of byte `address` in memory that is permuted in chunks of 16 bytes.
uint32_t swizzled(uint32_t address, int mode) {
    const uint32_t mask = mode == 0 ? 0 : (8u >> (3 - mode)) - 1;
    return address ^ ((address >> 7 & mask) << 4);
}

/// Calls `work(pointer into the tensor or null, shared address)` for each 16 bytes of a box.
template <class Work>
uint32_t each_chunk(const BulkCopy& copy, Work work) {
    const TensorMap& map = copy.map;
    uint32_t counts[5] = {1, 1, 1, 1, 1};
    for (int i = 0; i < map.rank; i++) counts[i] = (map.box[i] + map.steps[i] - 1) / map.steps[i];
    const uint32_t row = counts[0] * map.element;
    if (row % 16 != 0 || map.steps[0] != 1) fail("a box whose rows are %u bytes", row);
    uint32_t offset = 0;
    for (uint32_t w = 0; w < counts[3] * counts[4]; w++) {
        for (uint32_t z = 0; z < counts[2]; z++) {
            for (uint32_t y = 0; y < counts[1]; y++) {
                const int64_t at[5] = {copy.place[0], copy.place[1] + int64_t(y) * map.steps[1],
                                       copy.place[2] + int64_t(z) * map.steps[2],
                                       copy.place[3] + int64_t(w % counts[3]) * map.steps[3],
                                       copy.place[4] + int64_t(w / counts[3]) * map.steps[4]};
                uint8_t* line = map.base;
                for (int i = 1; i < map.rank; i++) {
                    if (at[i] < 0 || at[i] >= map.extents[i]) line = nullptr;
                    if (line) line += at[i] * int64_t(map.strides[i - 1]);
                }
                for (uint32_t x = 0; x < row; x += 16, offset += 16) {
                    // The edge of a tensor may lie within a chunk.
                    const int64_t first = at[0] + x / map.element;
                    const int64_t low = first < 0 ? -first : 0;
                    int64_t high = int64_t(map.extents[0]) - first;
                    if (high > 16 / map.element) high = 16 / map.element;
                    work(line ? line + first * map.element : nullptr, low * map.element,
                         high < low ? low * map.element : high * map.element,
                         swizzled(copy.shared + offset, map.swizzle));
                }
            }
        }
    }
    return offset;
}

void count_bytes(Block& target, uint32_t address, uint32_t bytes);

void finish_load(const BulkCopy& copy) {
    Cluster& cluster = *block->cluster;
    std::lock_guard guard(cluster.lock);
    for (unsigned rank = 0; rank < cluster.blocks.size(); rank++) {
        if (!(copy.blocks >> rank & 1)) continue;
        uint32_t bytes = copy.bytes;
        if (copy.source) {
            memcpy(at_shared(copy.shared, bytes, int(rank)), copy.source, bytes);
        } else {
            bytes = each_chunk(copy, [&](const uint8_t* source, int64_t low, int64_t high, uint32_t shared) {
                auto* target = static_cast<uint8_t*>(at_shared(shared, 16, int(rank)));
                memset(target, 0, 16);
                if (source && high > low) memcpy(target + low, source + low, size_t(high - low));
            });
        }
        count_bytes(*cluster.blocks[rank], copy.mbarrier, bytes);
    }
}

void finish_store(const BulkCopy& copy) {
    each_chunk(copy, [](uint8_t* target, int64_t low, int64_t high, uint32_t shared) {
        if (target && high > low) {
            memcpy(target + low, static_cast<uint8_t*>(at_shared(shared, 16)) + low, size_t(high - low));
        }
    });
}

uint64_t* mbarrier_word(Block& of, uint32_t address) {
    if (address % 8 != 0) fail("an mbarrier at address %u", address);
    return reinterpret_cast<uint64_t*>(of.shared + address);
}

void settle(uint64_t* word, MBarrier barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.pending = barrier.expected;
        barrier.phase++;
    }
    std::atomic_ref(*word).store(barrier.word());
}

void count_bytes(Block& target, uint32_t address, uint32_t bytes) {
    uint64_t* word = mbarrier_word(target, address);
    MBarrier barrier = MBarrier::of(*word);
    // Copies may land before they are expected: the count wraps, as in hardware.
    barrier.bytes -= bytes;
    settle(word, barrier);
}

/// Where a fibre begins and ends.
void body() {
    Fibre& fibre = *block->current;
    block->launch->kernel(block->launch->arguments);
    fibre.copies.commit();
    fibre.copies.wait(0, finish_copy);
    // The shared memory that they read goes to another block.
    if (!fibre.stores.committed.empty() || !fibre.stores.open.empty()) fail("a thread ends before its bulk stores");
    fibre.runs = false;
    block->live--;
    // Whoever waits for all that still run waits for one less.
    const unsigned index = unsigned(&fibre - block->fibres.data());
    block->alive[index / 32] &= ~(1u << index % 32);
    block->settle(block->warps[index / 32], 32, index / 32 * 32);
    block->settle(block->warpgroups[index / 128], 128, index / 128 * 128);
    block->settle(block->barriers[0]);
    leave();
    abort();
}

}  // namespace

Thread& self() { return block->current->thread; }

void fail(const char* format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "emulated GPU: ");
    if (block && block->launch) fprintf(stderr, "%s: ", block->launch->name);
    vfprintf(stderr, format, list);
    if (block && block->current) {
        const Thread& thread = block->current->thread;
        fprintf(stderr, " (block %u %u %u, thread %u)", thread.block.x, thread.block.y, thread.block.z,
                thread.thread.x);
    }
    fprintf(stderr, "\n");
    abort();
}

uint8_t* dynamic_shared() { return block->shared + kSharedBase; }

void* at_shared(uint32_t address, size_t bytes, int rank) {
    if (address < kSharedBase || address + bytes > kSharedBase + block->launch->shared) {
        fail("%zu bytes at shared address %u of %u", bytes, address - kSharedBase, block->launch->shared);
    }
    return (rank < 0 ? block : block->cluster->blocks[size_t(rank)])->shared + address;
}

uint32_t shared_address(const void* pointer) {
    const auto offset = static_cast<const uint8_t*>(pointer) - block->shared;
    if (offset < kSharedBase || offset > kSharedBase + int64_t(block->launch->shared)) {
        fail("the shared address of something else");
    }
    return uint32_t(offset);
}

void wait_change(const volatile uint64_t* word, uint64_t old) {
    block->current->word = word;
    block->current->old = old;
    leave();
}

void meet(unsigned size, uint32_t mask, const char* what, void* mine, void (*work)(void* const*)) {
    const unsigned index = unsigned(block->current - block->fibres.data());
    Meeting& meeting = size == 32 ? block->warps[index / 32] : block->warpgroups[index / 128];
    if (meeting.arrived > 0 && (meeting.work != work || meeting.mask != mask)) {
        fail("threads meet at %s and %s, masks %x and %x", meeting.what, what, meeting.mask, mask);
    }
    // In a branch that some threads do not take, they would wait for ever on a card.
    const void* place = __builtin_return_address(0);
    if (meeting.arrived > 0 && meeting.place != place) fail("threads meet at two places of %s", what);
    meeting.place = place;
    meeting.what = what;
    meeting.work = work;
    meeting.mask = mask;
    meeting.brought[index % size] = mine;
    meeting.arrived++;
    const uint64_t old = meeting.generation;
    block->settle(meeting, size, index / size * size);
    while (meeting.generation == old) wait_change(&meeting.generation, old);
}

/// Threads that have ended, and those that a last warp lacks, are not waited for.
void Block::settle(Meeting& meeting, unsigned size, unsigned first) {
    unsigned expected = 0;
    for (unsigned warp = first / 32; warp < (first + size) / 32; warp++) {
        expected += unsigned(std::popcount(size == 32 ? alive[warp] & meeting.mask : alive[warp]));
    }
    if (meeting.arrived == 0 || meeting.arrived < expected) return;
    meeting.work(meeting.brought);
    memset(meeting.brought, 0, sizeof meeting.brought);
    meeting.arrived = 0;
    meeting.generation++;
}

void Block::settle(Barrier& barrier) {
    if (barrier.arrived == 0 || barrier.arrived < (barrier.count == 0 ? live : barrier.count)) return;
    barrier.result = barrier.any;
    barrier.any = false;
    barrier.arrived = 0;
    barrier.phase++;
}

bool barrier(unsigned id, unsigned count, bool waits, bool brought) {
    Barrier& barrier = block->barriers[id];
    if (barrier.arrived > 0 && barrier.count != count) {
        fail("barrier %u with %u and %u threads", id, barrier.count, count);
    }
    barrier.count = count;
    barrier.any |= brought;
    barrier.arrived++;
    const uint64_t old = barrier.phase;
    block->settle(barrier);
    while (waits && barrier.phase == old) wait_change(&barrier.phase, old);
    return barrier.result;
}

// ---- copies -----------------------------------------------------------------------------------

void copy_async(const Copy& copy) { block->current->copies.open.push_back(copy); }
void copy_commit() { block->current->copies.commit(); }
void copy_wait(unsigned pending) { block->current->copies.wait(pending, finish_copy); }

void bulk_load(const BulkCopy& copy) {
    BulkCopy one = copy;
    if (one.blocks == 0) one.blocks = uint16_t(1u << block->rank);
    block->loads.push_back(one);
}
void bulk_store(const BulkCopy& copy) { block->current->stores.open.push_back(copy); }
void bulk_commit() { block->current->stores.commit(); }
void bulk_wait(unsigned pending) { block->current->stores.wait(pending, finish_store); }

bool Block::finish_loads() {
    if (loads.empty()) return false;
    std::vector<BulkCopy> some;
    some.swap(loads);
    for (const BulkCopy& copy : some) {
        // Some come a turn later than others.
        if (some.size() > 1 && random() % 2 == 0) loads.push_back(copy);
        else finish_load(copy);
    }
    return true;
}

// ---- mbarriers --------------------------------------------------------------------------------

void mbarrier_init(uint32_t address, uint32_t arrivals) {
    at_shared(address, 8);
    MBarrier barrier{};
    barrier.expected = barrier.pending = arrivals;
    *mbarrier_word(*block, address) = barrier.word();
}

void mbarrier_arrive(uint32_t address, uint32_t bytes, int rank) {
    std::lock_guard guard(block->cluster->lock);
    at_shared(address, 8, rank);
    Block& target = rank < 0 ? *block : *block->cluster->blocks[size_t(rank)];
    uint64_t* word = mbarrier_word(target, address);
    MBarrier barrier = MBarrier::of(*word);
    if (barrier.pending == 0) fail("an arrival too many at mbarrier %u", address - kSharedBase);
    barrier.bytes += bytes;
    barrier.pending--;
    settle(word, barrier);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity) {
    auto* word = static_cast<uint64_t*>(at_shared(address, 8));
    const uint64_t now = std::atomic_ref(*word).load();
    if ((MBarrier::of(now).phase & 1) != parity) return true;
    wait_change(word, now);
    return false;
}

void cluster_arrive() {
    Cluster& cluster = *block->cluster;
    std::lock_guard guard(cluster.lock);
    block->current->cluster_phase = cluster.phase;
    if (++cluster.arrived == cluster.expected) {
        cluster.arrived = 0;
        std::atomic_ref(cluster.phase).store(cluster.phase + 1);
    }
}

void cluster_wait() {
    Cluster& cluster = *block->cluster;
    const uint64_t old = block->current->cluster_phase;
    while (std::atomic_ref(cluster.phase).load() == old) wait_change(&cluster.phase, old);
}

// ---- launches ---------------------------------------------------------------------------------

void Block::run() {
    block = this;
    const Extent& size = launch->block;
    count = live = size.x * size.y * size.z;
    loads.clear();
    for (Meeting& one : warps) one = {};
    for (Meeting& one : warpgroups) one = {};
    for (Barrier& one : barriers) one = {};
    memset(alive, 0, sizeof alive);
    // Whatever a kernel reads and did not write is not a number.
    memset(shared, 0xff, kSharedBase + launch->shared);
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) {
        order[i] = i;
        Fibre& fibre = fibres[i];
        fibre = {};
        fibre.thread = {{i % size.x, i / size.x % size.y, i / size.x / size.y}, index, size, launch->grid, i % 32,
                        i / 32, rank};
        fibre.runs = true;
        alive[i / 32] |= 1u << i % 32;
        // The registers that a switch restores, and the place it returns to; then the stack is aligned as after a call.
        void** top = reinterpret_cast<void**>(stacks + (i + 1) * kStack) - 8;
        top[6] = reinterpret_cast<void*>(body);
        top[7] = nullptr;
        fibre.stack_pointer = top;
    }
    auto last = std::chrono::steady_clock::now();
    while (live > 0) {
        bool moved = false;
        if (kShuffles) std::shuffle(order.begin(), order.end(), random);
        for (const unsigned i : order) {
            Fibre& fibre = fibres[i];
            if (!fibre.runs) continue;
            if (fibre.word) {
                if (*fibre.word == fibre.old) continue;
                fibre.word = nullptr;
            }
            moved = true;
            current = &fibre;
            machine_switch(&scheduler, fibre.stack_pointer);
        }
        current = nullptr;
        if (live == 0 && !loads.empty()) fail("a block ends before its bulk loads");
        moved |= finish_loads();
        if (moved) {
            last = std::chrono::steady_clock::now();
            continue;
        }
        // Another block of the cluster may still do what these wait for.
        const bool alone = cluster->blocks.size() == 1;
        if (alone || std::chrono::steady_clock::now() - last > std::chrono::seconds(30)) {
            std::string waiting;
            for (unsigned i = 0; i < count && waiting.size() < 20; i++) {
                if (fibres[i].runs) waiting += " " + std::to_string(i);
            }
            fail("%u threads wait for ever:%s …", live, waiting.c_str());
        }
        std::this_thread::yield();
    }
}

void run(const Launch& launch) {
    static std::mutex one_launch;
    std::lock_guard guard(one_launch);
    const unsigned size = launch.cluster.x * launch.cluster.y * launch.cluster.z;
    if (size != launch.cluster.x) fail("%s: a cluster of %u blocks that is no row", launch.name, size);
    const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    if (launch.grid.x % size != 0) fail("%s: %u blocks in clusters of %u", launch.name, launch.grid.x, size);
    static std::vector<std::unique_ptr<Block>> all;
    const unsigned machines = std::max(1u, std::thread::hardware_concurrency());
    const unsigned teams = std::max(1u, unsigned(std::min<uint64_t>(machines / size, blocks / size)));
    while (all.size() < teams * size) all.push_back(std::make_unique<Block>());
    std::atomic<uint64_t> next = 0;
    std::vector<std::unique_ptr<Cluster>> clusters;
    std::vector<std::unique_ptr<std::barrier<>>> turns;
    std::vector<uint64_t> number(teams);
    for (unsigned team = 0; team < teams; team++) {
        clusters.push_back(std::make_unique<Cluster>());
        turns.push_back(std::make_unique<std::barrier<>>(size));
        for (unsigned rank = 0; rank < size; rank++) clusters[team]->blocks.push_back(all[team * size + rank].get());
        clusters[team]->expected = size * launch.block.x * launch.block.y * launch.block.z;
    }
    auto work = [&](unsigned team, unsigned rank) {
        Block& mine = *all[team * size + rank];
        mine.launch = &launch;
        mine.cluster = clusters[team].get();
        mine.rank = rank;
        for (;;) {
            if (rank == 0) number[team] = next++;
            if (size > 1) turns[team]->arrive_and_wait();
            const uint64_t first = number[team] * size;
            if (first >= blocks) return;
            const uint64_t at = first + rank;
            mine.index = {unsigned(at % launch.grid.x), unsigned(at / launch.grid.x % launch.grid.y),
                          unsigned(at / launch.grid.x / launch.grid.y)};
            mine.run();
            if (size > 1) turns[team]->arrive_and_wait();
        }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < teams * size; i++) threads.emplace_back(work, i / size, i % size);
    work(0, 0);
    for (std::thread& thread : threads) thread.join();
    block = nullptr;
}

}  // namespace machine
