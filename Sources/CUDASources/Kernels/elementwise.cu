// Element-wise kernels: conversions, gated sums, gated GELU, sampler steps, noise.
#include "rows.cuh"

/// in: [count] → out: [count], converted by way of float
template <typename In, typename Out, int kVector>
__global__ void convert(Out* out, const In* in, i64 count) {
    for_vector<kVector>(count, [&]<int kSize>(i64 i) {
        float values[kSize];
        load_floats(values, in + i);
        store_floats(out + i, values);
    });
}

/// x + y * gate. x, y: [rows, columns], gate: [columns] rounded to T, or null for 1.
/// columns is a multiple of kVector.
template <typename T, int kVector>
__global__ void gated_add(T* out, const T* x, const T* y, const float* gate, i64 count,
                          int columns) {
    const i64 i = first_element<kVector>();
    if (i >= count) return;
    float a[kVector], b[kVector];
    load_floats(a, x + i);
    load_floats(b, y + i);
    if (gate) {
        float g[kVector];
        load_floats(g, gate + i % columns);
#pragma unroll
        for (int j = 0; j < kVector; ++j) b[j] = round_to<T>(b[j] * round_to<T>(g[j]));
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) a[j] += b[j];
    store_floats(out + i, a);
}

DEVICE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/// gelu(gate) * up: [count]
template <typename T, int kVector>
__global__ void gelu_gate(T* out, const T* gate, const T* up, i64 count) {
    for_vector<kVector>(count, [&]<int kSize>(i64 i) {
        float a[kSize], b[kSize];
        load_floats(a, gate + i);
        load_floats(b, up + i);
#pragma unroll
        for (int j = 0; j < kSize; ++j) a[j] = round_to<T>(gelu_tanh(a[j])) * b[j];
        store_floats(out + i, a);
    });
}

// ---- samplers, in double ----------------------------------------------------------------------

/// With noise (SDE): (1 - next) * (x - t v) + next * noise; without (ODE): x - (t - next) * v. All: [count]
__global__ void rcm_step(double* out, const double* x, const float* v, const float* noise, double t,
                         double next, i64 count) {
    const i64 i = first_element<1>();
    if (i >= count) return;
    out[i] = noise ? (1.0 - next) * (x[i] - t * double(v[i])) + next * double(noise[i])
                   : x[i] - (t - next) * double(v[i]);
}

/// Up to five terms, f32 or f64.
struct Terms {
    const void* data[5];
    double coefficients[5];
    int count;
    /// Bit i: term i is f64.
    u32 doubles;
};

/// sum_i coefficients[i] * terms[i]: [count]
template <typename Out>
__global__ void combine(Out* out, Terms terms, i64 count) {
    const i64 i = first_element<1>();
    if (i >= count) return;
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < 5; ++k) {
        if (k < terms.count) {
            const double x = terms.doubles >> k & 1
                                 ? static_cast<const double*>(terms.data[k])[i]
                                 : double(static_cast<const float*>(terms.data[k])[i]);
            sum += terms.coefficients[k] * x;
        }
    }
    out[i] = Out(sum);
}

// ---- noise ------------------------------------------------------------------------------------

/// Philox 4x32 with 10 rounds (Salmon et al., SC'11).
DEVICE uint4 philox(uint2 key, uint4 counter) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 a = __umulhi(0xD2511F53u, counter.x), b = __umulhi(0xCD9E8D57u, counter.z);
        counter = make_uint4(b ^ counter.y ^ key.x, 0xCD9E8D57u * counter.z,
                             a ^ counter.w ^ key.y, 0xD2511F53u * counter.x);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

/// Two normal numbers, with the sine and cosine of cuRAND, which PyTorch uses.
DEVICE float2 box_muller(u32 x, u32 y) {
    constexpr float kScale = 2.3283064e-10f;              // 2^-32
    constexpr float kTurn = 2.3283064e-10f * 6.2831855f;  // 2^-32 * 2 pi
    const float u = x * kScale + kScale / 2;
    const float v = y * kTurn + kTurn / 2;
    const float s = sqrtf(-2.0f * logf(u));
    float sine, cosine;
    __sincosf(v, &sine, &cosine);
    return make_float2(s * sine, s * cosine);
}

/// Numbers in PyTorch's order: each of `threads` threads writes four numbers per round, `threads` apart.
/// out: [count]
__global__ void normal_noise(float* out, u64 seed, u64 first_round, i64 threads, i64 count) {
    const i64 thread = first_element<1>();
    if (thread >= threads) return;
    u64 round = first_round;
    for (i64 start = thread; start < count; start += 4 * threads, ++round) {
        const uint4 words = philox(make_uint2(u32(seed), u32(seed >> 32)),
                                   make_uint4(u32(round), u32(round >> 32), u32(thread), 0));
        const float2 a = box_muller(words.x, words.y), b = box_muller(words.z, words.w);
        const float four[4] = {a.x, a.y, b.x, b.y};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (start + j * threads < count) out[start + j * threads] = four[j];
        }
    }
}
