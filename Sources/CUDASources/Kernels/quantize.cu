// Quantising bf16 or float to 8 bits.
#include "rows.cuh"

constexpr int kThreads = 256;

/// Loads eight neighbouring values, with zeros from `count` on. kVector: their address is a multiple of 16 bytes, and
/// `count` is a multiple of 8.
template <typename T, bool kVector>
DEVICE void load_eight(float (&v)[8], const T* p, int count) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
    if (count <= 0) return;
    if constexpr (!kVector) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) v[i] = float(p[i]);
        }
    } else if constexpr (sizeof(T) == 2) {
        const uint4 raw = load_streaming(p);
        const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 pair = unpack_bf16(words[i]);
            v[2 * i] = pair.x;
            v[2 * i + 1] = pair.y;
        }
    } else {
        const uint4 low = load_streaming(p), high = load_streaming(p + 4);
        const u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __uint_as_float(words[i]);
    }
}

/// Stores eight codes, or `count` if that is less.
template <bool kVector>
DEVICE void store_eight(u8* p, u32 low, u32 high, int count) {
    if (count <= 0) return;
    if constexpr (kVector) {
        *reinterpret_cast<uint2*>(p) = make_uint2(low, high);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) p[i] = u8((i < 4 ? low : high) >> (8 * (i % 4)));
        }
    }
}

DEVICE float largest(const float (&v)[8]) {
    float r = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) r = fmaxf(r, fabsf(v[i]));
    return r;
}

/// The maximum over the threads of the block, in every thread.
DEVICE float block_max(float x) {
    __shared__ float words[kThreads / 32];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = x;
    __syncthreads();
    float r = words[0];
#pragma unroll
    for (int i = 1; i < kThreads / 32; i++) r = fmaxf(r, words[i]);
    return r;
}

/// int8 with one scale for each 128x128 block: q = rne(x * (128 / amax)), scale = amax / 128.
/// x: [rows, columns] → codes: same, scales: [ceil(rows/128), ceil(columns/128)].
/// Grid: (blocks of columns, blocks of rows).
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, kVector && sizeof(T) == 2 ? 4 : 1)
    quantize_blocks(i8* codes, float* scales, const T* x, int rows, int columns) {
    // Each thread has eight columns of every 16th row.
    const int column = blockIdx.x * 128 + threadIdx.x % 16 * 8;
    const int row = blockIdx.y * 128 + threadIdx.x / 16;
    Kept<T, 8> kept[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = row + 16 * i;
        if constexpr (kVector) {
            // Beyond the end the last row or column is repeated, which does not change the maximum.
            kept[i].load(x + i64(min(r, rows - 1)) * columns + min(column, columns - 8));
        } else {
            float values[8];
            load_eight<T, false>(values, x + i64(r) * columns + column,
                                 r < rows ? min(columns - column, 8) : 0);
            kept[i].set(values);
        }
    }
    float amax = kLeastMaximum;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float v[8];
        kept[i].get(v);
        amax = fmaxf(amax, largest(v));
        kept[i].forget();
    }
    amax = block_max(amax);
    const float factor = 128.0f / amax;
    if (threadIdx.x == 0) scales[i64(blockIdx.y) * gridDim.x + blockIdx.x] = amax / 128.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = row + 16 * i;
        float v[8];
        kept[i].get(v);
        const u32 low = pack_i8(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor);
        const u32 high = pack_i8(v[4] * factor, v[5] * factor, v[6] * factor, v[7] * factor);
        store_eight<kVector>(reinterpret_cast<u8*>(codes) + i64(r) * columns + column, low, high,
                             r < rows ? min(columns - column, 8) : 0);
    }
}

/// e4m3 with one scale for each row: q = e4m3(x * (448 / amax)), scale = amax / 448.
/// x: [rows, columns] → codes: same, scales: [rows]. One block per row; the second read hits L2.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    quantize_rows(e4m3* codes, float* scales, const T* x, int columns) {
    x += i64(blockIdx.x) * columns;
    codes += i64(blockIdx.x) * columns;
    float amax = kLeastMaximum;
    for (int c = threadIdx.x * 8; c < columns; c += kThreads * 8) {
        float v[8];
        load_eight<T, kVector>(v, x + c, min(columns - c, 8));
        amax = fmaxf(amax, largest(v));
    }
    amax = block_max(amax);
    const float factor = 448.0f / amax;
    if (threadIdx.x == 0) scales[blockIdx.x] = amax / 448.0f;
    for (int c = threadIdx.x * 8; c < columns; c += kThreads * 8) {
        float v[8];
        load_eight<T, kVector>(v, x + c, min(columns - c, 8));
        const u32 low = pack_e4m3(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor);
        const u32 high = pack_e4m3(v[4] * factor, v[5] * factor, v[6] * factor, v[7] * factor);
        store_eight<kVector>(reinterpret_cast<u8*>(codes) + c, low, high, min(columns - c, 8));
    }
}
