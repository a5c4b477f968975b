// Makes SageAttention's 8-bit operands (arXiv 2411.10958, 2502.18137) from bf16 tensors.
//
//     q, k - mean(k): int8, with one scale per block of rows: max|x| / 127 + 1e-7; halves are rounded away from zero
//     v: e4m3, transposed, with one scale per channel: max|v| / 2.25; or f16
#include "attention_tile.cuh"
#include "sage.cuh"

constexpr int kThreads = 256;

/// x - mean, rounded to bf16 as in the original.
DEVICE uint4 centre(uint4 x, const float (&mean)[8]) {
    auto pair = [](u32 words, float low, float high) {
        return pack_bf16(bf16_low(words) - low, bf16_high(words) - high);
    };
    return make_uint4(pair(x.x, mean[0], mean[1]), pair(x.y, mean[2], mean[3]),
                      pair(x.z, mean[4], mean[5]), pair(x.w, mean[6], mean[7]));
}

/// Quantises one block of rows of one head. x: bf16 [rows, heads, dim]; mean: bf16 [heads, dim], with kMean →
/// codes: int8 [heads, blocks * kRows, dim] (rows past the end are zero), scales: f32 [heads, blocks],
/// pooled: bf16 [heads, blocks, dim], the means of the blocks; grid (heads, blocks), so that blocks of threads that run
/// at the same time read neighbouring memory.
template <int kDim, int kRows, bool kMean>
__global__ void __launch_bounds__(kThreads)
sage_quantize_rows(const bf16* x, const bf16* mean, i8* codes, float* scales, bf16* pooled, int rows,
                   int heads) {
    constexpr int kChunks = kDim / 8;           // per row; a thread has the same chunk of all its rows
    constexpr int kStep = kThreads / kChunks;   // distance between the rows of a thread
    constexpr int kCount = kRows / kStep;
    extern __shared__ __align__(16) u8 shared[];
    float* sums = reinterpret_cast<float*>(shared);  // [warps][dim]
    float* maxima = sums + kThreads / 32 * kDim;     // [warps]

    const int head = blockIdx.x;
    const int block = blockIdx.y;
    const int chunk = int(threadIdx.x) % kChunks;
    const int first = block * kRows + int(threadIdx.x) / kChunks;
    float offset[8] = {};
    if (kMean) {
        unpack_bf16(offset, *reinterpret_cast<const uint4*>(mean + head * kDim + chunk * 8));
    }

    uint4 raw[kCount];
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        const int row = first + i * kStep;
        raw[i] = make_uint4(0, 0, 0, 0);
        if (row < rows) raw[i] = load_streaming(x + (i64(row) * heads + head) * kDim + chunk * 8);
    }
    float sum[8] = {};
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        if (first + i * kStep >= rows) continue;
        if (kMean) raw[i] = centre(raw[i], offset);
        float y[8];
        unpack_bf16(y, raw[i]);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            sum[e] += y[e];
            largest = fmaxf(largest, fabsf(y[e]));
        }
    }
    largest = warp_max(largest);
#pragma unroll
    for (int e = 0; e < 8; e++) {
#pragma unroll
        for (int distance = kChunks; distance < 32; distance *= 2) {
            sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], distance);
        }
    }
    if (lane_id() < kChunks) {
#pragma unroll
        for (int e = 0; e < 8; e++) sums[warp_id() * kDim + chunk * 8 + e] = sum[e];
    }
    if (lane_id() == 0) maxima[warp_id()] = largest;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; warp++) largest = fmaxf(largest, maxima[warp]);
    const float scale = sage_scale(largest);
    const float inverse = 1.0f / scale;
    const i64 place = i64(head) * gridDim.y + block;
    if (threadIdx.x == 0) scales[place] = scale;
    if (pooled && int(threadIdx.x) < kDim) {
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < kThreads / 32; warp++) total += sums[warp * kDim + threadIdx.x];
        const int count = min(kRows, rows - block * kRows);
        pooled[place * kDim + threadIdx.x] = bf16(total / float(count));
    }
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        // Rows past the end are zeros, whose code is 0.
        *reinterpret_cast<uint2*>(codes + (i64(head) * gridDim.y * kRows + first + i * kStep) * kDim +
                                  chunk * 8) = sage_codes(raw[i], inverse);
    }
}

/// Quantises and transposes the values. In each group of 16 keys, position 4 c + i has key 2 c + i % 2 + 8 (i / 2).
/// Then the columns of Q K^T that a thread holds are, in order, those that it needs of P as the operand A.
///
/// v: bf16 [keys, heads, dim], maxima: f32 [heads, dim] → codes: e4m3 [heads, dim, blocks * 128] in that
/// order, zero past the end; scales: f32 [heads, dim]; grid (heads, blocks).
template <int kDim>
__global__ void __launch_bounds__(kThreads)
sage_quantize_values(const bf16* v, const float* maxima, u8* codes, float* scales, int keys,
                     int heads) {
    constexpr int kStride = 33;  // words for a channel's 128 bytes, plus one against bank conflicts
    extern __shared__ __align__(16) u8 shared[];
    u32* words = reinterpret_cast<u32*>(shared);                  // [dim][33]
    float* factors = reinterpret_cast<float*>(words + kDim * kStride);  // [dim]
    const int head = blockIdx.x;
    const int first = blockIdx.y * 128;
    // A warp handles four chunks of eight channels, of eight groups of four keys, kTurns times.
    constexpr int kParts = kDim / 32;  // of the channels
    constexpr int kWarps = kThreads / 32;
    constexpr int kTurns = kParts * 4 / kWarps;
    auto channel_of = [](int turn) { return (warp_id() + turn * kWarps) % kParts * 32 + lane_id() % 4 * 8; };
    auto group_of = [](int turn) { return (warp_id() + turn * kWarps) / kParts * 8 + lane_id() / 4; };
    uint4 raw[kTurns][4];
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const int group = group_of(turn);  // of positions
        const int key = first + group / 4 * 16 + group % 4 * 2;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = key + e % 2 + e / 2 * 8;
            raw[turn][e] = make_uint4(0, 0, 0, 0);
            if (row < keys) {
                raw[turn][e] = load_streaming(v + (i64(row) * heads + head) * kDim + channel_of(turn));
            }
        }
    }
    if (int(threadIdx.x) < kDim) {
        const float maximum = maxima[head * kDim + threadIdx.x];
        factors[threadIdx.x] = maximum > 0 ? 2.25f / maximum : 0.0f;
        if (blockIdx.y == 0) scales[head * kDim + threadIdx.x] = maximum / 2.25f;
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        float x[4][8];
#pragma unroll
        for (int e = 0; e < 4; e++) unpack_bf16(x[e], raw[turn][e]);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            const int channel = channel_of(turn) + c;
            const float factor = factors[channel];
            words[channel * kStride + group_of(turn)] =
                pack_e4m3(x[0][c] * factor, x[1][c] * factor, x[2][c] * factor, x[3][c] * factor);
        }
    }
    __syncthreads();
    const i64 length = i64(gridDim.y) * 128;
    for (int i = threadIdx.x; i < kDim * 32; i += kThreads) {
        const int channel = i / 32;
        *reinterpret_cast<u32*>(codes + (i64(head) * kDim + channel) * length + first + i % 32 * 4) =
            words[channel * kStride + i % 32];
    }
}

/// x: bf16 → y: f16; four elements per thread
__global__ void sage_halve_values(const bf16* x, f16* y, i64 count) {
    const i64 i = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (i >= count) return;
    const auto from = Vector<bf16, 4>::load(x + i);
    Vector<f16, 4> to;
#pragma unroll
    for (int e = 0; e < 4; e++) to[e] = f16(float(from[e]));
    to.store(y + i);
}

// ---- for checking: the operands in natural order ----------------------------------------------

/// codes: [heads, padded, dim] → out: [rows, heads, dim]; one byte per thread
__global__ void sage_natural_rows(const u8* codes, u8* out, int rows, int heads, int dim, int padded) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= i64(rows) * heads * dim) return;
    const i64 row = i / (heads * dim);
    const int head = i / dim % heads;
    out[i] = codes[(head * i64(padded) + row) * dim + i % dim];
}

/// codes: [heads, dim, padded], from sage_quantize_values → out: [keys, heads, dim]
__global__ void sage_natural_values(const u8* codes, u8* out, int keys, int heads, int dim, int padded) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= i64(keys) * heads * dim) return;
    const int key = int(i / (heads * dim));
    const int within = key % 8;
    const int position = key / 16 * 16 + within / 2 * 4 + within % 2 + key % 16 / 8 * 2;
    out[i] = codes[(i / dim % heads * dim + i % dim) * i64(padded) + position];
}
