// Derivatives of layer norms and RMS norms in both modes. With h the normalised row and s its scale,
// J u = s (u - mean(u) - h mean(h u)); an RMS norm has no mean(u). J is its own transpose.
//
// One block of threads holds a row of x and one of u in shared memory as floats.
#include "rows.cuh"

constexpr int kThreads = 256;

/// The vector that multiplies a normalised row.
struct Gain {
    const float* values;  // [columns] or null for 1
    /// Added to the values: 1 for the scale of a modulation.
    float offset;

    DEVICE float at(int column) const { return values ? values[column] + offset : 1.0f; }
};

/// Replaces the row by h. Returns (mean, s).
DEVICE float2 normalise(float* h, int columns, float epsilon, int is_layer) {
    float mean = 0.0f;
    if (is_layer) {
        float sum = 0.0f;
        for (int c = threadIdx.x; c < columns; c += kThreads) sum += h[c];
        mean = block_reduce(sum) / columns;
    }
    float squares = 0.0f;
    for (int c = threadIdx.x; c < columns; c += kThreads) squares += (h[c] - mean) * (h[c] - mean);
    const float scale = 1.0f / sqrtf(block_reduce(squares) / columns + epsilon);
    for (int c = threadIdx.x; c < columns; c += kThreads) h[c] = (h[c] - mean) * scale;
    return make_float2(mean, scale);
}

/// J u, element by element: calls `store` with a column and the value. A thread sees only its own columns.
template <typename F>
DEVICE void apply_jacobian(const float* h, const float* u, int columns, float scale, int is_layer, F store) {
    float sum = 0.0f, along = 0.0f;
    for (int c = threadIdx.x; c < columns; c += kThreads) {
        sum += u[c];
        along += h[c] * u[c];
    }
    const float mean = is_layer ? block_reduce(sum) / columns : 0.0f;
    along = block_reduce(along) / columns;
    for (int c = threadIdx.x; c < columns; c += kThreads) store(c, (u[c] - mean - h[c] * along) * scale);
}

/// J (gain * g), and what the sums over rows need. x, g: [rows, columns] → out: [rows, columns], statistics: [rows];
/// grid: rows; shared memory: two rows of floats
template <typename T, typename G>
__global__ void __launch_bounds__(kThreads)
norm_gradient(T* out, float2* statistics, const T* x, const G* g, Gain gain, int columns, float epsilon,
              int is_layer) {
    extern __shared__ __align__(16) u8 shared[];
    float* h = reinterpret_cast<float*>(shared);
    float* u = h + columns;
    const i64 start = i64(blockIdx.x) * columns;
    for (int c = threadIdx.x; c < columns; c += kThreads) {
        h[c] = float(x[start + c]);
        u[c] = float(g[start + c]) * gain.at(c);
    }
    const float2 s = normalise(h, columns, epsilon, is_layer);
    if (threadIdx.x == 0) statistics[blockIdx.x] = s;
    apply_jacobian(h, u, columns, s.y, is_layer, [&](int c, float value) { out[start + c] = T(value); });
}

/// gain * (J t). x, t: [rows, columns] → out: [rows, columns]; grid and shared memory as above
template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
norm_tangent(Out* out, const T* x, const T* t, Gain gain, int columns, float epsilon, int is_layer) {
    extern __shared__ __align__(16) u8 shared[];
    float* h = reinterpret_cast<float*>(shared);
    float* u = h + columns;
    const i64 start = i64(blockIdx.x) * columns;
    for (int c = threadIdx.x; c < columns; c += kThreads) {
        h[c] = float(x[start + c]);
        u[c] = float(t[start + c]);
    }
    const float2 s = normalise(h, columns, epsilon, is_layer);
    apply_jacobian(h, u, columns, s.y, is_layer,
                   [&](int c, float value) { out[start + c] = Out(value * gain.at(c)); });
}
