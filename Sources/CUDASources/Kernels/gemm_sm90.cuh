// The skeleton of matrix products on Hopper: one producer warp fills a ring of stages in shared memory with bulk tensor
// copies, and two consumer warpgroups multiply what has arrived.
//
// A stage contains A: [rows of the tile, slice] and B: [columns of the tile, slice], both K-major. A slice is 128 bytes
// of K, or 192, stored as a part of 128 and a part of 64 (96 channels of a convolution).
#pragma once
#include "tile.cuh"
#include "wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;
constexpr int kGemmThreads = kGroupThreads * (1 + kConsumers);
/// Shared memory for the ring of stages, and staging memory for each consumer's results.
constexpr u32 kRingBytes = 192 * 1024;
constexpr u32 kStagingBytes = 16 * 1024;
/// After the staging memory: barriers and a few words.
constexpr u32 kTailBytes = 512;
constexpr u32 kGemmSharedBytes = 1024 + kRingBytes + kConsumers * kStagingBytes + kTailBytes;

DEVICE void st_shared(u32 address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DEVICE void st_shared(u32 address, float2 value) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(value.x), "f"(value.y)
                 : "memory");
}
DEVICE void st_shared_u16(u32 address, u16 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}

/// Arrives at the same barrier of block `rank` of the cluster, which may be this one, without ordering writes, because
/// a consumer has only read. (A release at cluster scope would cost a fence of the whole device.)
DEVICE void mbarrier_arrive_read(u32 barrier, int rank) {
    asm volatile(
        "{\n\t.reg .b32 remote;\n\tmapa.shared::cluster.u32 remote, %0, %1;\n\t"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

/// The layout of a stage: kM rows of A and kN rows of B, kSlice bytes each; and how many stages fit into kRing bytes.
template <int kM, int kN, int kSlice, int kRing>
struct Stage {
    static_assert(kSlice == 128 || kSlice == 192);
    static constexpr u32 kA = 0;
    static constexpr u32 kB = kM * 128;
    /// The last 64 bytes of a slice of 192.
    static constexpr u32 kTailA = kB + kN * 128;
    static constexpr u32 kTailB = kTailA + kM * 64;
    static constexpr u32 kLoaded = (kM + kN) * kSlice;
    static constexpr u32 kBytes = (kLoaded + 1023) / 1024 * 1024;
    static constexpr int kCount = kRing / kBytes;
    static_assert(kB % 1024 == 0 && kTailA % 512 == 0 && kTailB % 512 == 0);
};

/// The barriers of a ring. `full` completes when the bytes of a stage have arrived, `empty` when all consumers of the
/// cluster have read them, since a multicast copy writes into all blocks of the cluster.
template <int kStages, int kCluster>
struct Pipeline {
    u32 barriers;

    DEVICE u32 full(int stage) const { return barriers + 8 * stage; }
    DEVICE u32 empty(int stage) const { return barriers + 8 * (kStages + stage); }

    /// Called by one thread; a barrier of the block or cluster must follow.
    DEVICE void init() const {
        for (int s = 0; s < kStages; s++) {
            mbarrier_init(full(s), 1);
            mbarrier_init(empty(s), kCluster * kConsumers * 4);
        }
        fence_mbarrier_init();
    }
    /// Called by every warp of every consumer when its reads of the stage are complete.
    DEVICE void release(int stage, int lane) const {
        if constexpr (kCluster == 1) {
            if (lane == 0) mbarrier_arrive(empty(stage));
        } else {
            if (lane < kCluster) mbarrier_arrive_read(empty(stage), lane);
        }
    }
};

/// One type or the other.
template <bool kFirst, typename First, typename Second>
struct Choice {
    using Type = First;
};
template <typename First, typename Second>
struct Choice<false, First, Second> {
    using Type = Second;
};

/// Waits for all threads of the block, or of the cluster.
template <int kCluster>
DEVICE void sync_blocks() {
    if constexpr (kCluster == 1) {
        __syncthreads();
    } else {
        cluster_sync();
    }
}

/// A tile with rows of 64 bytes and 64-byte swizzle: 8 rows are 512 bytes.
DEVICE u64 wgmma_descriptor_64b(u32 shared) {
    return wgmma_descriptor(shared, 16, 512, Swizzle::bytes64);
}

/// acc = sum of A B^T over `slices` stages, for bf16, by one consumer: kM64 times 64 rows from row `row` of each stage.
/// kTurned: a stage holds 64 rows of A^T and of B^T, in panels of 64 columns.
template <class S, class P, int kM64, int kN, int kSlice, bool kTurned = false>
DEVICE void multiply(float (&acc)[kM64][kN / 2], u32 ring_base, const P& pipeline,
                     Ring<S::kCount>& ring, int slices, int row, int lane) {
    static_assert(!kTurned || kSlice == 128);
    constexpr int kStep = kTurned ? 128 : 2;  // 16 rows, or 32 bytes of a row
    auto tile = [](u32 at) {
        return kTurned ? wgmma_descriptor_128b_transposed(at, 64 * 128) : wgmma_descriptor_128b(at);
    };
    int previous = 0;
    for (int i = 0; i < slices; i++) {
        mbarrier_wait(pipeline.full(ring.stage), ring.parity);
        const u32 stage = ring_base + ring.stage * S::kBytes;
        const u64 a = tile(stage + S::kA + row * 128);
        const u64 b = tile(stage + S::kB);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int m = 0; m < kM64; m++) {
                wgmma_bf16<kN, kTurned, kTurned>(acc[m], a + 512 * m + kStep * k, b + kStep * k, i > 0 || k > 0);
            }
        }
        if constexpr (kSlice == 192) {
            const u64 tail_a = wgmma_descriptor_64b(stage + S::kTailA + row * 64);
            const u64 tail_b = wgmma_descriptor_64b(stage + S::kTailB);
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int m = 0; m < kM64; m++) {
                    wgmma_bf16<kN>(acc[m], tail_a + 256 * m + 2 * k, tail_b + 2 * k, true);
                }
            }
        }
        wgmma_commit();
        // The products of one slice stay in flight while the next slice is awaited.
        if (i > 0) {
            wgmma_wait<1>();
            pipeline.release(previous, lane);
        }
        previous = ring.stage;
        ring.advance();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < kM64; m++) wgmma_hold(acc[m]);
    pipeline.release(previous, lane);
}

/// As `multiply`, for 8-bit operands, whose sums are added outside of the tensor cores after each slice of 128.
/// int8: acc = sum of f32(int32 dot) * scale in ascending order, with a scale for each slice. e4m3: acc = sum of the
/// slices' sums, because the tensor cores add with only about 14 bits.
/// The sums of 64 rows at a time are kept beside the accumulators. While this warpgroup adds its sums, the instructions
/// of the other one keep the tensor cores busy.
template <Element kElement, class S, class P, int kM64, int kN>
DEVICE void multiply_slices(float (&acc)[kM64][kN / 2], u32 ring_base, const P& pipeline,
                            Ring<S::kCount>& ring, int slices, int row, int lane,
                            const float* __restrict__ x_scales,
                            const float* __restrict__ w_scales) {
    constexpr bool kScaled = kElement == Element::i8;
#pragma unroll
    for (int m = 0; m < kM64; m++) {
#pragma unroll
        for (int i = 0; i < kN / 2; i++) acc[m][i] = 0.0f;
    }
    float x_scale = kScaled ? __ldg(x_scales) : 1.0f, w_scale = kScaled ? __ldg(w_scales) : 1.0f;
    for (int i = 0; i < slices; i++) {
        const float scale = x_scale * w_scale;
        mbarrier_wait(pipeline.full(ring.stage), ring.parity);
        const u32 stage = ring_base + ring.stage * S::kBytes;
        const u64 a = wgmma_descriptor_128b(stage + S::kA + row * 128);
        const u64 b = wgmma_descriptor_128b(stage + S::kB);
        if constexpr (kScaled) {
            const int next = min(i + 1, slices - 1);
            x_scale = __ldg(x_scales + next);
            w_scale = __ldg(w_scales + next);
        }
#pragma unroll
        for (int m = 0; m < kM64; m++) {
            typename Choice<kScaled, i32, float>::Type sum[kN / 2];
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if constexpr (kScaled) {
                    wgmma_s8<kN>(sum, a + 512 * m + 2 * k, b + 2 * k, k > 0);
                } else {
                    wgmma_e4m3<kN>(sum, a + 512 * m + 2 * k, b + 2 * k, k > 0);
                }
            }
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_hold(sum);
            if (m == kM64 - 1) pipeline.release(ring.stage, lane);
#pragma unroll
            for (int j = 0; j < kN / 2; j++) {
                if constexpr (kScaled) {
                    acc[m][j] = fmaf(float(sum[j]), scale, acc[m][j]);
                } else {
                    acc[m][j] += sum[j];
                }
            }
        }
        ring.advance();
    }
}

#endif
