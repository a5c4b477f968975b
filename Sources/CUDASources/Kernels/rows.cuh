// Rows of a matrix as floats in registers: loads, stores and sums that the memory-bound kernels share.
#pragma once
#include "ptx.cuh"

/// The first element of this thread, kVector a thread.
template <int kVector>
DEVICE i64 first_element() {
    return (i64(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
}

/// Calls body(start, vector size) on the whole vectors, and element by element on the tail.
template <int kVector, typename F>
DEVICE void for_vector(i64 count, F body) {
    const i64 start = first_element<kVector>();
    if (start + kVector <= count) {
        body.template operator()<kVector>(start);
    } else {
        for (i64 i = start; i < count; ++i) body.template operator()<1>(i);
    }
}

/// x as T can hold it; nothing for float.
template <typename T>
DEVICE float round_to(float x) {
    return float(T(x));
}

/// kVector neighbouring elements as floats; p is a multiple of min(16, kVector * sizeof(T)) bytes.
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

/// kVector floats as neighbouring elements of another type, rounded to nearest even.
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

/// kVector floats as e4m3.
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

/// kVector floats as int8, rounded to nearest even and saturated.
template <int kVector>
DEVICE void store_i8(i8* p, const float (&values)[kVector]) {
    if constexpr (kVector == 1) {
        *p = i8(saturate_i8(values[0]));
    } else {
#pragma unroll
        for (int c = 0; c < kVector; c += 4) {
            *reinterpret_cast<u32*>(p + c) =
                pack_i8(values[c], values[c + 1], values[c + 2], values[c + 3]);
        }
    }
}

/// An f32 or bf16 parameter vector, as checkpoints happen to hold it.
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

/// Sum (largest) over the block, the same bits in every thread.
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

/// One row held by a block: thread i has the vectors i, i + blockDim.x, …
template <typename T, int kVector, int kCount>
struct BlockRow {
    float values[kCount][kVector];

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

    /// Sum over the row of f(value), which must be 0 for the zeros beyond the end, or `columns` is given.
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

    /// Largest magnitude of the row.
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
