// The instructions of the tensor cores: a warp or a warpgroup meets, and one thread multiplies for all.
#pragma once
#include "ptx.h"

namespace machine {

// ---- 8x8 matrices between shared memory and registers -----------------------------------------

template <int N>
struct MatrixMove {
    u32 address;
    u32* registers[N];
};

/// Lane i gives the address of row i % 8 of matrix i / 8, and has elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4.
template <int N, bool kTransposed, bool kStores>
void move_matrices(void* const* lanes) {
    for (int i = 0; i < 32; i++) {
        if (!lanes[i]) fail("an 8x8 matrix without all lanes");
    }
    for (int matrix = 0; matrix < N; matrix++) {
        u16* rows[8];
        for (int row = 0; row < 8; row++) {
            const auto* lane = static_cast<MatrixMove<N>*>(lanes[8 * matrix + row]);
            if (lane->address % 16 != 0) fail("a row of an 8x8 matrix at shared address %u", lane->address);
            rows[row] = static_cast<u16*>(at_shared(lane->address, 16));
        }
        for (int i = 0; i < 32; i++) {
            u32& value = *static_cast<MatrixMove<N>*>(lanes[i])->registers[matrix];
            u16* pair[2];
            for (int j = 0; j < 2; j++) {
                const int row = i / 4, column = 2 * (i % 4) + j;
                pair[j] = kTransposed ? &rows[column][row] : &rows[row][column];
            }
            if (kStores) {
                *pair[0] = u16(value);
                *pair[1] = u16(value >> 16);
            } else {
                value = u32(*pair[1]) << 16 | *pair[0];
            }
        }
    }
}
template <int N, bool kTransposed, bool kStores>
void matrices(const List<u32, N>& r, u32 address, const char* what) {
    MatrixMove<N> mine{address, {}};
    for (int i = 0; i < N; i++) mine.registers[i] = &r[i];
    meet(32, 0xffffffffu, what, &mine, move_matrices<N, kTransposed, kStores>);
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(const List<u32, 4>& d, u32 address) {
    matrices<4, false, false>(d, address, "ldmatrix");
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(const List<u32, 4>& d, u32 address) {
    matrices<4, true, false>(d, address, "ldmatrix.trans");
}
// Lanes 16 to 31 give addresses that nobody reads.
inline void ptx_ldmatrix_sync_aligned_m8n8_x2_shared_b16(const List<u32, 2>& d, u32 address) {
    matrices<2, false, false>(d, address, "ldmatrix.x2");
}
inline void ptx_ldmatrix_sync_aligned_m8n8_x2_trans_shared_b16(const List<u32, 2>& d, u32 address) {
    matrices<2, true, false>(d, address, "ldmatrix.x2.trans");
}
inline void ptx_stmatrix_sync_aligned_m8n8_x4_shared_b16(u32 address, const List<u32, 4>& a) {
    matrices<4, false, true>(a, address, "stmatrix");
}

// ---- mma.sync ---------------------------------------------------------------------------------

// What operands of 32 bits hold. The multiplications are in tensor_core.cpp.
struct BF16;
struct F16;
struct TF32;
struct S8;
struct E4M3;

/// What a lane brings to d = a b + d of a warp.
struct Product {
    u32 a[4], b[2];
    void* d[4];
};
/// `Result` is float or int; u32: two pairs of f16.
template <class Type, class Result>
void multiply_warp(void* const* lanes);

template <class Type, class Result, int D>
void mma(const List<Result, D>& d, const List<u32, 4>& a, const List<u32, 2>& b, const List<Result, D>& c,
         const char* what) {
    Product mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {}};
    for (int i = 0; i < D; i++) {
        if (&c[i] != &d[i]) fail("%s: a sum that is not its own addend", what);
        mine.d[i] = &d[i];
    }
    meet(32, 0xffffffffu, what, &mine, multiply_warp<Type, Result>);
}
#define MACHINE_MMA(NAME, TYPE, RESULT, D)                                                                   \
    inline void ptx_mma_sync_aligned_##NAME(const List<RESULT, D>& d, const List<u32, 4>& a,                 \
                                            const List<u32, 2>& b, const List<RESULT, D>& c) {               \
        mma<TYPE>(d, a, b, c, #NAME);                                                                        \
    }
MACHINE_MMA(m16n8k16_row_col_f32_bf16_bf16_f32, BF16, float, 4)
MACHINE_MMA(m16n8k16_row_col_f32_f16_f16_f32, F16, float, 4)
MACHINE_MMA(m16n8k16_row_col_f16_f16_f16_f16, F16, u32, 2)
MACHINE_MMA(m16n8k32_row_col_s32_s8_s8_s32, S8, int, 4)
MACHINE_MMA(m16n8k32_row_col_f32_e4m3_e4m3_f32, E4M3, float, 4)
MACHINE_MMA(m16n8k32_row_col_f16_e4m3_e4m3_f16, E4M3, u32, 2)
MACHINE_MMA(m16n8k8_row_col_f32_tf32_tf32_f32, TF32, float, 4)
#undef MACHINE_MMA

// ---- wgmma ------------------------------------------------------------------------------------

/// What a thread brings to d = a b (+ d) of a warpgroup.
struct Warpgroup {
    u64 a, b;
    u32 fragment[4];
    bool accumulate, from_registers;
    bool transpose_a = false, transpose_b = false;
    int columns = 0;
    void* d[128] = {};
};
template <class Type>
void multiply_warpgroup(void* const* threads);

inline Warpgroup operands(const List<u32, 4>& a, u64 b, bool accumulate) {
    return {0, b, {a[0], a[1], a[2], a[3]}, accumulate, true};
}
inline Warpgroup operands(u64 a, u64 b, bool accumulate) { return {a, b, {}, accumulate, false}; }

template <class Type, class Sum, int H>
void wgmma(const List<Sum, H>& d, Warpgroup mine, int transpose_a = 0, int transpose_b = 0) {
    mine.columns = 2 * H;
    mine.transpose_a = transpose_a;
    mine.transpose_b = transpose_b;
    for (int i = 0; i < H; i++) mine.d[i] = &d[i];
    meet(128, 0, "wgmma", &mine, multiply_warpgroup<Type>);
}

// Operands of 16 bits say whether they are transposed, those of 8 bits cannot be. Scales are 1.
#define MACHINE_WGMMA_16(N, NAME, TYPE)                                                                           \
    inline void ptx_wgmma_mma_async_sync_aligned_m64n##N##k16_f32_##NAME(                                         \
        const List<float, N / 2>& d, u64 a, u64 b, bool accumulate, int, int, int transpose_a, int transpose_b) { \
        wgmma<TYPE>(d, operands(a, b, accumulate), transpose_a, transpose_b);                                     \
    }                                                                                                             \
    inline void ptx_wgmma_mma_async_sync_aligned_m64n##N##k16_f32_##NAME(                                         \
        const List<float, N / 2>& d, const List<u32, 4>& a, u64 b, bool accumulate, int, int, int transpose_b) {  \
        wgmma<TYPE>(d, operands(a, b, accumulate), 0, transpose_b);                                               \
    }
#define MACHINE_WGMMA_8(N, NAME, TYPE, SUM)                                                                 \
    template <class A, class... Scales>                                                                     \
    void ptx_wgmma_mma_async_sync_aligned_m64n##N##k32_##NAME(const List<SUM, N / 2>& d, const A& a, u64 b, \
                                                              bool accumulate, Scales...) {                 \
        wgmma<TYPE>(d, operands(a, b, accumulate));                                                         \
    }
#define MACHINE_WGMMA(N)                         \
    MACHINE_WGMMA_16(N, bf16_bf16, BF16)         \
    MACHINE_WGMMA_16(N, f16_f16, F16)            \
    MACHINE_WGMMA_8(N, s32_s8_s8, S8, int)       \
    MACHINE_WGMMA_8(N, f32_e4m3_e4m3, E4M3, float)
MACHINE_WGMMA(8)
MACHINE_WGMMA(16)
MACHINE_WGMMA(32)
MACHINE_WGMMA(64)
MACHINE_WGMMA(96)
MACHINE_WGMMA(128)
MACHINE_WGMMA(192)
MACHINE_WGMMA(256)
#undef MACHINE_WGMMA
#undef MACHINE_WGMMA_8
#undef MACHINE_WGMMA_16

// The product is there as soon as the warpgroup has met: that one of these is missing does not show.
inline void ptx_wgmma_fence_sync_aligned() {}
inline void ptx_wgmma_commit_group_sync_aligned() {}
inline void ptx_wgmma_wait_group_sync_aligned(u32) {}

}  // namespace machine
