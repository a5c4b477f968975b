// Chooses between the kernels for AVX-512 and for AVX2.
#include "../include/cpu_kernels.h"

#if defined(__x86_64__)

static enum cpu_variant found(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")
        && __builtin_cpu_supports("fma"))
        return CPU_AVX_512;
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                     && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    return avx2 ? CPU_AVX_2 : CPU_NO_VECTORS;
}

enum cpu_variant cpu_variant_found(void) {
    static _Atomic int known = -1;
    if (known < 0) known = (int)found();
    return (enum cpu_variant)known;
}

#define CHOOSE(result, name, parameters, arguments)                                                \
    result name##_avx512 parameters;                                                               \
    result name##_avx2 parameters;                                                                 \
    result name parameters {                                                                       \
        return cpu_variant_found() == CPU_AVX_512 ? name##_avx512 arguments : name##_avx2 arguments; \
    }

#else

enum cpu_variant cpu_variant_found(void) { return CPU_NO_VECTORS; }

#define CHOOSE(result, name, parameters, arguments)                                                \
    result name parameters { __builtin_trap(); }

#endif

CHOOSE(float, cpu_quantize_block,
       (const void *x, int bf16, size_t stride, size_t rows, size_t columns, int8_t *codes),
       (x, bf16, stride, rows, columns, codes))
CHOOSE(void, cpu_linear,
       (const struct cpu_linear_job *job, size_t first_row, size_t last_row, size_t first_panel,
        size_t last_panel),
       (job, first_row, last_row, first_panel, last_panel))
CHOOSE(void, cpu_convolution,
       (const struct cpu_convolution_job *job, const void *const *frames, const void *residual,
        void *y, size_t first_row, size_t last_row, size_t first_panel, size_t last_panel),
       (job, frames, residual, y, first_row, last_row, first_panel, last_panel))
CHOOSE(size_t, cpu_attention_scratch, (size_t head_dim, size_t rows), (head_dim, rows))
CHOOSE(void, cpu_attention,
       (const struct cpu_attention_job *job, const void *q, void *out, size_t out_stride,
        int f32_out, size_t first_row, size_t last_row, const int32_t *blocks, size_t block_count,
        float *scratch),
       (job, q, out, out_stride, f32_out, first_row, last_row, blocks, block_count, scratch))
CHOOSE(void, cpu_key_features,
       (const struct cpu_linear_branch_job *job, const void *k, size_t block), (job, k, block))
CHOOSE(void, cpu_key_state,
       (const struct cpu_linear_branch_job *job, size_t first_row, size_t last_row),
       (job, first_row, last_row))
CHOOSE(void, cpu_linear_branch,
       (const struct cpu_linear_branch_job *job, const void *q, const void *sparse, void *out,
        size_t out_stride, int bf16_out, size_t first_row, size_t last_row),
       (job, q, sparse, out, out_stride, bf16_out, first_row, last_row))
CHOOSE(void, cpu_channel_norm,
       (const void *x, int bf16, size_t rows, size_t channels, const float *factors, int silu,
        void *y),
       (x, bf16, rows, channels, factors, silu, y))
CHOOSE(void, cpu_peak, (enum cpu_kind kind, size_t steps), (kind, steps))
CHOOSE(double, cpu_peak_operations, (enum cpu_kind kind, size_t steps), (kind, steps))
