// The linear branch on Hopper: the kernels of linear_branch.cu on wgmma. See that file for what they compute.
//
// Both reach the speed of memory if enough bytes are in flight and the tensor cores work during the softmax. So 16
// warps share a multiprocessor, tiles are loaded two steps ahead, and products are awaited one tile later.
#include "linear_branch.cuh"
#include "sage.cuh"
#include "wgmma.cuh"

constexpr int kThreads = 512;
constexpr int kGroups = kThreads / 128;
constexpr int kRows = 64;  // of a tile

/// Sums over one chunk of keys: as `linear_branch_sums`, with kThreads threads.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
linear_branch_sums_sm90(const bf16* k, const bf16* v, float* kv_parts, float* statistics, int keys,
                        int heads, int chunk) {
    using Rows = Tile<kRows, kDim>;
    constexpr int kStages = 4;
    constexpr int kColumnGroups = kGroups / (kDim / 64);  // warpgroups that share 64 rows of kv
    constexpr int kColumns = kDim / kColumnGroups;        // columns of kv per warpgroup
    extern __shared__ __align__(1024) u8 shared[];        // stages of (k, v)
    const int head = blockIdx.y;
    const i64 stride = i64(heads) * kDim;
    const int first = blockIdx.x * chunk;
    const int count = max(0, min(chunk, keys - first));
    const int lane = lane_id();
    const int lane8 = lane % 8;
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0);
    const int feature = group / kColumnGroups * 64;
    const int column = group % kColumnGroups * kColumns;

    const int tiles = ceil_div(count, kRows);
    auto load = [&](int tile) {
        if (tile < tiles) {
            const u32 stage = shared_address(shared) + tile % kStages * (2 * Rows::kBytes);
            const i64 place = (first + tile * kRows) * stride + head * kDim;
            const int rows = count - tile * kRows;
            Rows::template load<kThreads>(stage, k + place, stride, rows, kDim);
            Rows::template load<kThreads>(stage + Rows::kBytes, v + place, stride, rows, kDim);
        }
        cp_async_commit();
    };

    float kv[kColumns / 2];
    float feature_sum[4] = {};  // sums of 16 features, the same in all eight columns
    float keys_sum[kDim / 64][8] = {};
    u32 largest[kDim / 64][4] = {};  // pairs of |v| as integers, which have the same order
    load(0);
    load(1);
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        u8* k_tile = shared + tile % kStages * (2 * Rows::kBytes);
        u8* v_tile = k_tile + Rows::kBytes;
        cp_async_wait<1>();
        fence_proxy_async();
        __syncthreads();  // the tile has arrived, and the products with the one two before it are done
        load(tile + 2);
        features<kRows, kDim, kThreads>(
            k_tile, threadIdx.x, count - tile * kRows,
            [&](int row, const float(&x)[kDim / 64][8]) {
#pragma unroll
                for (int i = 0; i < kDim / 64; i++) {
                    const uint4 value = *reinterpret_cast<const uint4*>(
                        v_tile + Rows::offset(row, (lane8 + 8 * i) * 16));
                    const u32 words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        largest[i][e] = __vmaxu2(largest[i][e], words[e] & 0x7fff7fffu);
                    }
#pragma unroll
                    for (int e = 0; e < 8; e++) keys_sum[i][e] += x[i][e];  // zero past the end
                }
            },
            [](int, const float(&)[kDim / 64][8]) {});
        fence_proxy_async();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < kRows / 16; step++) {
            // The rows of A are features, so the matrices of the k tile (rows are keys) are transposed.
            u32 a[4];
            const int row = step * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix_x4_trans(a, shared_address(k_tile) +
                                     Rows::offset(row, (feature + warp_id() % 4 * 16) * 2 +
                                                           lane / 8 % 2 * 16));
            mma_m16n8k16_bf16(feature_sum, a, kOnes, kOnes);
        }
        wgmma_wait<0>();
        wgmma_hold(kv);
        const u64 a = wgmma_descriptor_128b_transposed(
            shared_address(k_tile) + feature / 64 * (kRows * 128), kRows * 128);
        const u64 b = wgmma_descriptor_128b_transposed(
            shared_address(v_tile) + column / 64 * (kRows * 128) + column % 64 * 2, kRows * 128);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kRows / 16; step++) {
            wgmma_bf16<kColumns, true, true>(kv, a + 128 * step, b + 128 * step, tile + step > 0);
        }
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_hold(kv);

    const int row = feature + warp_id() % 4 * 16 + lane / 4;  // and 8 further
    float* part = kv_parts + (i64(head) * gridDim.x + blockIdx.x) * (kDim * kDim);
#pragma unroll
    for (int j = 0; j < kColumns / 8; j++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            Vector<float, 2> pair{{0.0f, 0.0f}};
            if (tiles > 0) pair = {{kv[4 * j + 2 * r], kv[4 * j + 2 * r + 1]}};
            pair.store(part + (row + 8 * r) * kDim + column + 8 * j + 2 * (lane % 4));
        }
    }
    statistics += (i64(head) * gridDim.x + blockIdx.x) * (kStatistics * kDim);
    if (column == 0 && lane % 4 == 0) {
        statistics[kFeatureSum * kDim + row] = feature_sum[0];
        statistics[kFeatureSum * kDim + row + 8] = feature_sum[2];
    }
    float sums[2][kDim / 64][8];
#pragma unroll
    for (int i = 0; i < kDim / 64; i++) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            sums[kKeySum][i][e] = keys_sum[i][e];
            const u32 pair = largest[i][e / 2];
            sums[kValueMaximum][i][e] = e % 2 ? bf16_high(pair) : bf16_low(pair);
        }
    }
    __syncthreads();
    join_statistics<kDim, kThreads>(sums, reinterpret_cast<float*>(shared), statistics);
}

template <int kDim>
struct ProjectLayout {
    static constexpr int kMatrixBytes = kDim * kDim * 2;
    static constexpr int kTileBytes = kRows * kDim * 2;
    static constexpr int kWeight = kMatrixBytes;
    static constexpr int kTiles = 2 * kMatrixBytes;  // two for each warpgroup
    static constexpr int kSums = kTiles + 2 * kGroups * kTileBytes;
    static constexpr int kBias = kSums + kDim * 4;
    static constexpr int kDenominators = kBias + kDim * 4;
    static constexpr int kMaxima = kDenominators + kGroups * kRows * 4;
    static constexpr int kPooled = kMaxima + kGroups * 4 * 4;  // eight pairs of rows of each group
    static constexpr int kBytes = kPooled + kGroups * 8 * kDim * 4;
};

/// Where quantised q is written, as by sage_quantize_rows with blocks of 64 rows. Codes: int8 [heads, blocks * 64, dim];
/// scales: f32 [heads, blocks]; block means: bf16 [heads, blocks, dim]
struct QuantizedRows {
    i8* codes;
    float* scales;
    bf16* pooled;
};

/// The result of the branch: as `linear_branch_project`, with kThreads threads; `chunk` is a multiple of 64 rows. The
/// warpgroups share only the matrices; each takes every fourth tile of the chunk. kQuantizes: also quantises q, which
/// then is read only once.
template <int kDim, bool kQuantizes>
__global__ void __launch_bounds__(kThreads, 1)
linear_branch_project_sm90(const bf16* q, const bf16* kv, const bf16* feature_sum, const bf16* weight,
                           const float* bias, bf16* out, QuantizedRows quantized, int queries, int heads,
                           int chunk) {
    static_assert(!kQuantizes || kDim == 128);  // the sums below
    using L = ProjectLayout<kDim>;
    using Rows = Tile<kRows, kDim>;
    using Matrix = Tile<kDim, kDim>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    float* sums = reinterpret_cast<float*>(shared + L::kSums);
    float* biases = reinterpret_cast<float*>(shared + L::kBias);
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0);
    float* denominators = reinterpret_cast<float*>(shared + L::kDenominators) + group * kRows;
    float* maxima = reinterpret_cast<float*>(shared + L::kMaxima) + group * 4;
    float* pooled = reinterpret_cast<float*>(shared + L::kPooled) + group * 8 * kDim;  // [8][dim]
    const int thread = int(threadIdx.x) % 128;
    const int head = blockIdx.y;
    const i64 stride = i64(heads) * kDim;
    const int end = min(queries, int(blockIdx.x + 1) * chunk);
    const int lane = lane_id();
    const int lane8 = lane % 8;

    auto tile_offset = [&](int n) { return L::kTiles + (2 * group + n % 2) * L::kTileBytes; };
    auto load = [&](int n, int first) {
        if (first < end) {
            Rows::template load<128>(base + tile_offset(n), q + first * stride + head * kDim, stride,
                                     end - first, kDim, thread);
        }
        cp_async_commit();
    };
    const int begin = int(blockIdx.x) * chunk + group * kRows;
    load(0, begin);
    Matrix::template load<kThreads>(base, kv + i64(head) * (kDim * kDim), kDim, kDim, kDim);
    Matrix::template load<kThreads>(base + L::kWeight, weight, kDim, kDim, kDim);
    cp_async_commit();
    for (int i = threadIdx.x; i < kDim; i += kThreads) {
        sums[i] = feature_sum[head * kDim + i];
        biases[i] = bias ? round_bf16(bias[i]) : 0.0f;
    }
    cp_async_wait<0>();
    fence_proxy_async();
    __syncthreads();

    const u64 kv_tile = wgmma_descriptor_128b_transposed(base, kDim * 128);
    const u64 weight_tile = wgmma_descriptor_128b(base + L::kWeight);
    int first = begin;
#pragma unroll 1
    for (int n = 0; first < end; n++, first += kGroups * kRows) {
        cp_async_wait<0>();
        bar_sync(1 + group, 128);  // the tile has arrived, and the warpgroup is done with the other one
        load(n + 1, first + kGroups * kRows);
        // For quantisation: this thread's values, their sums over its rows, and the largest magnitude.
        constexpr int kOwn = kQuantizes ? kRows / 16 : 0;
        uint4 raw[kOwn + 1][kDim / 64];
        float largest = 0;
        if constexpr (kQuantizes) {
            float sum[kDim / 64][8] = {};
#pragma unroll
            for (int i = 0; i < kOwn * (kDim / 64); i++) {
                const int pass = i / (kDim / 64), c = i % (kDim / 64);
                raw[pass][c] = *reinterpret_cast<const uint4*>(
                    shared + tile_offset(n) +
                    Rows::offset(thread / 8 + pass * 16, (lane8 + 8 * c) * 16));
                float x[8];
                unpack_bf16(x, raw[pass][c]);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    sum[c][e] += x[e];  // zero past the end
                    largest = fmaxf(largest, fabsf(x[e]));
                }
            }
            // Sums of pairs of rows. The mean is computed from eight of them, in the order of sage_quantize_rows.
#pragma unroll
            for (int i = 0; i < kDim / 64 * 8; i++) {
                sum[i / 8][i % 8] += __shfl_xor_sync(0xffffffffu, sum[i / 8][i % 8], 8);
            }
            if (lane / 8 % 2 == 0) {
                float* to = pooled + (thread / 32 * 2 + lane / 16) * kDim + lane8 * 8;
#pragma unroll
                for (int i = 0; i < kDim / 64 * 2; i++) {
                    const float* s = sum[i / 2] + i % 2 * 4;
                    *reinterpret_cast<float4*>(to + i / 2 * 64 + i % 2 * 4) =
                        make_float4(s[0], s[1], s[2], s[3]);
                }
            }
            largest = warp_max(largest);
            if (lane == 0) maxima[thread / 32] = largest;
        }
        features<kRows, kDim, 128>(
            shared + tile_offset(n), thread, end - first,
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
        fence_proxy_async();
        bar_sync(1 + group, 128);
        if constexpr (kQuantizes) {
            const int blocks = ceil_div(queries, kRows);
            const i64 place = i64(head) * blocks + first / kRows;
#pragma unroll
            for (int w = 0; w < 4; w++) largest = fmaxf(largest, maxima[w]);
            const float scale = sage_scale(largest);
            const float inverse = 1.0f / scale;
            if (thread == 0) quantized.scales[place] = scale;
            float total = 0;
#pragma unroll
            for (int p = 0; p < 8; p++) total += pooled[p * kDim + thread];
            quantized.pooled[place * kDim + thread] = bf16(total / float(min(kRows, queries - first)));
#pragma unroll
            for (int i = 0; i < kOwn * (kDim / 64); i++) {
                const int p = i / (kDim / 64), c = i % (kDim / 64);
                *reinterpret_cast<uint2*>(quantized.codes + (place * kRows + thread / 8 + p * 16) * kDim +
                                          (lane8 + 8 * c) * 8) = sage_codes(raw[p][c], inverse);
            }
        }

        u32 quotient[kDim / 8][2];
        {
            const u64 q_tile = wgmma_descriptor_128b(base + tile_offset(n));
            float o[kDim / 2];
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < kDim / 16; step++) {
                wgmma_bf16<kDim, true>(o, q_tile + step / 4 * (kRows * 128 / 16) + 2 * (step % 4),
                                       kv_tile + 128 * step, step > 0);
            }
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_hold(o);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float denominator = denominators[thread / 32 * 16 + lane / 4 + 8 * r];
#pragma unroll
                for (int j = 0; j < kDim / 8; j++) {
                    quotient[j][r] =
                        pack_bf16(__fdividef(round_bf16(o[4 * j + 2 * r]), denominator),
                                  __fdividef(round_bf16(o[4 * j + 2 * r + 1]), denominator));
                }
            }
        }
        float y[kDim / 2];
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDim / 16; step++) {
            const u32 a[4] = {quotient[2 * step][0], quotient[2 * step][1], quotient[2 * step + 1][0],
                              quotient[2 * step + 1][1]};
            wgmma_bf16<kDim>(y, a, weight_tile + step / 4 * (kDim * 128 / 16) + 2 * (step % 4),
                             step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(y);
        u32 x[2][kDim / 8];
#pragma unroll
        for (int j = 0; j < kDim / 8; j++) {
            const float b0 = biases[8 * j + 2 * (lane % 4)];
            const float b1 = biases[8 * j + 2 * (lane % 4) + 1];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                x[r][j] = pack_bf16(y[4 * j + 2 * r] + b0, y[4 * j + 2 * r + 1] + b1);
            }
        }
        const int row = first + thread / 32 * 16 + lane / 4;
        gather_rows(x, nullptr, stride, end - row);
        write_rows(out + row * stride + head * kDim, stride, end - row, x);
    }
}
