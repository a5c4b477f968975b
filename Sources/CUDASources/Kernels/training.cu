// Kernels that only training asks for and that go element by element, or only sum: slopes of activations, rotation,
// latents to tokens and back, transposed matrices, sums over rows, AdamW.
//
// Sums are taken in parts whose sizes depend on shapes alone, and parts are added in order: equal inputs give equal
// bits.
#include "rows.cuh"

constexpr int kThreads = 256;

// ---- element by element -----------------------------------------------------------------------

enum class Activation { none, gelu_tanh, silu };

DEVICE float activated(float x, int activation) {
    switch (Activation(activation)) {
        case Activation::gelu_tanh:
            return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case Activation::silu: return x / (1.0f + expf(-x));
        default: return x;
    }
}

/// d act(x) / dx. gelu is x s with s = 1 / (1 + e^(-2u)).
DEVICE float slope(float x, int activation) {
    switch (Activation(activation)) {
        case Activation::gelu_tanh: {
            const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
            const float s = 1.0f / (1.0f + expf(-2.0f * u));
            return s + x * s * (1.0f - s) * (1.0f + 3.0f * 0.044715f * x * x) * (2.0f * 0.7978845608028654f);
        }
        case Activation::silu: {
            const float s = 1.0f / (1.0f + expf(-x));
            return s + x * s * (1.0f - s);
        }
        default: return 1.0f;
    }
}

/// act(x), or act'(x) * factor where there is one. x, factor: [count] → out: [count]
template <typename T, int kVector>
__global__ void activate(T* out, const T* x, const T* factor, int activation, i64 count) {
    for_vector<kVector>(count, [&]<int kSize>(i64 i) {
        float a[kSize];
        load_floats(a, x + i);
        if (factor) {
            float f[kSize];
            load_floats(f, factor + i);
#pragma unroll
            for (int j = 0; j < kSize; ++j) a[j] = slope(a[j], activation) * f[j];
        } else {
#pragma unroll
            for (int j = 0; j < kSize; ++j) a[j] = activated(a[j], activation);
        }
        store_floats(out + i, a);
    });
}

/// Each row times (offset + factor), plus shift where there is one. x: [rows, columns], factor, shift: [columns] →
/// out: [rows, columns]; columns is a multiple of kVector.
template <typename T, int kVector>
__global__ void scale_columns(T* out, const T* x, const float* factor, const float* shift, float offset, i64 count,
                              int columns) {
    const i64 i = first_element<kVector>();
    if (i >= count) return;
    float a[kVector], f[kVector];
    load_floats(a, x + i);
    load_floats(f, factor + i % columns);
#pragma unroll
    for (int j = 0; j < kVector; ++j) a[j] *= offset + f[j];
    if (shift) {
        load_floats(f, shift + i % columns);
#pragma unroll
        for (int j = 0; j < kVector; ++j) a[j] += f[j];
    }
    store_floats(out + i, a);
}

/// Rotation of the pairs (2i, 2i + 1) of each head, by the negative angles if sign is -1; one thread a pair.
/// x: [tokens, heads, 2 * half] → out: the same; cosine, sine: [tokens, half]
template <typename T>
__global__ void rotate(T* out, const T* x, const float* cosine, const float* sine, float sign, i64 pairs,
                       int heads, int half) {
    const i64 i = first_element<1>();
    if (i >= pairs) return;
    const i64 place = i / half / heads * half + i % half;
    const float a = float(x[2 * i]), b = float(x[2 * i + 1]);
    const float c = cosine[place], s = sign * sine[place];
    out[2 * i] = T(a * c - b * s);
    out[2 * i + 1] = T(a * s + b * c);
}

// ---- latents ----------------------------------------------------------------------------------

/// in: [T * H/p * W/p, C * p*p], features (channel, kh, kw) → out: [C, T, H, W]
template <typename In>
__global__ void patchify_gradient(float* out, const In* in, int channels, int t, int h, int w, int p) {
    const i64 i = first_element<1>();
    if (i >= i64(channels) * t * h * w) return;
    const int column = int(i % w);
    const int row = int(i / w % h);
    const int frame = int(i / (i64(w) * h) % t);
    const int channel = int(i / (i64(w) * h * t));
    const i64 token = (i64(frame) * (h / p) + row / p) * (w / p) + column / p;
    out[i] = float(in[(token * channels + channel) * p * p + row % p * p + column % p]);
}

/// in: [C, T, H, W] → out: [T * H/p * W/p, p*p * C], features (kh, kw, channel)
template <typename Out>
__global__ void unpatchify_gradient(Out* out, const float* in, int channels, int t, int h, int w, int p) {
    const i64 i = first_element<1>();
    if (i >= i64(channels) * t * h * w) return;
    const int channel = int(i % channels);
    const int k = int(i / channels % (p * p));
    const i64 token = i / channels / (p * p);
    const int column = int(token % (w / p)) * p + k % p;
    const i64 line = token / (w / p);
    const int row = int(line % (h / p)) * p + k / p;
    const i64 frame = line / (h / p);
    out[i] = Out(in[((i64(channel) * t + frame) * h + row) * w + column]);
}

// ---- matrices ---------------------------------------------------------------------------------

/// in: [rows, columns] → out: [columns, stride], zeros from `rows` on; stride: at least `rows`.
/// grid (ceil(stride / 32), ceil(columns / 32)), 256 threads
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
transpose(Out* out, const In* in, int rows, int columns, int stride) {
    __shared__ float tile[32][33];
    const int row = blockIdx.x * 32, column = blockIdx.y * 32;
    const int across = int(threadIdx.x) % 32;
    for (int i = int(threadIdx.x) / 32; i < 32; i += kThreads / 32) {
        const bool inside = row + i < rows && column + across < columns;
        tile[i][across] = inside ? float(in[i64(row + i) * columns + column + across]) : 0.0f;
    }
    __syncthreads();
    for (int i = int(threadIdx.x) / 32; i < 32; i += kThreads / 32) {
        if (column + i < columns && row + across < stride) {
            out[i64(column + i) * stride + row + across] = Out(tile[across][i]);
        }
    }
}

DEVICE float code_value(i8 code) { return float(code); }
DEVICE float code_value(e4m3 code) { return float(code); }

/// The numbers that codes stand for. codes: [rows, columns] → out; scales: one for 128 x 128 codes if `blocks`, else one
/// for each row
template <typename Code, typename Out>
__global__ void dequantize(Out* out, const Code* codes, const float* scales, int columns, i64 count, int blocks) {
    const i64 i = first_element<1>();
    if (i >= count) return;
    const i64 row = i / columns;
    const float scale = blocks ? scales[row / 128 * ceil_div(columns, 128) + i % columns / 128] : scales[row];
    out[i] = Out(code_value(codes[i]) * scale);
}

// ---- sums over rows ---------------------------------------------------------------------------

/// Sums of value(row, column) over a chunk of rows; grid (ceil(columns / 32), chunks), 256 threads: 32 columns side by
/// side, eight rows at once. parts: [chunks, columns]
template <int kCount, typename F>
DEVICE void sum_rows(float* const (&parts)[kCount], int rows, int columns, int chunk, F value) {
    __shared__ float table[kCount][kThreads / 32][32];
    const int across = int(threadIdx.x) % 32, down = int(threadIdx.x) / 32;
    const int column = blockIdx.x * 32 + across;
    const int last = min(rows, int(blockIdx.y + 1) * chunk);
    float sums[kCount] = {};
    if (column < columns) {
        for (int row = blockIdx.y * chunk + down; row < last; row += kThreads / 32) {
            float values[kCount];
            value(values, row, column);
#pragma unroll
            for (int k = 0; k < kCount; ++k) sums[k] += values[k];
        }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) table[k][down][across] = sums[k];
    __syncthreads();
    if (down > 0 || column >= columns) return;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
        float sum = 0.0f;
        for (int i = 0; i < kThreads / 32; ++i) sum += table[k][i][across];
        parts[k][i64(blockIdx.y) * columns + column] = sum;
    }
}

/// x, other: [rows, columns]; other: null for 1
template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
column_parts(float* parts, const X* x, const Y* other, int rows, int columns, int chunk) {
    sum_rows<1>({parts}, rows, columns, chunk, [&](float (&values)[1], int row, int column) {
        const i64 i = i64(row) * columns + column;
        values[0] = other ? float(x[i]) * float(other[i]) : float(x[i]);
    });
}

/// Sums of g h and of g, with h the row of x normalised by `statistics` (mean, inverse deviation).
/// x, g: [rows, columns], statistics: [rows]
template <typename X, typename G>
__global__ void __launch_bounds__(kThreads)
norm_parts(float* gains, float* biases, const X* x, const G* g, const float2* statistics, int rows, int columns,
           int chunk) {
    sum_rows<2>({gains, biases}, rows, columns, chunk, [&](float (&values)[2], int row, int column) {
        const i64 i = i64(row) * columns + column;
        const float2 s = statistics[row];
        values[1] = float(g[i]);
        values[0] = values[1] * ((float(x[i]) - s.x) * s.y);
    });
}

/// Adds up the parts. parts: [count, size] → whole: [size]
__global__ void join_parts(float* whole, const float* parts, int count, i64 size) {
    const i64 i = first_element<1>();
    if (i >= size) return;
    double sum = 0.0;
    for (int k = 0; k < count; ++k) sum += double(parts[k * size + i]);
    whole[i] = float(sum);
}

/// The sum over the threads of the block, in a fixed order; in thread 0.
DEVICE double block_sum(double x) {
    __shared__ double table[kThreads];
    table[threadIdx.x] = x;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (int(threadIdx.x) < half) table[threadIdx.x] += table[threadIdx.x + half];
        __syncthreads();
    }
    return table[0];
}

/// a, b: [count] → parts: [gridDim.x], whose sum is a b
template <typename T>
__global__ void __launch_bounds__(kThreads) dot_parts(double* parts, const T* a, const T* b, i64 count) {
    double sum = 0.0;
    for (i64 i = first_element<1>(); i < count; i += i64(gridDim.x) * kThreads) {
        sum += double(a[i]) * double(b[i]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

/// parts: [count] → whole: [1]; one block
__global__ void __launch_bounds__(kThreads) dot_join(double* whole, const double* parts, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *whole = sum;
}

// ---- parameters -------------------------------------------------------------------------------

struct AdamSettings {
    float rate, beta1, beta2, epsilon, decay, gradient_scale;
    /// 1 - beta^n
    float correction1, correction2;
};

/// One step of AdamW. All: [count]
template <typename G>
__global__ void adam_w(float* new_master, float* new_mean, float* new_square, const float* master, const float* mean,
                       const float* square, const G* gradient, AdamSettings s, i64 count) {
    const i64 i = first_element<1>();
    if (i >= count) return;
    const float g = float(gradient[i]) * s.gradient_scale;
    const float m = s.beta1 * mean[i] + (1.0f - s.beta1) * g;
    const float v = s.beta2 * square[i] + (1.0f - s.beta2) * g * g;
    const float root = sqrtf(v / s.correction2) + s.epsilon;
    new_mean[i] = m;
    new_square[i] = v;
    new_master[i] = master[i] - s.rate * (m / s.correction1 / root + s.decay * master[i]);
}

/// Parameters of one launch; a kernel's arguments take 4 KiB.
constexpr int kListed = 36;

struct ParameterList {
    float* new_master[kListed];
    float* new_mean[kListed];
    float* new_square[kListed];
    /// What the net sees: bf16, or null.
    bf16* seen[kListed];
    /// Null where there are no averages.
    float* new_average[kListed];
    const float* master[kListed];
    const float* mean[kListed];
    const float* square[kListed];
    const float* gradient[kListed];
    const float* average[kListed];
    i64 count[kListed];
};

/// `adam_w` of every parameter of a list, what the net sees of it and the average of that. grid (any, parameters)
__global__ void __launch_bounds__(kThreads)
    adam_w_list(const __grid_constant__ ParameterList list, AdamSettings s, double weight) {
    const int p = blockIdx.y;
    const i64 count = list.count[p];
    for (i64 i = first_element<1>(); i < count; i += i64(gridDim.x) * kThreads) {
        const float g = list.gradient[p][i] * s.gradient_scale;
        const float m = s.beta1 * list.mean[p][i] + (1.0f - s.beta1) * g;
        const float v = s.beta2 * list.square[p][i] + (1.0f - s.beta2) * g * g;
        const float root = sqrtf(v / s.correction2) + s.epsilon;
        const float old = list.master[p][i];
        const float w = old - s.rate * (m / s.correction1 / root + s.decay * old);
        list.new_mean[p][i] = m;
        list.new_square[p][i] = v;
        list.new_master[p][i] = w;
        float seen = w;
        if (list.seen[p]) {
            list.seen[p][i] = bf16(w);
            seen = float(bf16(w));
        }
        if (list.average[p]) {
            list.new_average[p][i] = float(weight * double(list.average[p][i]) + (1.0 - weight) * double(seen));
        }
    }
}

constexpr int kSquared = 128;

struct SquareList {
    const float* x[kSquared];
    i64 count[kSquared];
};

/// Parts of the sum of squares; their number is the launch's, whatever the card. grid (parts, tensors) →
/// parts: [tensors, gridDim.x]
__global__ void __launch_bounds__(kThreads) square_parts(double* parts, const __grid_constant__ SquareList list) {
    const float* x = list.x[blockIdx.y];
    const i64 count = list.count[blockIdx.y];
    double sum = 0.0;
    for (i64 i = first_element<1>(); i < count; i += i64(gridDim.x) * kThreads) sum += double(x[i]) * double(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[i64(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

/// x: [a, b, units] → out: [b, a, units]; grid (ceil(units / 256), rows up to 65,535)
template <typename U>
__global__ void swap_rows(U* out, const U* x, int a, int b, int units) {
    const int unit = blockIdx.x * kThreads + threadIdx.x;
    if (unit >= units) return;
    const i64 rows = i64(a) * b;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const i64 j = row / a, i = row % a;
        out[row * units + unit] = x[(i * b + j) * units + unit];
    }
}
