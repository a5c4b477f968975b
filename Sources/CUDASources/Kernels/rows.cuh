// Rows of a matrix in registers: loads, stores and sums for kernels that are limited by memory.
#pragma once
#include "ptx.cuh"

/// The index of this thread's first element, with kVector elements per thread.
template <int kVector>
DEVICE i64 first_element() {
    return (i64(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
}

/// Calls body<kVector>(start) for a whole vector, and body<1>(i) for each element of an incomplete one.
template <int kVector, typename F>
DEVICE void for_vector(i64 count, F body) {
    const i64 start = first_element<kVector>();
    if (start + kVector <= count) {
        body.template operator()<kVector>(start);
    } else {
        for (i64 i = start; i < count; ++i) body.template operator()<1>(i);
    }
}

/// x rounded to T, as a float.
template <typename T>
DEVICE float round_to(float x) {
    return float(T(x));
}

/// The same for all values; pairs of bf16 with one instruction.
template <typename T, int kVector>
DEVICE void round_all(float (&values)[kVector]) {
    if constexpr (sizeof(T) == 2 && kVector % 2 == 0) {
#pragma unroll
        for (int j = 0; j < kVector; j += 2) {
            const u32 pair = pack_bf16(values[j], values[j + 1]);
            values[j] = bf16_low(pair);
            values[j + 1] = bf16_high(pair);
        }
    } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) values[j] = round_to<T>(values[j]);
    }
}

/// Loads kVector neighbouring elements as floats; p must be a multiple of min(16, kVector * sizeof(T)) bytes.
template <int kVector, typename T>
DEVICE void load_floats(float (&values)[kVector], const T* p) {
    constexpr int kChunk = kVector * sizeof(T) > 16 ? 16 / int(sizeof(T)) : kVector;
#pragma unroll
    for (int c = 0; c < kVector; c += kChunk) {
        const auto chunk = Vector<T, kChunk>::load(p + c);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) values[c + j] = float(chunk[j]);
    }
}

/// Stores kVector floats as neighbouring elements of T, rounded to nearest, ties to even.
template <int kVector, typename T>
DEVICE void store_floats(T* p, const float (&values)[kVector]) {
    constexpr int kChunk = kVector * sizeof(T) > 16 ? 16 / int(sizeof(T)) : kVector;
#pragma unroll
    for (int c = 0; c < kVector; c += kChunk) {
        Vector<T, kChunk> chunk;
#pragma unroll
        for (int j = 0; j < kChunk; ++j) chunk[j] = T(values[c + j]);
        chunk.store(p + c);
    }
}

/// Stores kVector floats as e4m3.
template <int kVector>
DEVICE void store_e4m3(u8* p, const float (&values)[kVector]) {
    if constexpr (kVector == 1) {
        *p = u8(pack_e4m3(values[0], 0.0f));
    } else {
#pragma unroll
        for (int c = 0; c < kVector; c += 4) {
            *reinterpret_cast<u32*>(p + c) =
                pack_e4m3(values[c], values[c + 1], values[c + 2], values[c + 3]);
        }
    }
}

/// Stores kVector floats as int8, rounded to nearest, ties to even, and saturated.
template <int kVector>
DEVICE void store_i8(i8* p, const float (&values)[kVector]) {
    if constexpr (kVector == 1) {
        *p = i8(saturate_i8(values[0]));
    } else if constexpr (kVector == 8) {
        *reinterpret_cast<uint2*>(p) =
            make_uint2(pack_i8(values[0], values[1], values[2], values[3]),
                       pack_i8(values[4], values[5], values[6], values[7]));
    } else {
#pragma unroll
        for (int c = 0; c < kVector; c += 4) {
            *reinterpret_cast<u32*>(p + c) =
                pack_i8(values[c], values[c + 1], values[c + 2], values[c + 3]);
        }
    }
}

/// kVector neighbouring elements of T in registers. bf16 are kept in pairs, which need half as many registers as
/// floats.
template <typename T, int kVector>
struct Kept {
    float values[kVector];

    DEVICE void load(const T* p) { load_floats(values, p); }
    DEVICE void get(float (&to)[kVector]) const {
#pragma unroll
        for (int j = 0; j < kVector; ++j) to[j] = values[j];
    }
    /// Rounds to T.
    DEVICE void set(const float (&from)[kVector]) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) values[j] = round_to<T>(from[j]);
    }
    /// Hides the values from the compiler, which would otherwise keep results computed from them.
    DEVICE void forget() {}
};

template <>
struct Kept<bf16, 8> {
    u32 words[4];

    DEVICE void load(const bf16* p) {
        const uint4 raw = load_streaming(p);
        words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
    }
    DEVICE void get(float (&to)[8]) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) to[2 * j] = bf16_low(words[j]), to[2 * j + 1] = bf16_high(words[j]);
    }
    DEVICE void set(const float (&from)[8]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = pack_bf16(from[2 * j], from[2 * j + 1]);
    }
    DEVICE void forget() {
        asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
    }
};

/// A vector of parameters, f32 or bf16 as in the checkpoint.
struct Parameters {
    const void* data;
    int is_bf16;

    template <int kVector>
    DEVICE void load(float (&values)[kVector], int index) const {
        if (is_bf16) {
            load_floats(values, static_cast<const bf16*>(data) + index);
        } else {
            load_floats(values, static_cast<const float*>(data) + index);
        }
    }
};

/// The sum (kMax: the largest) over the threads of the block, equal bit for bit in every thread.
template <bool kMax = false>
DEVICE float block_reduce(float x) {
    __shared__ float partial[32];
    auto warp = [](float x) { return kMax ? warp_max(x) : warp_sum(x); };
    x = warp(x);
    if (blockDim.x <= 32) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    return warp(lane < int(blockDim.x) / 32 ? partial[lane] : 0.0f);
}

/// A row held by a block: thread i has the vectors i, i + blockDim.x, …
template <typename T, int kWidth, int kCount>
struct BlockRow {
    using Element = T;
    static constexpr int kVector = kWidth;
    static constexpr int kVectors = kCount;
    /// Launch bounds: the most threads per block, and the fewest blocks per multiprocessor.
    static constexpr int kThreads = 512;
    static constexpr int kBlocks = 1;
    float values[kCount][kVector];

    /// The index of the row.
    DEVICE static int index() { return int(blockIdx.x); }
    /// Whether this thread writes what is written once per row.
    DEVICE static bool leads() { return threadIdx.x == 0; }
    /// Whether this thread's i-th vector lies in the row.
    DEVICE static bool holds(int i, int columns) { return column(i) < columns; }
    DEVICE static int column(int i) { return (i * int(blockDim.x) + int(threadIdx.x)) * kVector; }

    DEVICE void load(const T* row, int columns) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (column(i) < columns) {
                load_floats(values[i], row + column(i));
            } else {
#pragma unroll
                for (int j = 0; j < kVector; ++j) values[i][j] = 0.0f;
            }
        }
    }

    DEVICE void get(float (&to)[kVector], int i) const {
#pragma unroll
        for (int j = 0; j < kVector; ++j) to[j] = values[i][j];
    }

    /// The sum of f(value) over the row.
    template <typename F>
    DEVICE float sum(int columns, F f) const {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (column(i) < columns) {
#pragma unroll
                for (int j = 0; j < kVector; ++j) total += f(values[i][j]);
            }
        }
        return block_reduce(total);
    }

    /// The largest magnitude in the row.
    DEVICE float largest(int columns) const {
        float most = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (column(i) < columns) {
#pragma unroll
                for (int j = 0; j < kVector; ++j) most = fmaxf(most, fabsf(values[i][j]));
            }
        }
        return block_reduce<true>(most);
    }
};

/// A row of 256 * kCount * kWarps bf16 held by a warp: no barriers, and many bytes in flight. Sums are equal bit for
/// bit to those of BlockRow<bf16, 8, kCount> with kWarps warps.
template <int kCount, int kWarps>
struct WarpRow {
    static_assert(kWarps <= 8);
    using Element = bf16;
    static constexpr int kVector = 8;
    static constexpr int kVectors = kCount * kWarps;
    static constexpr int kThreads = 128;
#if __CUDA_ARCH__ >= 1000
    static constexpr int kBlocks = kVectors <= 8 ? 8 : 3;  // with 128 registers the compiler would spill
#else
    static constexpr int kBlocks = kVectors <= 8 ? 8 : 4;
#endif
    Kept<bf16, 8> kept[kVectors];

    DEVICE static int index() { return int(blockIdx.x) * (kThreads / 32) + warp_id(); }
    DEVICE static bool leads() { return lane_id() == 0; }
    DEVICE static bool holds(int i, int columns) { return true; }
    DEVICE static int column(int i) { return (i * 32 + lane_id()) * 8; }

    DEVICE void load(const bf16* row, int columns) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) kept[i].load(row + column(i));
    }

    DEVICE void get(float (&to)[8], int i) const { kept[i].get(to); }

    template <typename F>
    DEVICE float sum(int columns, F f) {
        // In lane l, total w is what thread 32 w + l of a block would have.
        float totals[8] = {};
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                float values[8];
                get(values, i * kWarps + w);
#pragma unroll
                for (int j = 0; j < 8; ++j) totals[w] += f(values[j]);
                kept[i * kWarps + w].forget();
            }
        }
        // While lanes are summed, the three highest bits of the lane select a total, which takes 4 + 2 + 1 exchanges
        // for eight totals; afterwards the totals are summed over those bits.
#pragma unroll
        for (int half = 4; half > 0; half /= 2) {
            const bool upper = lane_id() & (half * 4);
#pragma unroll
            for (int w = 0; w < half; ++w) {
                const float own = upper ? totals[w + half] : totals[w];
                const float other = upper ? totals[w] : totals[w + half];
                totals[w] = own + __shfl_xor_sync(0xffffffffu, other, half * 4);
            }
        }
        float total = totals[0];
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        total += __shfl_xor_sync(0xffffffffu, total, 1);
#pragma unroll
        for (int bit = 16; bit >= 4; bit /= 2) total += __shfl_xor_sync(0xffffffffu, total, bit);
        return total;
    }
};
