// Derivatives of attention in f32 arithmetic: to all keys or to those of listed blocks, in both modes.
//
// S = scale q k^T over the listed keys, P = softmax S. With E = g v^T in reverse mode, E = tq k^T + q tk^T in forward
// mode, D = scale P * (E - rowsum(P * E)):
//     dq = D k by the lists, dk = D^T q and dv = P^T g by the inverted lists; to = P tv + D v.
// A first pass over the keys finds the logarithm of each query's denominator and rowsum(P * E); the others compute P
// again from it. A block of threads owns kTile queries (keys, for dk and dv) of one head and visits the others in tiles;
// each thread has one row, and every eighth column of a tile. No sum depends on the order of blocks.
#include "attention_gradient.cuh"

DEVICE void add_dot(float& sum, float4 a, float4 b) { sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

DEVICE void add_scaled(float4& sum, float factor, float4 a) {
    sum.x += factor * a.x, sum.y += factor * a.y, sum.z += factor * a.z, sum.w += factor * a.w;
}

DEVICE float4 at4(const float* p) { return *reinterpret_cast<const float4*>(p); }

/// grid (ceil(owned rows / kTile), heads, parts of the other rows: 1 but for dk and dv), 8 * kTile threads; `dim`: a multiple of 4 up to kDim.
/// Shared memory: four tiles of kTile rows of kDim + 4 floats, two of kTile rows of kTile + 1.
template <int kDim, int kTile, Pass kPass>
__global__ void __launch_bounds__(8 * kTile, 2) attention_gradient(const GradientArguments a) {
    constexpr bool kByKeys = kPass == Pass::key_gradient;
    constexpr bool kForward = kPass == Pass::forward_statistics || kPass == Pass::tangent;
    constexpr bool kStatistics = kPass == Pass::reverse_statistics || kPass == Pass::forward_statistics;
    constexpr int kStride = kDim + 4;
    constexpr int kPart = kDim / 32;
    constexpr int kColumns = kTile / 8;
    extern __shared__ __align__(16) u8 shared[];
    float* own1 = reinterpret_cast<float*>(shared);
    float* own2 = own1 + kTile * kStride;
    float* other1 = own2 + kTile * kStride;
    float* other2 = other1 + kTile * kStride;
    float* p = other2 + kTile * kStride;
    float* d = p + kTile * (kTile + 1);

    const int head = blockIdx.y;
    const int first = blockIdx.x * kTile;
    const int row = int(threadIdx.x) / 8, lane = int(threadIdx.x) % 8;
    const int own_count = kByKeys ? a.keys : a.queries, other_count = kByKeys ? a.queries : a.keys;

    // Zeros past the end, past `dim`, and where there is no tensor.
    auto load = [&](float* to, const void* tensor, int start, int rows) {
        const float* from = static_cast<const float*>(tensor);
        for (int i = threadIdx.x; i < kTile * (kDim / 4); i += 8 * kTile) {
            const int r = i / (kDim / 4), c = i % (kDim / 4) * 4;
            float4 x = make_float4(0, 0, 0, 0);
            if (from && start + r < rows && c < a.dim) {
                x = at4(from + (i64(start + r) * a.heads + head) * a.dim + c);
            }
            *reinterpret_cast<float4*>(to + r * kStride + c) = x;
        }
    };
    load(own1, kByKeys ? a.k : a.q, first, own_count);
    load(own2, kForward ? a.tq : kByKeys ? a.v : a.g, first, own_count);

    // Of this thread's query, where it owns one.
    float2 known = make_float2(0, 0);
    if (!kStatistics && !kByKeys && first + row < a.queries) {
        known = a.statistics[i64(head) * a.queries + first + row];
    }
    float largest = -kInfinity, total = 0, along = 0;
    float4 sum1[kPart] = {}, sum2[kPart] = {};

    const Walk<kTile, kByKeys> walk(a, head, first);
    for (int i = walk.begin; i < walk.end; ++i) {
        const int start = walk.at(i);
        if (start >= other_count) continue;
        __syncthreads();
        load(other1, kByKeys ? a.q : a.k, start, other_count);
        load(other2, kForward ? a.tk : kByKeys ? a.g : a.v, start, other_count);
        __syncthreads();

        float s[kColumns] = {}, e[kColumns] = {};
#pragma unroll 2
        for (int c = 0; c < a.dim; c += 4) {
            const float4 x = at4(own1 + row * kStride + c), y = at4(own2 + row * kStride + c);
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                const float4 z = at4(other1 + (lane + 8 * j) * kStride + c);
                const float4 w = at4(other2 + (lane + 8 * j) * kStride + c);
                add_dot(s[j], x, z);
                if (kForward) {
                    add_dot(e[j], y, z);
                    add_dot(e[j], x, w);
                } else {
                    add_dot(e[j], y, w);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const int column = start + lane + 8 * j;
            s[j] = s[j] * a.scale + multiplicity(a, kByKeys ? first + row : column);
        }
        if constexpr (kStatistics) {
            float most = largest;
#pragma unroll
            for (int j = 0; j < kColumns; ++j) most = fmaxf(most, s[j]);
            most = warp_max<8>(most);
            const float decay = expf(largest - most);
            largest = most;
            total *= decay;
            along *= decay;
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                const float x = expf(s[j] - largest);
                total += x;
                along += x * e[j];
            }
        } else {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                const int column = lane + 8 * j;
                float2 k = known;
                if (kByKeys) {
                    // Queries past the end have no weight.
                    k = start + column < a.queries ? a.statistics[i64(head) * a.queries + start + column]
                                                   : make_float2(kInfinity, 0);
                }
                const float x = expf(s[j] - k.x);
                p[row * (kTile + 1) + column] = x;
                d[row * (kTile + 1) + column] = x * (e[j] - k.y) * a.scale;
            }
            __syncthreads();
            if (kPass == Pass::tangent) {
                load(other1, a.v, start, other_count);
                load(other2, a.tv, start, other_count);
                __syncthreads();
            }
#pragma unroll 2
            for (int c = 0; c < kTile; ++c) {
                const float x = p[row * (kTile + 1) + c], y = d[row * (kTile + 1) + c];
#pragma unroll
                for (int part = 0; part < kPart; ++part) {
                    const int place = c * kStride + 4 * lane + 32 * part;
                    add_scaled(sum1[part], y, at4(other1 + place));
                    if (kPass == Pass::tangent) add_scaled(sum1[part], x, at4(other2 + place));
                    if (kByKeys) add_scaled(sum2[part], x, at4(other2 + place));
                }
            }
        }
    }

    if constexpr (kStatistics) {
        total = warp_sum<8>(total);
        along = warp_sum<8>(along);
        if (lane == 0 && first + row < a.queries) {
            a.statistics[i64(head) * a.queries + first + row] =
                make_float2(largest + logf(total), along / total);
        }
    } else {
        if (first + row >= own_count) return;
        auto store = [&](float* to, const float4 (&sum)[kPart]) {
#pragma unroll
            for (int part = 0; part < kPart; ++part) {
                const int c = 4 * lane + 32 * part;
                if (c < a.dim) {
                    *reinterpret_cast<float4*>(to + (i64(first + row) * a.heads + head) * a.dim + c) = sum[part];
                }
            }
        };
        if (kByKeys) {
            const i64 part = i64(blockIdx.z) * a.keys * a.heads * a.dim;
            store(a.dk + part, sum1);
            store(a.dv + part, sum2);
        } else {
            store(a.out, sum1);
        }
    }
}

/// Turns the lists round. indices: [heads, query_blocks, selected], ascending → inverted: [heads, key_blocks,
/// query_blocks], ascending, counts: [heads, key_blocks]; grid (ceil(key_blocks / 8), heads), 256 threads: a warp for
/// each key block
__global__ void __launch_bounds__(256)
invert_lists(const int* indices, int* inverted, int* counts, int query_blocks, int key_blocks, int selected) {
    const int block = blockIdx.x * 8 + warp_id(), head = blockIdx.y, lane = lane_id();
    if (block >= key_blocks) return;
    const i64 own = i64(head) * key_blocks + block;
    int* to = inverted + own * query_blocks;
    int count = 0;
    for (int start = 0; start < query_blocks; start += 32) {
        const int query = start + lane;
        bool found = false;
        if (query < query_blocks) {
            const int* list = indices + (i64(head) * query_blocks + query) * selected;
            int low = 0, high = selected;  // the first entry that is not below `block`
            while (low < high) {
                const int middle = (low + high) / 2;
                if (list[middle] < block) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            found = low < selected && list[low] == block;
        }
        const u32 all = __ballot_sync(0xffffffffu, found);
        if (found) to[count + __popc(all & ((1u << lane) - 1))] = query;
        count += __popc(all);
    }
    if (lane == 0) counts[own] = count;
}
