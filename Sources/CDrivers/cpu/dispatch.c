// The tables of the kernels for AVX-512 and for AVX2.
#include "../include/cpu_kernels.h"

enum cpu_variant cpu_variant_found(void) {
    const int avx512 =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")
        && __builtin_cpu_supports("fma");
    return avx512 ? CPU_AVX_512 : CPU_AVX_2;
}

#define KERNELS(F)                                                                                 \
    F(quantize_block) F(linear) F(convolution) F(attention_scratch) F(attention) F(key_features)   \
    F(key_state) F(linear_branch) F(column_maxima) F(sage_codes) F(sage_values) F(sage_scratch)    \
    F(sage) F(channel_norm) F(peak) F(peak_operations)

#define DECLARE(name)                                                                              \
    __typeof__(*((struct cpu_kernels *)0)->name) cpu_##name##_avx2, cpu_##name##_avx512;
KERNELS(DECLARE)

#define AVX2(name) .name = cpu_##name##_avx2,
#define AVX512(name) .name = cpu_##name##_avx512,

const struct cpu_kernels *cpu_kernels_of(enum cpu_variant variant) {
    static const struct cpu_kernels tables[] = {
        [CPU_AVX_2] = {KERNELS(AVX2)},
        [CPU_AVX_512] = {KERNELS(AVX512)},
    };
    return &tables[variant];
}
