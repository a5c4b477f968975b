// The linear branch of sparse-linear attention (see linear_branch.cu) in f32, without intermediate rounding.
#include "ptx.cuh"

constexpr int kThreads = 256;
constexpr int kRows = 32;

/// Loads kRows rows of one head into shared memory as f32. Only `rows` of them exist; the others become zero.
template <int kDim, typename T>
DEVICE void load_rows(float* to, const T* from, i64 stride, int rows) {
    for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
        to[i] = i / kDim < rows ? float(from[i / kDim * stride + i % kDim]) : 0.0f;
    }
}

/// Softmax over kDim of each row, in place; rows from `rows` on become zero. A warp handles four rows.
template <int kDim>
DEVICE void features(float* x, int rows) {
#pragma unroll
    for (int i = 0; i < kRows / (kThreads / 32); i++) {
        const int row = warp_id() * (kRows / (kThreads / 32)) + i;
        float y[kDim / 32];
        float largest = -3.0e38f;
#pragma unroll
        for (int j = 0; j < kDim / 32; j++) {
            y[j] = x[row * kDim + j * 32 + lane_id()];
            largest = fmaxf(largest, y[j]);
        }
        largest = warp_max(largest);
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kDim / 32; j++) {
            y[j] = expf(y[j] - largest);
            sum += y[j];
        }
        sum = warp_sum(sum);
#pragma unroll
        for (int j = 0; j < kDim / 32; j++) {
            x[row * kDim + j * 32 + lane_id()] = row < rows ? y[j] / sum : 0.0f;
        }
    }
}

/// k, v: [keys, heads, dim] → kv_parts: f32 [heads, chunks, dim, dim], sums: f32 [heads, chunks, dim];
/// grid (chunks, heads); `chunk` is a multiple of 32.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
linear_branch_exact_sums(const T* k, const T* v, float* kv_parts, float* sums, int keys, int heads,
                         int chunk) {
    constexpr int kPart = kDim / 16;  // rows and columns of kv that one thread keeps
    extern __shared__ __align__(16) u8 shared[];
    float* c = reinterpret_cast<float*>(shared);
    float* values = c + kRows * kDim;
    const int head = blockIdx.y;
    const i64 stride = i64(heads) * kDim;
    const int end = min(keys, int(blockIdx.x + 1) * chunk);
    const int row = int(threadIdx.x) / 16;
    const int column = int(threadIdx.x) % 16;
    float kv[kPart][kPart] = {};
    float sum = 0;
    for (int first = blockIdx.x * chunk; first < end; first += kRows) {
        __syncthreads();
        load_rows<kDim>(c, k + first * stride + head * kDim, stride, end - first);
        load_rows<kDim>(values, v + first * stride + head * kDim, stride, end - first);
        __syncthreads();
        features<kDim>(c, end - first);
        __syncthreads();
        for (int r = 0; r < kRows; r++) {
            float x[kPart], y[kPart];
#pragma unroll
            for (int i = 0; i < kPart; i++) {
                x[i] = c[r * kDim + row + 16 * i];
                y[i] = values[r * kDim + column + 16 * i];
            }
#pragma unroll
            for (int i = 0; i < kPart; i++) {
#pragma unroll
                for (int j = 0; j < kPart; j++) kv[i][j] += x[i] * y[j];
            }
            if (int(threadIdx.x) < kDim) sum += c[r * kDim + threadIdx.x];
        }
    }
    const i64 part = i64(head) * gridDim.x + blockIdx.x;
#pragma unroll
    for (int i = 0; i < kPart; i++) {
#pragma unroll
        for (int j = 0; j < kPart; j++) {
            kv_parts[(part * kDim + row + 16 * i) * kDim + column + 16 * j] = kv[i][j];
        }
    }
    if (int(threadIdx.x) < kDim) sums[part * kDim + threadIdx.x] = sum;
}

/// Adds up the chunks. parts: [heads, chunks, size] → whole: [heads, size]; grid (ceil(size / 256), heads)
__global__ void __launch_bounds__(kThreads)
linear_branch_exact_join(const float* parts, float* whole, int chunks, int size) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= size) return;
    float sum = 0;
    for (int c = 0; c < chunks; c++) sum += parts[(i64(blockIdx.y) * chunks + c) * size + i];
    whole[i64(blockIdx.y) * size + i] = sum;
}

/// q: [queries, heads, dim], kv: f32 [heads, dim, dim], sums: f32 [heads, dim], weight: W [dim, dim],
/// bias: f32 [dim] or null → out: f32 [queries, heads, dim]; grid (ceil(queries / 32), heads).
template <typename T, typename W, int kDim>
__global__ void __launch_bounds__(kThreads)
linear_branch_exact_project(const T* q, const float* kv, const float* sums, const W* weight,
                            const float* bias, float* out, int queries, int heads) {
    constexpr int kGroups = kThreads / kDim;
    constexpr int kPart = kRows / kGroups;  // rows of one column that a thread computes
    extern __shared__ __align__(16) u8 shared[];
    float* c = reinterpret_cast<float*>(shared);
    float* denominators = c + kRows * kDim;
    const int head = blockIdx.y;
    const int first = blockIdx.x * kRows;
    const i64 stride = i64(heads) * kDim;
    const int column = int(threadIdx.x) % kDim;
    const int group = int(threadIdx.x) / kDim;
    load_rows<kDim>(c, q + first * stride + head * kDim, stride, queries - first);
    __syncthreads();
    features<kDim>(c, queries - first);
    __syncthreads();
    for (int row = warp_id(); row < kRows; row += kThreads / 32) {
        float dot = 0;
        for (int d = lane_id(); d < kDim; d += 32) dot += c[row * kDim + d] * sums[head * kDim + d];
        dot = warp_sum(dot);
        if (lane_id() == 0) denominators[row] = dot + 1e-5f;
    }
    __syncthreads();
    float y[kPart] = {};
    for (int d = 0; d < kDim; d++) {
        const float x = kv[(i64(head) * kDim + d) * kDim + column];
#pragma unroll
        for (int i = 0; i < kPart; i++) y[i] += c[(group * kPart + i) * kDim + d] * x;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPart; i++) {
        const int row = group * kPart + i;
        c[row * kDim + column] = y[i] / denominators[row];
        y[i] = bias ? bias[column] : 0.0f;
    }
    __syncthreads();
    for (int d = 0; d < kDim; d++) {
        const float x = float(weight[column * kDim + d]);
#pragma unroll
        for (int i = 0; i < kPart; i++) y[i] += c[(group * kPart + i) * kDim + d] * x;
    }
#pragma unroll
    for (int i = 0; i < kPart; i++) {
        const int row = first + group * kPart + i;
        if (row < queries) out[row * stride + head * kDim + column] = y[i];
    }
}
