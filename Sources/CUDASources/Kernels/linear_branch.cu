// The linear branch of sparse-linear attention (SLA, arXiv 2509.24006) for bf16 tensors, on mma.sync:
//
//     c(x) = softmax over the head dimension           kv = sum over keys of c(k)^T v      [dim, dim]
//     o = (c(q) kv) / (1e-5 + c(q) . sum c(k))         result = o W^T + bias
//
// Every intermediate result is rounded to bf16, as by the original's PyTorch operators; sums are f32. The pass over k
// and v also computes the statistics that quantisation needs: the mean of k and the largest |v|.
#include "linear_branch.cuh"

constexpr int kThreads = 256;
/// How many blocks of linear_branch_project share a multiprocessor, which depends on its shared memory.
constexpr int kProjectBlocks = __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 ? 2 : 1;

/// Sums over one chunk of keys. k, v: bf16 [keys, heads, dim] → kv_parts: f32 [heads, chunks, dim, dim],
/// statistics: f32 [heads, chunks, 3, dim]; grid (chunks, heads), kThreads threads. `chunk` is a multiple
/// of 64 keys.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim == 64 ? 2 : 1)
linear_branch_sums(const bf16* k, const bf16* v, float* kv_parts, float* statistics, int keys,
                   int heads, int chunk) {
    constexpr int kRows = 64;
    using Rows = Tile<kRows, kDim>;
    constexpr int kColumnGroups = 128 / kDim;          // warps that share 16 rows of kv
    constexpr int kColumns = kDim / kColumnGroups;     // columns of kv per warp
    extern __shared__ __align__(1024) u8 shared[];     // two stages of (k, v)
    const int head = blockIdx.y;
    const i64 stride = i64(heads) * kDim;
    const int first = blockIdx.x * chunk;
    const int count = max(0, min(chunk, keys - first));
    const int lane = lane_id();
    const int lane8 = lane % 8;
    const int feature = warp_id() / kColumnGroups * 16;
    const int column = warp_id() % kColumnGroups * kColumns;

    auto load = [&](int tile) {
        const u32 stage = shared_address(shared) + tile % 2 * (2 * Rows::kBytes);
        const i64 place = (first + tile * kRows) * stride + head * kDim;
        Rows::template load<kThreads>(stage, k + place, stride, count - tile * kRows, kDim);
        Rows::template load<kThreads>(stage + Rows::kBytes, v + place, stride, count - tile * kRows,
                                      kDim);
        cp_async_commit();
    };

    float kv[kColumns / 8][4] = {};
    float feature_sum[4] = {};  // sums of 16 features, the same in all eight columns
    float sums[2][kDim / 64][8] = {};
    const int tiles = ceil_div(count, kRows);
    if (tiles > 0) load(0);
    for (int tile = 0; tile < tiles; tile++) {
        u8* k_tile = shared + tile % 2 * (2 * Rows::kBytes);
        u8* v_tile = k_tile + Rows::kBytes;
        cp_async_wait<0>();
        __syncthreads();  // this stage has arrived, and all warps are done with the other one
        if (tile + 1 < tiles) load(tile + 1);
        features<kRows, kDim, kThreads>(
            k_tile, threadIdx.x, count - tile * kRows,
            [&](int row, const float(&x)[kDim / 64][8]) {
#pragma unroll
                for (int i = 0; i < kDim / 64; i++) {
                    float value[8];
                    unpack_bf16(value, *reinterpret_cast<const uint4*>(
                                           v_tile + Rows::offset(row, (lane8 + 8 * i) * 16)));
#pragma unroll
                    for (int e = 0; e < 8; e++) {
                        sums[kKeySum][i][e] += x[i][e];  // rows past the end are zero
                        sums[kValueMaximum][i][e] =
                            fmaxf(sums[kValueMaximum][i][e], fabsf(value[e]));
                    }
                }
            },
            [](int, const float(&)[kDim / 64][8]) {});
        __syncthreads();
        const TileLane v_lane(shared_address(v_tile), 0, TileLane::rows, column);
#pragma unroll
        for (int step = 0; step < kRows / 16; step++) {
            u32 a[4];
            // The rows of A are features, so the matrices of the k tile (rows are keys) are transposed.
            const int row = step * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix_x4_trans(a, shared_address(k_tile) +
                                     Rows::offset(row, feature * 2 + lane / 8 % 2 * 16));
            mma_m16n8k16_bf16(feature_sum, a, kOnes, kOnes);
#pragma unroll
            for (int j = 0; j < kColumns / 16; j++) {
                u32 b[4];
                ldmatrix_x4_trans(b, v_lane.at<kRows>(step, j));
                mma_m16n8k16_bf16(kv[2 * j], a, b[0], b[1]);
                mma_m16n8k16_bf16(kv[2 * j + 1], a, b[2], b[3]);
            }
        }
    }

    float* part = kv_parts + (i64(head) * gridDim.x + blockIdx.x) * (kDim * kDim);
#pragma unroll
    for (int j = 0; j < kColumns / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int row = feature + lane / 4 + i / 2 * 8;
            Vector<float, 2> pair{{kv[j][i], kv[j][i + 1]}};
            pair.store(part + row * kDim + column + 8 * j + 2 * (lane % 4));
        }
    }

    statistics += (i64(head) * gridDim.x + blockIdx.x) * (kStatistics * kDim);
    if (column == 0 && lane % 4 == 0) {
        statistics[kFeatureSum * kDim + feature + lane / 4] = feature_sum[0];
        statistics[kFeatureSum * kDim + feature + lane / 4 + 8] = feature_sum[2];
    }
    __syncthreads();
    join_statistics<kDim, kThreads>(sums, reinterpret_cast<float*>(shared), statistics);
}

/// Adds up the chunks. → kv: bf16 [heads, dim, dim], feature_sum, key_mean: bf16 [heads, dim],
/// value_maximum: f32 [heads, dim]; grid (dim + 1, heads), dim threads.
__global__ void linear_branch_join(const float* kv_parts, const float* statistics, bf16* kv,
                                   bf16* feature_sum, bf16* key_mean, float* value_maximum,
                                   int chunks, int keys) {
    const int dim = blockDim.x;
    const int head = blockIdx.y;
    const int column = threadIdx.x;
    if (int(blockIdx.x) < dim) {
        const int row = blockIdx.x;
        float x = 0;
        for (int c = 0; c < chunks; c++) {
            x += kv_parts[((i64(head) * chunks + c) * dim + row) * dim + column];
        }
        kv[(head * dim + row) * dim + column] = bf16(x);
        return;
    }
    float features = 0;
    float sum = 0;
    float maximum = 0;
    for (int c = 0; c < chunks; c++) {
        const float* s = statistics + (i64(head) * chunks + c) * (kStatistics * dim) + column;
        features += s[kFeatureSum * dim];
        sum += s[kKeySum * dim];
        maximum = fmaxf(maximum, s[kValueMaximum * dim]);
    }
    feature_sum[head * dim + column] = bf16(features);
    key_mean[head * dim + column] = bf16(sum / float(keys));
    value_maximum[head * dim + column] = maximum;
}

/// The result of the branch. q: bf16 [queries, heads, dim]; kv, feature_sum: as above; weight: bf16 [dim, dim],
/// bias: f32 [dim] or null → out: bf16 [queries, heads, dim]; grid (chunks, heads); `chunk` is a multiple
/// of 128 rows.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kProjectBlocks)
linear_branch_project(const bf16* q, const bf16* kv, const bf16* feature_sum, const bf16* weight,
                      const float* bias, bf16* out, int queries, int heads, int chunk) {
    constexpr int kRows = 128;
    using Rows = Tile<kRows, kDim>;
    using Matrix = Tile<kDim, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    u8* q_tile = shared;
    const u32 kv_shared = shared_address(shared) + Rows::kBytes;
    const u32 weight_shared = kv_shared + Matrix::kBytes;
    float* sums = reinterpret_cast<float*>(shared + Rows::kBytes + 2 * Matrix::kBytes);
    float* denominators = sums + kDim;  // of the tile's rows
    const int head = blockIdx.y;
    const i64 stride = i64(heads) * kDim;
    const int end = min(queries, int(blockIdx.x + 1) * chunk);
    const int lane = lane_id();
    const int lane8 = lane % 8;
    const int warp_row = warp_id() * 16;

    Matrix::template load<kThreads>(kv_shared, kv + i64(head) * (kDim * kDim), kDim, kDim, kDim);
    Matrix::template load<kThreads>(weight_shared, weight, kDim, kDim, kDim);
    for (int i = threadIdx.x; i < kDim; i += kThreads) sums[i] = feature_sum[head * kDim + i];

    const TileLane q_lane(shared_address(q_tile), warp_row, TileLane::rows);
    const TileLane kv_lane(kv_shared, 0, TileLane::rows);
    const TileLane weight_lane(weight_shared, 0, TileLane::columns);
    for (int first = blockIdx.x * chunk; first < end; first += kRows) {
        Rows::template load<kThreads>(shared_address(q_tile), q + first * stride + head * kDim, stride,
                                      end - first, kDim);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        features<kRows, kDim, kThreads>(
            q_tile, threadIdx.x, end - first,
            [](int, const float(&)[kDim / 64][8]) {},
            [&](int row, const float(&y)[kDim / 64][8]) {
                float dot = 0;
#pragma unroll
                for (int i = 0; i < kDim / 64; i++) {
#pragma unroll
                    for (int e = 0; e < 8; e++) {
                        dot += round_bf16(y[i][e] * sums[(lane8 + 8 * i) * 8 + e]);
                    }
                }
                dot = warp_sum<8>(dot);
                if (lane8 == 0) denominators[row] = round_bf16(round_bf16(dot) + 1e-5f);
            });
        __syncthreads();

        // Half of the columns at a time, so that two blocks fit on a multiprocessor.
        u32 quotient[kDim / 8][2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float o[kDim / 16][4] = {};
#pragma unroll
            for (int step = 0; step < kDim / 16; step++) {
                u32 a[4];
                ldmatrix_x4(a, q_lane.at<kRows>(0, step));
#pragma unroll
                for (int j = 0; j < kDim / 32; j++) {
                    u32 b[4];
                    ldmatrix_x4_trans(b, kv_lane.at<kDim>(step, half * (kDim / 32) + j));
                    mma_m16n8k16_bf16(o[2 * j], a, b[0], b[1]);
                    mma_m16n8k16_bf16(o[2 * j + 1], a, b[2], b[3]);
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float denominator = denominators[warp_row + lane / 4 + 8 * r];
#pragma unroll
                for (int j = 0; j < kDim / 16; j++) {
                    quotient[half * (kDim / 16) + j][r] =
                        pack_bf16(__fdividef(round_bf16(o[j][2 * r]), denominator),
                                  __fdividef(round_bf16(o[j][2 * r + 1]), denominator));
                }
            }
        }
        __syncthreads();  // all warps have read the tile, so the next one may be loaded

#pragma unroll
        for (int n = 0; n < kDim / 16; n++) {
            float y[2][4] = {};
#pragma unroll
            for (int step = 0; step < kDim / 16; step++) {
                const u32 a[4] = {quotient[2 * step][0], quotient[2 * step][1],
                                  quotient[2 * step + 1][0], quotient[2 * step + 1][1]};
                u32 b[4];
                ldmatrix_x4(b, weight_lane.at<kDim>(n, step));
                mma_m16n8k16_bf16(y[0], a, b[0], b[1]);
                mma_m16n8k16_bf16(y[1], a, b[2], b[3]);
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = 16 * n + 8 * half + 2 * (lane % 4);
                const float b0 = bias ? round_bf16(bias[column]) : 0.0f;
                const float b1 = bias ? round_bf16(bias[column + 1]) : 0.0f;
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = first + warp_row + lane / 4 + 8 * r;
                    if (row >= end) continue;
                    *reinterpret_cast<u32*>(out + row * stride + head * kDim + column) =
                        pack_bf16(y[half][2 * r] + b0, y[half][2 * r + 1] + b1);
                }
            }
        }
    }
}
