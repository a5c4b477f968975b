// The block map of sparse-linear attention: which key blocks each query block attends to.
//
//     mean of k over the keys → block means of q and of k - mean, rounded to T → scores q k^T, rounded to T →
//     the `selected` largest of each row (of equal ones, the lower index), listed in ascending order
#include "attention_tile.cuh"

constexpr int kThreads = 256;

/// x: [rows, heads, dim] → sums: f32 [heads, chunks, dim]; grid (chunks, heads), dim divides 256.
template <typename T>
__global__ void __launch_bounds__(kThreads)
column_sums(const T* x, float* sums, int rows, int heads, int dim, int chunk) {
    extern __shared__ __align__(16) u8 shared[];
    float* table = reinterpret_cast<float*>(shared);  // [256]
    const int head = blockIdx.y;
    const int column = int(threadIdx.x) % dim;
    const int groups = kThreads / dim;
    const int end = min(rows, int(blockIdx.x + 1) * chunk);
    float sum = 0;
    for (int row = blockIdx.x * chunk + int(threadIdx.x) / dim; row < end; row += groups) {
        sum += float(x[(i64(row) * heads + head) * dim + column]);
    }
    table[threadIdx.x] = sum;
    __syncthreads();
    if (int(threadIdx.x) >= dim) return;
    for (int group = 1; group < groups; group++) sum += table[group * dim + column];
    sums[(i64(head) * gridDim.x + blockIdx.x) * dim + column] = sum;
}

/// sums: f32 [heads, chunks, dim] → mean: T [heads, dim]; grid heads, dim threads.
template <typename T>
__global__ void column_mean(const float* sums, T* mean, int chunks, int rows) {
    const int dim = blockDim.x;
    float sum = 0;
    for (int c = 0; c < chunks; c++) sum += sums[(i64(blockIdx.x) * chunks + c) * dim + threadIdx.x];
    mean[blockIdx.x * dim + threadIdx.x] = T(sum / float(rows));
}

/// Means of x - mean over blocks of rows. x: [rows, heads, dim], mean: T [heads, dim], or null for 0 →
/// pooled: T [heads, blocks, dim]; grid (blocks, heads).
template <typename T>
__global__ void __launch_bounds__(kThreads)
block_pool(const T* x, const T* mean, T* pooled, int rows, int heads, int dim, int block) {
    extern __shared__ __align__(16) u8 shared[];
    float* table = reinterpret_cast<float*>(shared);  // [256]
    const int head = blockIdx.y;
    const int column = int(threadIdx.x) % dim;
    const int groups = kThreads / dim;
    const int first = blockIdx.x * block;
    const int end = min(rows, first + block);
    const float offset = mean ? float(mean[head * dim + column]) : 0.0f;
    float sum = 0;
    for (int row = first + int(threadIdx.x) / dim; row < end; row += groups) {
        const float value = float(x[(i64(row) * heads + head) * dim + column]);
        sum += mean ? float(T(value - offset)) : value;
    }
    table[threadIdx.x] = sum;
    __syncthreads();
    if (int(threadIdx.x) >= dim) return;
    for (int group = 1; group < groups; group++) sum += table[group * dim + column];
    pooled[(i64(head) * gridDim.x + blockIdx.x) * dim + column] = T(sum / float(end - first));
}

/// q: T [heads, query_blocks, dim], k: T [heads, key_blocks, dim] → scores: T [heads, query_blocks,
/// key_blocks]; grid (query_blocks, heads). A warp computes one score at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads)
block_scores(const T* q, const T* k, T* scores, int key_blocks, int dim) {
    const i64 row = i64(blockIdx.y) * gridDim.x + blockIdx.x;
    const int lane = lane_id();
    for (int block = warp_id(); block < key_blocks; block += kThreads / 32) {
        const T* key = k + (i64(blockIdx.y) * key_blocks + block) * dim;
        float dot = 0;
        for (int d = lane; d < dim; d += 32) dot += float(q[row * dim + d]) * float(key[d]);
        dot = warp_sum(dot);
        if (lane == 0) scores[row * key_blocks + block] = T(dot);
    }
}

/// The same for bf16 on tensor cores; grid (ceil(key_blocks / 64), ceil(query_blocks / 64), heads),
/// 128 threads.
template <int kDim>
__global__ void __launch_bounds__(128)
block_scores_mma(const bf16* q, const bf16* k, bf16* scores, int query_blocks, int key_blocks) {
    using Rows = Tile<64, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + Rows::kBytes;
    const int head = blockIdx.z;
    const int first = blockIdx.y * 64;
    const int key = blockIdx.x * 64;
    const int lane = lane_id();
    Rows::template load<128>(q_shared, q + (i64(head) * query_blocks + first) * kDim, kDim,
                             query_blocks - first, kDim);
    Rows::template load<128>(k_shared, k + (i64(head) * key_blocks + key) * kDim, kDim,
                             key_blocks - key, kDim);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const TileLane q_lane(q_shared, warp_id() * 16, TileLane::rows);
    const TileLane k_lane(k_shared, 0, TileLane::columns);
    float s[8][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; step++) {
        u32 a[4];
        ldmatrix_x4(a, q_lane.at<64>(0, step));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 b[4];
            ldmatrix_x4(b, k_lane.at<64>(j, step));
            mma_m16n8k16_bf16(s[2 * j], a, b[0], b[1]);
            mma_m16n8k16_bf16(s[2 * j + 1], a, b[2], b[3]);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + warp_id() * 16 + lane / 4 + i / 2 * 8;
            const int column = key + 8 * j + 2 * (lane % 4) + i % 2;
            if (row < query_blocks && column < key_blocks) {
                scores[(i64(head) * query_blocks + row) * key_blocks + column] = bf16(s[j][i]);
            }
        }
    }
}

/// Finds the `selected` largest of each row. scores: T [rows, columns] → indices: i32 [rows, selected], ascending.
/// One warp handles one row; grid ceil(rows / 8).
///
/// The scores are turned into integers of the same order, and the `selected`-th largest of them is determined bit by
/// bit, the highest first. All scores above it are selected, and as many of those equal to it as are needed.
template <typename T>
__global__ void __launch_bounds__(kThreads)
block_select(const T* scores, int* indices, int rows, int columns, int selected) {
    constexpr int kLowestBit = sizeof(T) == 2 ? 16 : 0;  // lower bits of a bf16 are zero
    extern __shared__ __align__(16) u8 shared[];
    const int row = blockIdx.x * (kThreads / 32) + warp_id();
    const int lane = lane_id();
    u32* keys = reinterpret_cast<u32*>(shared) + warp_id() * columns;
    if (row >= rows) return;
    for (int i = lane; i < columns; i += 32) {
        const u32 bits = __float_as_uint(float(scores[i64(row) * columns + i]) + 0.0f);  // no -0
        keys[i] = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    }
    __syncwarp();
    u32 threshold = 0;
    int above = 0;  // how many are larger than every key with the threshold's prefix
    for (int bit = 31; bit >= kLowestBit; bit--) {
        const u32 candidate = threshold | (1u << bit);
        int count = 0;
        for (int i = lane; i < columns; i += 32) count += keys[i] >= candidate;
        count = int(__reduce_add_sync(0xffffffffu, u32(count)));
        if (count >= selected) {
            threshold = candidate;
        } else {
            above = count;
        }
    }
    int room = selected - above;
    int place = 0;
    for (int base = 0; base < columns; base += 32) {
        const int i = base + lane;
        const u32 key = i < columns ? keys[i] & (~0u << kLowestBit) : 0;
        const u32 larger = __ballot_sync(0xffffffffu, i < columns && key > threshold);
        const u32 equal = __ballot_sync(0xffffffffu, i < columns && key == threshold);
        const u32 before = (1u << lane) - 1;
        const bool taken = (larger >> lane & 1) ||
                           ((equal >> lane & 1) && __popc(equal & before) < room);
        const u32 all = __ballot_sync(0xffffffffu, taken);
        if (taken) indices[i64(row) * selected + place + __popc(all & before)] = i;
        place += __popc(all);
        room -= min(room, __popc(equal));
    }
}
