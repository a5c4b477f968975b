// Derivatives of the linear branch of sparse-linear attention, in f32: cq, ck = softmax over a head's width, M = ck^T v,
// s = sum ck, den = 1e-5 + cq s, y = cq M / den. All tensors f32 [tokens, heads, dim] unless told otherwise; rows are
// (token, head), and a warp has one. Where the operation's tensors are bf16, products are made on the tensor cores: both
// operands are rounded to TF32, which changes no bf16 number and features and sums by at most 2^-11 of themselves; what
// is added up is f32.
#include "ptx.cuh"

constexpr int kThreads = 256;

/// One row of kDim numbers: lane l has l, l + 32, …
template <int kDim>
struct LaneRow {
    float values[kDim / 32];

    template <typename T>
    DEVICE void load(const T* row) {
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) values[j] = float(row[32 * j + lane_id()]);
    }
    DEVICE void store(float* row) const {
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) row[32 * j + lane_id()] = values[j];
    }
    DEVICE float dot(const LaneRow& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) sum += values[j] * other.values[j];
        return warp_sum(sum);
    }
};

/// The row of this warp; grid: ceil(rows / 8)
DEVICE i64 own_row() { return i64(blockIdx.x) * (kThreads / 32) + warp_id(); }

/// Softmax of each row of x → out
template <int kDim, typename T>
__global__ void __launch_bounds__(kThreads) branch_features(float* out, const T* x, i64 rows) {
    const i64 row = own_row();
    if (row >= rows) return;
    LaneRow<kDim> y;
    y.load(x + row * kDim);
    float most = y.values[0];
#pragma unroll
    for (int j = 1; j < kDim / 32; ++j) most = fmaxf(most, y.values[j]);
    most = warp_max(most);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
        y.values[j] = expf(y.values[j] - most);
        sum += y.values[j];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) y.values[j] /= sum;
    y.store(out + row * kDim);
}

/// out (+)= c * (u - <c, u>), the Jacobian of a softmax times u + factor * vector. vector: [heads, dim] or null;
/// factor: [rows], null for 1
template <int kDim>
__global__ void __launch_bounds__(kThreads)
branch_jacobian(float* out, const float* c, const float* u, const float* vector, const float* factor, i64 rows,
                int heads, int adds) {
    const i64 row = own_row();
    if (row >= rows) return;
    LaneRow<kDim> x, y;
    x.load(c + row * kDim);
    y.load(u + row * kDim);
    if (vector) {
        LaneRow<kDim> z;
        z.load(vector + row % heads * kDim);
        const float f = factor ? factor[row] : 1.0f;
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) y.values[j] += f * z.values[j];
    }
    const float along = x.dot(y);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) y.values[j] = x.values[j] * (y.values[j] - along);
    if (adds) {
        x.load(out + row * kDim);
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) y.values[j] += x.values[j];
    }
    y.store(out + row * kDim);
}

/// From cq, cq M and dy: y in place of cq M, d (cq M) = dy / den in place of dy, d den = -<dy, y> / den in `slopes`
/// [rows], cq * d den in `weighted`. sums: [heads, dim]
template <int kDim>
__global__ void __launch_bounds__(kThreads)
branch_quotient(const float* cq, float* y, float* dy, float* slopes, float* weighted, const float* sums, i64 rows,
                int heads) {
    const i64 row = own_row();
    if (row >= rows) return;
    LaneRow<kDim> c, s, x, g;
    c.load(cq + row * kDim);
    s.load(sums + row % heads * kDim);
    x.load(y + row * kDim);
    g.load(dy + row * kDim);
    const float total = 1e-5f + c.dot(s);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x.values[j] /= total;
    const float slope = -g.dot(x) / total;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
        g.values[j] /= total;
        c.values[j] *= slope;
    }
    x.store(y + row * kDim);
    g.store(dy + row * kDim);
    c.store(weighted + row * kDim);
    if (lane_id() == 0) slopes[row] = slope;
}

/// The tangent of y: (moved - y * t den) / den in place of `moved`, which is tcq M + cq tM. product: cq M;
/// sums, moving_sums: s and its tangent, [heads, dim]
template <int kDim>
__global__ void __launch_bounds__(kThreads)
branch_moved(float* moved, const float* cq, const float* tcq, const float* product, const float* sums,
             const float* moving_sums, i64 rows, int heads) {
    const i64 row = own_row();
    if (row >= rows) return;
    LaneRow<kDim> c, t, s, ts, x, m;
    c.load(cq + row * kDim);
    t.load(tcq + row * kDim);
    s.load(sums + row % heads * kDim);
    ts.load(moving_sums + row % heads * kDim);
    x.load(product + row * kDim);
    m.load(moved + row * kDim);
    const float total = 1e-5f + c.dot(s);
    const float moving = t.dot(s) + c.dot(ts);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
        m.values[j] = (m.values[j] - x.values[j] / total * moving) / total;
    }
    m.store(moved + row * kDim);
}

/// Four numbers, whose place is a multiple of their size.
DEVICE float4 load_four(const float* x) { return *reinterpret_cast<const float4*>(x); }
DEVICE float4 load_four(const bf16* x) {
    const uint2 words = *reinterpret_cast<const uint2*>(x);
    return make_float4(bf16_low(words.x), bf16_high(words.x), bf16_low(words.y), bf16_high(words.y));
}

/// As a product takes it: rounded to TF32 for the tensor cores.
template <bool kTensor>
DEVICE float4 rounded(float4 x) {
    if constexpr (kTensor) x.x = round_tf32(x.x), x.y = round_tf32(x.y), x.z = round_tf32(x.z), x.w = round_tf32(x.w);
    return x;
}

/// Four numbers of each of `count` rows of a head → rows of kStride floats; zeros from row `end` on.
template <int kDim, int kStride, bool kTensor, typename T>
DEVICE void load_rows(float* tile, const T* x, int count, int first, int end, int head, int heads) {
    for (int i = threadIdx.x; i < count * (kDim / 4); i += kThreads) {
        const int r = i / (kDim / 4), c = i % (kDim / 4) * 4;
        float4 four = make_float4(0, 0, 0, 0);
        if (first + r < end) four = rounded<kTensor>(load_four(x + (i64(first + r) * heads + head) * kDim + c));
        *reinterpret_cast<float4*>(tile + r * kStride + c) = four;
    }
}

/// out (+)= a B of each head. b: [heads, kDim, kDim], or one matrix for all heads if `shared_matrix`; B is its transpose
/// if `turned`. grid (chunks, heads): a block keeps B and takes every gridDim.x-th tile of 64 tokens.
/// Shared memory: B, and 64 rows of kDim + 4 floats
template <int kDim, bool kTensor, typename A>
__global__ void __launch_bounds__(kThreads)
head_product(float* out, const A* a, const float* b, int tokens, int heads, int shared_matrix, int turned,
             int adds) {
    constexpr int kRows = 64, kStride = kDim + 4;
    // Where B's number lies: no two lanes of a warp read a bank at once.
    auto place = [](int r, int c) { return r * kDim + (c ^ r % 4 * 8); };
    extern __shared__ __align__(16) u8 shared[];
    float* matrix = reinterpret_cast<float*>(shared);
    float* tile = matrix + kDim * kDim;
    const int head = blockIdx.y;
    const float* from = b + (shared_matrix ? 0 : i64(head) * kDim * kDim);
    for (int i = threadIdx.x; i < kDim * kDim; i += kThreads) {
        const int r = i / kDim, c = i % kDim;
        matrix[turned ? place(c, r) : place(r, c)] = kTensor ? round_tf32(from[i]) : from[i];
    }
    for (int first = blockIdx.x * kRows; first < tokens; first += gridDim.x * kRows) {
        __syncthreads();
        load_rows<kDim, kStride, kTensor>(tile, a, kRows, first, tokens, head, heads);
        __syncthreads();
        if constexpr (kTensor) {
            // A warp has 16 rows and half of the columns.
            constexpr int kTiles = kDim / 16;
            const int row = warp_id() % 4 * 16 + lane_id() / 4, column = warp_id() / 4 * (kDim / 2);
            int across[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) across[j] = column + (8 * j ^ lane_id() % 4 * 8) + lane_id() / 4;
            float sums[kTiles][4] = {};
#pragma unroll 4
            for (int d = lane_id() % 4; d < kDim; d += 8) {
                const float* x = tile + row * kStride + d;
                const u32 left[4] = {__float_as_uint(x[0]), __float_as_uint(x[8 * kStride]), __float_as_uint(x[4]),
                                     __float_as_uint(x[8 * kStride + 4])};
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
                    const float* y = matrix + d * kDim + across[j % 4] + j / 4 * 32;
                    mma_m16n8k8_tf32(sums[j], left, __float_as_uint(y[0]), __float_as_uint(y[4 * kDim]));
                }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (first + row + 8 * h >= tokens) continue;
                float* const to =
                    out + (i64(first + row + 8 * h) * heads + head) * kDim + column + 2 * (lane_id() % 4);
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
                    float2& old = *reinterpret_cast<float2*>(to + 8 * j);
                    float2 sum = make_float2(sums[j][2 * h], sums[j][2 * h + 1]);
                    if (adds) sum.x += old.x, sum.y += old.y;
                    old = sum;
                }
            }
        } else {
            constexpr int kAcross = kDim / 4;                    // threads side by side, four columns each
            constexpr int kHigh = kRows / (kThreads / kAcross);  // rows of a thread, one below the other
            const int row = int(threadIdx.x) / kAcross * kHigh, column = int(threadIdx.x) % kAcross * 4;
            float4 sums[kHigh] = {};
            for (int d = 0; d < kDim; d += 4) {
                float4 y[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) y[e] = *reinterpret_cast<const float4*>(matrix + place(d + e, column));
#pragma unroll
                for (int i = 0; i < kHigh; ++i) {
                    const float4 x = *reinterpret_cast<const float4*>(tile + (row + i) * kStride + d);
                    const float parts[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        sums[i].x += parts[e] * y[e].x, sums[i].y += parts[e] * y[e].y;
                        sums[i].z += parts[e] * y[e].z, sums[i].w += parts[e] * y[e].w;
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < kHigh; ++i) {
                if (first + row + i >= tokens) continue;
                float4* to = reinterpret_cast<float4*>(out + (i64(first + row + i) * heads + head) * kDim + column);
                if (adds) {
                    const float4 x = *to;
                    sums[i].x += x.x, sums[i].y += x.y, sums[i].z += x.z, sums[i].w += x.w;
                }
                *to = sums[i];
            }
        }
    }
}

/// a^T b over a chunk of tokens of each head → parts: [heads, chunks, kDim, kDim]; grid (chunks, heads); `chunk` is a
/// multiple of 32. Shared memory: 64 rows of kDim + 8 floats
template <int kDim, bool kTensor, typename A, typename B>
__global__ void __launch_bounds__(kThreads, 2)
outer_parts(float* parts, const A* a, const B* b, int tokens, int heads, int chunk) {
    constexpr int kRows = 32, kStride = kDim + 8;
    extern __shared__ __align__(16) u8 shared[];
    float* left = reinterpret_cast<float*>(shared);
    float* right = left + kRows * kStride;
    const int head = blockIdx.y;
    const int end = min(tokens, int(blockIdx.x + 1) * chunk);
    float* const to = parts + (i64(head) * gridDim.x + blockIdx.x) * kDim * kDim;
    auto each_tile = [&](auto body) {
        for (int first = blockIdx.x * chunk; first < end; first += kRows) {
            __syncthreads();
            load_rows<kDim, kStride, kTensor>(left, a, kRows, first, end, head, heads);
            load_rows<kDim, kStride, kTensor>(right, b, kRows, first, end, head, heads);
            __syncthreads();
            body();
        }
    };
    if constexpr (kTensor) {
        // A warp has a quarter of the rows and half of the columns.
        constexpr int kHigh = kDim / 64, kWide = kDim / 16;
        const int row = warp_id() % 4 * (kDim / 4) + lane_id() / 4;
        const int column = warp_id() / 4 * (kDim / 2);
        float sums[kHigh][kWide][4] = {};
        each_tile([&] {
#pragma unroll
            for (int r = 0; r < kRows; r += 8) {
                u32 x[kHigh][4];
                const float* from = left + (r + lane_id() % 4) * kStride + row;
#pragma unroll
                for (int i = 0; i < kHigh; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) x[i][e] = __float_as_uint(from[e / 2 * 4 * kStride + 16 * i + e % 2 * 8]);
                }
                const float* y = right + (r + lane_id() % 4) * kStride + column + lane_id() / 4;
#pragma unroll
                for (int j = 0; j < kWide; ++j) {
                    const u32 y0 = __float_as_uint(y[8 * j]), y1 = __float_as_uint(y[4 * kStride + 8 * j]);
#pragma unroll
                    for (int i = 0; i < kHigh; ++i) mma_m16n8k8_tf32(sums[i][j], x[i], y0, y1);
                }
            }
        });
#pragma unroll
        for (int i = 0; i < kHigh; ++i) {
#pragma unroll
            for (int j = 0; j < kWide; ++j) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    *reinterpret_cast<float2*>(to + (row + 16 * i + 8 * h) * kDim + column + 8 * j + 2 * (lane_id() % 4)) =
                        make_float2(sums[i][j][2 * h], sums[i][j][2 * h + 1]);
                }
            }
        }
    } else {
        constexpr int kPart = kDim / 16;  // rows and columns of the sum that one thread keeps
        const int row = int(threadIdx.x) / 16, column = int(threadIdx.x) % 16;
        float sums[kPart][kPart] = {};
        each_tile([&] {
            for (int r = 0; r < kRows; ++r) {
                float x[kPart], y[kPart];
#pragma unroll
                for (int i = 0; i < kPart; ++i) {
                    x[i] = left[r * kStride + row + 16 * i];
                    y[i] = right[r * kStride + column + 16 * i];
                }
#pragma unroll
                for (int i = 0; i < kPart; ++i) {
#pragma unroll
                    for (int j = 0; j < kPart; ++j) sums[i][j] += x[i] * y[j];
                }
            }
        });
#pragma unroll
        for (int i = 0; i < kPart; ++i) {
#pragma unroll
            for (int j = 0; j < kPart; ++j) to[(row + 16 * i) * kDim + column + 16 * j] = sums[i][j];
        }
    }
}

/// Adds up the parts of each group. parts: [groups, count, size] → whole (+)= [groups, size];
/// grid (ceil(size / 256), groups)
__global__ void __launch_bounds__(kThreads)
branch_join(float* whole, const float* parts, int count, int size, int adds) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= size) return;
    double sum = 0.0;
    for (int k = 0; k < count; ++k) sum += double(parts[(i64(blockIdx.y) * count + k) * size + i]);
    float& to = whole[i64(blockIdx.y) * size + i];
    to = adds ? to + float(sum) : float(sum);
}
