// Attention in f32 arithmetic, for f32 tensors and for head dimensions that no tensor-core kernel supports.
//
// One block of threads computes kQueries rows of one head; each thread handles two rows and every eighth of 32 keys.
// Operands are widened to f32 in shared memory. `dim` may be any multiple of 4 up to kDim.
#include "attention.cuh"

constexpr int kTile = 32;

/// q: [queries, heads, dim] → out; grid (ceil(queries / kQueries), heads), 4 * kQueries threads.
template <typename T, int kDim, int kQueries, Keys kKeys>
__global__ void __launch_bounds__(4 * kQueries, 2)
attention_simt(const AttentionArguments a) {
    constexpr int kThreads = 4 * kQueries;
    constexpr int kStride = kDim + 4;  // eight rows of four floats fall into 32 different banks
    constexpr int kPart = kDim / 32;   // float4 of a row of the result that one thread keeps
    extern __shared__ __align__(16) u8 shared[];
    float* q = reinterpret_cast<float*>(shared);
    float* kv = q + kQueries * kStride;
    float* p = kv + kTile * kStride;

    const int head = blockIdx.y;
    const int first = blockIdx.x * kQueries;
    const int pair = threadIdx.x / 8;
    const int lane = threadIdx.x % 8;

    auto load = [&](float* to, const void* from, int row, int rows, int count) {
        const T* source = static_cast<const T*>(from);
        for (int i = threadIdx.x; i < count * (kDim / 4); i += kThreads) {
            const int r = i / (kDim / 4);
            const int d = i % (kDim / 4) * 4;
            float4 x = make_float4(0, 0, 0, 0);
            if (row + r < rows && d < a.dim) {
                const auto y =
                    Vector<T, 4>::load(source + (i64(row + r) * a.heads + head) * a.dim + d);
                x = make_float4(float(y[0]), float(y[1]), float(y[2]), float(y[3]));
            }
            *reinterpret_cast<float4*>(to + r * kStride + d) = x;
        }
    };
    load(q, a.q, first, a.queries, kQueries);

    float4 o[2][kPart] = {};
    float maximum[2] = {-kInfinity, -kInfinity};
    float sum[2] = {0, 0};
    const int steps = kKeys == Keys::listed ? a.key_block / kTile : 1;
    const int blocks = kKeys == Keys::listed ? a.selected * steps : ceil_div(a.keys, kTile);
    const int* list = nullptr;
    if (kKeys == Keys::listed) {
        const int query_blocks = ceil_div(a.queries, a.query_block);
        list = a.indices + (i64(head) * query_blocks + first / a.query_block) * a.selected;
    }
    for (int block = 0; block < blocks; block++) {
        int key = block * kTile;
        if (kKeys == Keys::listed) key = list[block / steps] * a.key_block + block % steps * kTile;
        if (key >= a.keys) continue;
        __syncthreads();
        load(kv, a.k, key, a.keys, kTile);
        __syncthreads();

        float s[2][4] = {};
        for (int d = 0; d < a.dim; d += 4) {
            float4 x[2], y[4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                x[i] = *reinterpret_cast<const float4*>(q + (2 * pair + i) * kStride + d);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                y[j] = *reinterpret_cast<const float4*>(kv + (lane + 8 * j) * kStride + d);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    s[i][j] += x[i].x * y[j].x + x[i].y * y[j].y + x[i].z * y[j].z + x[i].w * y[j].w;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = first + 2 * pair + i;
            float largest = -kInfinity;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = key + lane + 8 * j;
                if (kKeys == Keys::relative && column < a.keys) {
                    s[i][j] += a.table[position_bucket(column - row) * a.heads + head];
                }
                s[i][j] = (s[i][j] + multiplicity(a, column)) * a.scale;
                largest = fmaxf(largest, s[i][j]);
            }
            largest = fmaxf(maximum[i], warp_max<8>(largest));
            const float decay = exp2f(maximum[i] - largest);
            maximum[i] = largest;
            float total = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float x = exp2f(s[i][j] - largest);
                p[(2 * pair + i) * (kTile + 1) + lane + 8 * j] = x;
                total += x;
            }
            sum[i] = sum[i] * decay + warp_sum<8>(total);
#pragma unroll
            for (int c = 0; c < kPart; c++) {
                o[i][c].x *= decay;
                o[i][c].y *= decay;
                o[i][c].z *= decay;
                o[i][c].w *= decay;
            }
        }
        __syncthreads();
        load(kv, a.v, key, a.keys, kTile);
        __syncthreads();
        for (int j = 0; j < kTile; j++) {
            const float x = p[(2 * pair) * (kTile + 1) + j];
            const float y = p[(2 * pair + 1) * (kTile + 1) + j];
#pragma unroll
            for (int c = 0; c < kPart; c++) {
                const float4 v =
                    *reinterpret_cast<const float4*>(kv + j * kStride + 4 * lane + 32 * c);
                o[0][c].x += x * v.x, o[0][c].y += x * v.y, o[0][c].z += x * v.z, o[0][c].w += x * v.w;
                o[1][c].x += y * v.x, o[1][c].y += y * v.y, o[1][c].z += y * v.z, o[1][c].w += y * v.w;
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = first + 2 * pair + i;
        if (row >= a.queries) continue;
        const float inverse = 1.0f / sum[i];
#pragma unroll
        for (int c = 0; c < kPart; c++) {
            const int d = 4 * lane + 32 * c;
            if (d >= a.dim) continue;
            const i64 place = (i64(row) * a.heads + head) * a.dim + d;
            float x[4] = {o[i][c].x * inverse, o[i][c].y * inverse, o[i][c].z * inverse,
                          o[i][c].w * inverse};
            Vector<T, 4> y;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                // Nothing is rounded before the linear branch is added; a bf16 result is rounded once, at the end.
                if (a.addend) x[e] += static_cast<const float*>(a.addend)[place + e];
                y[e] = T(x[e]);
            }
            y.store(static_cast<T*>(a.out) + place);
        }
    }
}
