// Linear layers by mma.sync: every card from sm_80, and shapes that the copy engine cannot address.
#include "gemm_mma.cuh"

/// The 128 rows of one operand, from `first`, at one slice of K; what is outside reads as zero.
/// Rows start at multiples of 16 bytes. matrix: [rows, row_bytes]
DEVICE void load_rows(u32 shared, const u8* matrix, int first, int rows, int row_bytes, int slice) {
#pragma unroll
    for (int i = 0; i < kTile * 8 / kMmaThreads; i++) {
        const int index = threadIdx.x + i * kMmaThreads;
        const int row = index / 8, k = slice * 128 + index % 8 * 16;
        const bool inside = first + row < rows && k < row_bytes;
        const u8* source = inside ? matrix + i64(first + row) * row_bytes + k : matrix;
        cp_async_16(shared + swizzle_128b(row * 128 + index % 8 * 16), source, inside);
    }
}

/// Grid: tiles, a band of eight rows of tiles after another. args.outputs is even; Output::i8 wants a
/// multiple of 128.
template <Element kElement, Output kOutput, Activation kActivation, bool kAdd>
__global__ void __launch_bounds__(kMmaThreads, 1) linear_mma(const LinearArguments args) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const int tiles_m = ceil_div(args.rows, kTile), tiles_n = ceil_div(args.outputs, kTile);
    const int band = blockIdx.x / (8 * tiles_n);
    const int height = min(8, tiles_m - band * 8);
    const int inside = blockIdx.x - band * 8 * tiles_n;
    const int tile_row = band * 8 + inside % height, tile_column = inside / height;
    const int row0 = tile_row * kTile, column0 = tile_column * kTile;
    const int row_bytes = args.inputs * (kElement == Element::bf16 ? 2 : 1);
    const int slices = ceil_div(row_bytes, 128);

    auto load = [&](int slice, u32 a, u32 b) {
        load_rows(a, static_cast<const u8*>(args.x), row0, args.rows, row_bytes, slice);
        load_rows(b, static_cast<const u8*>(args.w), column0, args.outputs, row_bytes, slice);
    };
    WarpTile acc = {};
    if constexpr (kElement == Element::i8) {
        const float* x_scales = args.x_scales + i64(tile_row) * slices;
        const float* w_scales = args.w_scales + i64(tile_column) * slices;
        run_stages(base, slices, load, [&](int slice, u32 a, u32 b) {
            const float scale = __ldg(x_scales + slice) * __ldg(w_scales + slice);
            i32 sums[4][4][4] = {};
            multiply_stage<kElement>(sums, a, b);
            for_each(acc, [&](int i, int j, int r) {
                acc[i][j][r] = fmaf(float(sums[i][j][r]), scale, acc[i][j][r]);
            });
        });
    } else if constexpr (kElement == Element::e4m3 && __CUDA_ARCH__ != 900) {
        // The tensor cores add e4m3 products with some 14 bits only: not more than 128 of them. (On
        // sm_90 this instruction is carried out in f16 with float sums.)
        run_stages(base, slices, load, [&](int, u32 a, u32 b) {
            WarpTile sums = {};
            multiply_stage<kElement>(sums, a, b);
            for_each(acc, [&](int i, int j, int r) { acc[i][j][r] += sums[i][j][r]; });
        });
    } else {
        run_stages(base, slices, load,
                   [&](int, u32 a, u32 b) { multiply_stage<kElement>(acc, a, b); });
    }

    const int lane = lane_id();
    const int column = column0 + warp_column() + 2 * (lane % 4);
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + warp_row() + 16 * i + lane / 4;
        const Place<kElement, kOutput, kAdd> place(args, row, column);
        if constexpr (kElement == Element::e4m3) {
            const RowScales scales(args, row);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float(&a)[4] = acc[i][j];
                scales.apply(args, column + 8 * j, a[0], a[1], a[2], a[3]);
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            Columns<kElement, kOutput, kAdd> columns;
            columns.load(place, 8 * j);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float(&pair)[4] = acc[i][j];
                const float2 v = columns.template finish<kActivation>(
                    make_float2(pair[2 * h], pair[2 * h + 1]), h);
                const bool write = row + 8 * h < args.rows && 8 * j < place.columns;
                const i64 at = i64(row + 8 * h) * args.outputs + column + 8 * j;
                if constexpr (kOutput == Output::i8) {
                    pair[2 * h] = v.x;
                    pair[2 * h + 1] = v.y;
                    if (write) amax = fmaxf(amax, fmaxf(fabsf(v.x), fabsf(v.y)));
                } else if constexpr (kOutput == Output::bf16) {
                    if (write) {
                        *reinterpret_cast<u32*>(static_cast<bf16*>(args.out) + at) =
                            pack_bf16(v.x, v.y);
                    }
                } else if (write) {
                    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + at) = v;
                }
            }
        }
    }
    if constexpr (kOutput == Output::i8) {
        // The tile is one block of scales.
        __shared__ float words[kMmaThreads / 32];
        amax = warp_max(amax);
        if (lane == 0) words[warp_id()] = amax;
        __syncthreads();
#pragma unroll
        for (int w = 0; w < kMmaThreads / 32; w++) amax = fmaxf(amax, words[w]);
        amax = fmaxf(amax, kLeastMaximum);
        const float factor = 128.0f / amax;
        if (threadIdx.x == 0) {
            args.out_scales[i64(tile_row) * tiles_n + tile_column] = amax / 128.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int row = row0 + warp_row() + 16 * i + lane / 4 + 8 * h;
                    const u32 codes =
                        __byte_perm(saturate_i8(acc[i][j][2 * h] * factor),
                                    saturate_i8(acc[i][j][2 * h + 1] * factor), 0x0040);
                    if (row < args.rows) {
                        *reinterpret_cast<u16*>(static_cast<i8*>(args.out) +
                                                i64(row) * args.outputs + column + 8 * j) =
                            u16(codes);
                    }
                }
            }
        }
    }
}
