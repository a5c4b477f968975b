// Linear layers on mma.sync, for all cards from sm_80 and for shapes that the copy engine cannot address.
//
// Eight warps share a tile of 256x128 (64x64 each), or of 128x128 (64x32 each) if there are few rows.
#include "gemm_mma.cuh"
#include "store.cuh"

constexpr int kThreads = 256;
constexpr int kColumns = 128;

/// The layout of a tile of kRows x kColumns. A stage contains 128 bytes of K of both operands.
template <int kRows>
struct LinearTile {
    static constexpr int kStages = kRows == 256 ? 2 : 3;
    static constexpr u32 kOperandBytes = kRows * 128;
    static constexpr u32 kStageBytes = kOperandBytes + kColumns * 128;
    static constexpr int kWarpsAcross = 8 / (kRows / 64);
    /// Number of tiles of 8 columns per warp.
    static constexpr int kWide = kColumns / kWarpsAcross / 8;

    static DEVICE int warp_row() { return warp_id() / kWarpsAcross * 64; }
    static DEVICE int warp_column() { return warp_id() % kWarpsAcross * (kWide * 8); }
};

/// Starts copying 16 bytes from byte k of every 32nd of kRows rows, from `row` on. Past the end of the matrix the last
/// row is read again, since its results are not written; past the end of K the bytes become zero. Rows start at
/// multiples of 16 bytes. matrix: [rows, row_bytes]
template <int kRows>
DEVICE void load_rows(u32 shared, const void* matrix, int row, int rows, int row_bytes, int k) {
    const bool some = k < row_bytes;
    const u8* source = static_cast<const u8*>(matrix) + (some ? k : 0);
#pragma unroll
    for (int line = 0; line < kRows; line += 32) {
        cp_async_16(shared + line * 128, source + i64(min(row + line, rows - 1)) * row_bytes, some);
    }
}

/// acc += A B^T over a stage. `a`, `b`: this lane's addresses in its first 32 bytes of K; `scale`: for the stage's
/// blocks of int8. `load` starts the next copies, and is called when the tensor cores have work. `hidden` is zero,
/// which the compiler does not know; otherwise it would keep A in registers from strip to strip.
template <Element kElement, int kWide, class Load>
DEVICE void multiply_stage(float (&acc)[4][kWide][4], u32 a, u32 b, float scale, u32 hidden, Load load) {
    // The tensor cores add e4m3 products with only about 14 bits, so they add at most 128 of them. (On sm_90 this
    // instruction is emulated in f16 with float sums, and the conversions need registers.)
    constexpr bool kEmulated = kElement == Element::e4m3 && __CUDA_ARCH__ == 900;
    if constexpr (kElement == Element::bf16 || kEmulated) {
        if (kEmulated) load();
        constexpr int kUnroll = kEmulated ? 2 : 4;
#pragma unroll kUnroll
        for (int k = 0; k < 4; k++) {
            multiply_step<kElement, 128>(acc, a ^ 32 * k, b ^ 32 * k);
            if (!kEmulated && k == 0) load();
        }
    } else {
        // The sums of 32 columns at a time, which are scaled while the next ones are multiplied.
#pragma unroll
        for (int strip = 0; strip < kWide / 4; strip++) {
            typename SumOf<kElement>::Type sums[4][4][4] = {};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                multiply_step<kElement, 128>(sums, (strip ? a + hidden : a) ^ 32 * k,
                                             (b ^ 32 * k) + strip * 32 * 128);
                if (strip == 0 && k == 0) load();
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float& x = acc[i][4 * strip + j][r];
                        x = fmaf(float(sums[i][j][r]), scale, x);
                    }
                }
            }
        }
    }
}

/// Writes two rows of bf16 pairs, `row` and `row + 8`. `column` is this lane's first column.
template <int kWide>
DEVICE void write_pairs(const LinearArguments& args, u32 (&pairs)[2][kWide], int row, int column) {
    bf16* out = static_cast<bf16*>(args.out) + i64(row) * args.outputs + column;
    const int ahead = 2 * (lane_id() % 4);
    if (args.outputs % 8 == 0) {
        gather_rows(pairs, nullptr, args.outputs, args.rows - row);
        write_rows(out - ahead, args.outputs, args.rows - row, pairs, args.outputs - column + ahead);
        return;
    }
#pragma unroll
    for (int j = 0; j < kWide; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (row + 8 * h < args.rows && column + 8 * j < args.outputs) {
                *reinterpret_cast<u32*>(out + i64(8 * h) * args.outputs + 8 * j) = pairs[h][j];
            }
        }
    }
}

/// Applies scales, bias, activation, gate and residual, and writes the result or leaves it in `acc` for quantize_tile.
/// Returns the largest magnitude in this thread.
template <Element kElement, Output kOutput, Activation kActivation, bool kAdd, int kWide>
DEVICE float finish_tile(const LinearArguments& args, float (&acc)[4][kWide][4], int row0, int column) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + 16 * i;
        const Place<kElement, kOutput, kAdd> place(args, row, column);
        if constexpr (kElement == Element::e4m3) {
            const RowScales scales(args, row);
#pragma unroll
            for (int j = 0; j < kWide; j++) {
                float(&a)[4] = acc[i][j];
                scales.apply(args, column + 8 * j, a[0], a[1], a[2], a[3]);
            }
        }
        u32 pairs[2][kWide];
#pragma unroll
        for (int j = 0; j < kWide; j++) {
            Columns<kElement, kOutput, kAdd> columns;
            columns.load(place, 8 * j);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float(&x)[4] = acc[i][j];
                const float2 v =
                    columns.template finish<kActivation>(make_float2(x[2 * h], x[2 * h + 1]), h);
                const bool inside = row + 8 * h < args.rows && 8 * j < place.columns;
                if constexpr (kOutput == Output::i8) {
                    x[2 * h] = v.x;
                    x[2 * h + 1] = v.y;
                    if (inside) amax = fmaxf(amax, fmaxf(fabsf(v.x), fabsf(v.y)));
                } else if constexpr (kOutput == Output::bf16) {
                    pairs[h][j] = pack_bf16(v.x, v.y);
                } else if (inside) {
                    float* out = static_cast<float*>(args.out) + i64(row + 8 * h) * args.outputs;
                    *reinterpret_cast<float2*>(out + column + 8 * j) = v;
                }
            }
        }
        if constexpr (kOutput == Output::bf16) write_pairs(args, pairs, row, column);
    }
    return amax;
}

/// Writes the finished tile as int8, with one scale for each 128 rows. `amax`: largest magnitude in this thread
template <int kRows, int kWide>
DEVICE void quantize_tile(const LinearArguments& args, const float (&acc)[4][kWide][4], int row0, int column,
                        float amax) {
    __shared__ float words[kThreads / 32];
    amax = warp_max(amax);
    if (lane_id() == 0) words[warp_id()] = amax;
    __syncthreads();
    constexpr int kWarps = 8 * 128 / kRows;
    const int first = warp_id() / kWarps * kWarps;
#pragma unroll
    for (int w = 0; w < kWarps; w++) amax = fmaxf(amax, words[first + w]);
    const float factor = code_factor(amax);
    if (threadIdx.x % (32 * kWarps) == 0 && row0 < args.rows) {
        args.out_scales[i64(row0 / 128) * (args.outputs / 128) + column / 128] = code_scale(amax);
    }
    // A lane writes 16 columns.
    const int quad = lane_id() % 4;
    i8* out = static_cast<i8*>(args.out) + column + 14 * quad;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = row0 + 8 * i, h = i % 2 * 2;
        // Each word has two codes of each of two tiles of 8 columns.
        u32 words[4] = {};
#pragma unroll
        for (int n = 0; n < kWide / 2; n++) {
            const float(&x)[4] = acc[i / 2][2 * n];
            const float(&y)[4] = acc[i / 2][2 * n + 1];
            words[n] = pack_i8(x[h] * factor, x[h + 1] * factor, y[h] * factor, y[h + 1] * factor);
        }
        quad_transpose(words[0], words[1], words[2], words[3]);
        if (row < args.rows && quad < kWide / 2) {
            *reinterpret_cast<uint4*>(out + i64(row) * args.outputs) = make_uint4(
                __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
                __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
        }
    }
}

/// Grid: tiles, in bands of eight rows of tiles. args.outputs is even; for Output::i8 it is a multiple of 128.
template <Element kElement, Output kOutput, Activation kActivation, bool kAdd, int kRows>
__global__ void __launch_bounds__(kThreads, 1) linear_mma(const LinearArguments args) {
    using Tile = LinearTile<kRows>;
    constexpr int kStages = Tile::kStages;
    constexpr u32 kLast = (kStages - 1) * Tile::kStageBytes;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const int tiles_m = ceil_div(args.rows, kRows), tiles_n = ceil_div(args.outputs, kColumns);
    const int band = blockIdx.x / (8 * tiles_n);
    const int height = min(8, tiles_m - band * 8);
    const int inside = blockIdx.x - band * 8 * tiles_n;
    const int tile_row = band * 8 + inside % height, tile_column = inside / height;
    const int row0 = tile_row * kRows, column0 = tile_column * kColumns;
    const int row_bytes = args.inputs * (kElement == Element::bf16 ? 2 : 1);
    const int slices = ceil_div(row_bytes, 128);

    // A slice past the end becomes zeros, which are not used.
    const u32 to = base + swizzle_128b(threadIdx.x * 16);
    const int line = threadIdx.x / 8, chunk = threadIdx.x % 8 * 16;
    auto load = [&](u32 stage, int slice) {
        const int k = slice * 128 + chunk;
        load_rows<kRows>(to + stage, args.x, row0 + line, args.rows, row_bytes, k);
        load_rows<kColumns>(to + stage + Tile::kOperandBytes, args.w, column0 + line, args.outputs,
                            row_bytes, k);
        cp_async_commit();
    };
    // Steps of 32 bytes along K change only bits 5 and 6 of these addresses.
    const u32 a = base + swizzle_128b(lane_offset_a<128>(Tile::warp_row()));
    const u32 b = base + Tile::kOperandBytes + swizzle_128b(lane_offset_b<128>(Tile::warp_column()));
    // A block with one int8 scale is 128 rows high; in the last tile the lower block may not exist.
    const int scale_row = min((row0 + Tile::warp_row()) / 128, (args.rows - 1) / 128);
    const float* x_scales = args.x_scales + i64(scale_row) * slices;
    const float* w_scales = args.w_scales + i64(tile_column) * slices;
    const u32 hidden = args.rows < 0 ? 4096 : 0;
    float acc[4][Tile::kWide][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) load(s * Tile::kStageBytes, s);
    u32 stage = 0;
#pragma unroll 1
    for (int s = 0; s < slices; s++) {
        float scale = 1.0f;
        if constexpr (kElement == Element::i8) scale = __ldg(x_scales + s) * __ldg(w_scales + s);
        cp_async_wait<kStages - 2>();
        __syncthreads();  // slice s has arrived, and all threads are done with slice s - 1
        // The stage before this one, in the order of the ring, is free.
        const u32 ahead = stage == 0 ? kLast : stage - Tile::kStageBytes;
        multiply_stage<kElement>(acc, a + stage, b + stage, scale, hidden,
                                 [&] { load(ahead, s + kStages - 1); });
        stage = stage == kLast ? 0 : stage + Tile::kStageBytes;
    }
    const int row = row0 + Tile::warp_row() + lane_id() / 4;
    const int column = column0 + Tile::warp_column() + 2 * (lane_id() % 4);
    const float amax = finish_tile<kElement, kOutput, kActivation, kAdd>(args, acc, row, column);
    if constexpr (kOutput == Output::i8) quantize_tile<kRows>(args, acc, row, column, amax);
}
