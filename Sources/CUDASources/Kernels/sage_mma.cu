// Block-sparse SageAttention on mma.sync, blocks of 128 queries x 64 keys: the kernels of sm_80 (P V in f16),
// of sm_89 (e4m3, f32 accumulators) and SageAttention2++ (e4m3, f16 accumulators within a block of keys).
//
// Laid out as attention_mma.cu. Rows of 8-bit operands are 128 bytes in shared memory, half empty where
// the head dimension is 64, so that all tiles share one swizzle.
#include "attention_tile.cuh"
#include "sage.cuh"

enum class Product { f16, e4m3, e4m3_f16 };

constexpr int kQueries = 128;
constexpr int kBlock = 64;
constexpr int kThreads = 256;

/// Blocks a multiprocessor for the compiler to aim at; 0: its own choice, which at width 64 spills: before
/// Hopper unless told of two, on sm_120 with f16 products unless told of one.
constexpr int blocks_told(int dim, Product product) {
    if (dim != 64) return 0;
    if (__CUDA_ARCH__ < 900) return 2;
    return product == Product::f16 ? 1 : 0;
}

/// The operands: q, k int8 [heads, blocks * rows, dim]; v e4m3 [heads, dim, padded keys] in the order of
/// sage_quantize_values, or f16 [keys, heads, dim]. Grid (query blocks, heads).
template <int kDim, Product kProduct>
__global__ void __launch_bounds__(kThreads, blocks_told(kDim, kProduct)) sage_mma(const SageArguments a) {
    constexpr bool kHalf = kProduct == Product::f16;
    using QTile = Tile<kQueries, 64>;
    using KTile = Tile<kBlock, 64>;
    using VTile = Tile<kHalf ? kBlock : kDim, kHalf ? kDim : 64>;
    extern __shared__ __align__(1024) u8 shared[];
    const u32 q_shared = shared_address(shared);
    const u32 k_shared = q_shared + QTile::kBytes;
    const u32 v_shared = k_shared + KTile::kBytes;

    const int head = blockIdx.y;
    const int block = blockIdx.x;
    const int lane = lane_id();
    const int warp_row = warp_id() * 16;
    const TileLane q_lane(q_shared, warp_row, TileLane::rows);
    const TileLane k_lane(k_shared, 0, TileLane::columns);
    const TileLane v_lane(v_shared, 0, kHalf ? TileLane::rows : TileLane::columns);

    const i64 row = i64(head) * a.query_blocks + block;
    const int* list = a.indices + row * a.selected;
    const float* k_scales = a.k_scales + i64(head) * a.key_blocks;
    const float q_factor = a.q_scales[row] * a.scale;
    // 8-bit rows are copied as pairs.
    const u16* k = reinterpret_cast<const u16*>(a.k) + i64(head) * a.key_blocks * kBlock * (kDim / 2);
    const i64 padded = ceil_div(a.keys, 128) * 64;  // pairs of a channel's values
    const u16* v = static_cast<const u16*>(a.v) + (kHalf ? i64(head) * kDim : head * kDim * padded);
    auto load_k = [&](int index) {
        KTile::template load<kThreads>(k_shared, k + i64(index) * kBlock * (kDim / 2), kDim / 2, kBlock,
                                       kDim / 2);
    };
    auto load_v = [&](int index) {
        if constexpr (kHalf) {
            const i64 stride = i64(a.heads) * kDim;
            VTile::template load<kThreads>(v_shared, v + index * kBlock * stride, stride,
                                           a.keys - index * kBlock, kDim);
        } else {
            VTile::template load<kThreads>(v_shared, v + index * (kBlock / 2), padded, kDim,
                                           kBlock / 2);
        }
    };
    QTile::template load<kThreads>(
        q_shared, reinterpret_cast<const u16*>(a.q) + row * kQueries * (kDim / 2), kDim / 2, kQueries,
        kDim / 2);
    load_k(list[0]);
    cp_async_commit();

    float o[kDim / 8][4] = {};
    float maximum[2] = {kLowestLogit, kLowestLogit};
    float sum[2] = {1.0f, 1.0f};  // of this thread's columns; the first decay makes it zero
    for (int i = 0; i < a.selected; i++) {
        const int index = list[i];
        cp_async_wait<0>();
        __syncthreads();  // K is there; everybody is done with the last V
        load_v(index);
        cp_async_commit();

        i32 s[kBlock / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kDim / 32; step++) {
            u32 x[4];
            ldmatrix_x4(x, q_lane.at<kQueries>(0, step));
#pragma unroll
            for (int j = 0; j < kBlock / 16; j++) {
                u32 b[4];
                ldmatrix_x4(b, k_lane.at<kBlock>(j, step));
                mma_m16n8k32_s8(s[2 * j], x, b[0], b[1]);
                mma_m16n8k32_s8(s[2 * j + 1], x, b[2], b[3]);
            }
        }
        __syncthreads();  // everybody is done with K
        if (i + 1 < a.selected) load_k(list[i + 1]);
        cp_async_commit();

        const float factor = q_factor * k_scales[index];
        const int limit = a.keys - index * kBlock;
        const int column = 2 * (lane % 4);
        float p[kBlock / 8][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = maximum[r];
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    const bool exists = limit >= kBlock || 8 * j + column + e % 2 < limit;
                    p[j][e] = exists ? float(s[j][e]) * factor : kLowestLogit;
                    largest = fmaxf(largest, p[j][e]);
                }
            }
            largest = warp_max<4>(largest);
            const float decay = exp2_approx(maximum[r] - largest);
            maximum[r] = largest;
            const float offset = kHalf ? largest : largest - kProbabilityOffset;
            float total = 0;
#pragma unroll
            for (int j = 0; j < kBlock / 8; j++) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    p[j][e] = exp2_approx(p[j][e] - offset);
                    // The f16 kernel sums what it multiplies with.
                    if constexpr (kHalf) p[j][e] = float(f16(p[j][e]));
                    total += p[j][e];
                }
            }
            sum[r] = sum[r] * decay + total;
#pragma unroll
            for (int j = 0; j < kDim / 8; j++) {
                o[j][2 * r] *= decay;
                o[j][2 * r + 1] *= decay;
            }
        }

        cp_async_wait<1>();
        __syncthreads();  // V is there
        if constexpr (kHalf) {
            u32 x[kBlock / 16][4];
#pragma unroll
            for (int step = 0; step < kBlock / 16; step++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float(&t)[4] = p[2 * step + n / 2];
                    x[step][n] = pack_f16(t[n % 2 * 2], t[n % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int j = 0; j < kDim / 16; j++) {
                u32 part[2][2] = {};
#pragma unroll
                for (int step = 0; step < kBlock / 16; step++) {
                    u32 b[4];
                    ldmatrix_x4_trans(b, v_lane.at<kBlock>(step, j));
                    mma_m16n8k16_f16_f16(part[0], x[step], b[0], b[1]);
                    mma_m16n8k16_f16_f16(part[1], x[step], b[2], b[3]);
                }
#pragma unroll
                for (int n = 0; n < 2; n++) {
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float2 y = unpack_f16(part[n][r]);
                        o[2 * j + n][2 * r] += y.x;
                        o[2 * j + n][2 * r + 1] += y.y;
                    }
                }
            }
        } else {
#if __CUDA_ARCH__ >= 890
            u32 x[kBlock / 32][4];
#pragma unroll
            for (int step = 0; step < kBlock / 32; step++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float(&low)[4] = p[4 * step + n / 2 * 2];
                    const float(&high)[4] = p[4 * step + n / 2 * 2 + 1];
                    const int r = n % 2 * 2;
                    x[step][n] = pack_e4m3(low[r], low[r + 1], high[r], high[r + 1]);
                }
            }
#pragma unroll
            for (int j = 0; j < kDim / 16; j++) {
                u32 part[2][2] = {};
#pragma unroll
                for (int step = 0; step < kBlock / 32; step++) {
                    u32 b[4];
                    ldmatrix_x4(b, v_lane.at<kDim>(j, step));
                    if constexpr (kProduct == Product::e4m3) {
                        mma_m16n8k32_e4m3(o[2 * j], x[step], b[0], b[1]);
                        mma_m16n8k32_e4m3(o[2 * j + 1], x[step], b[2], b[3]);
                    } else {
                        mma_m16n8k32_e4m3_f16(part[0], x[step], b[0], b[1]);
                        mma_m16n8k32_e4m3_f16(part[1], x[step], b[2], b[3]);
                    }
                }
                if constexpr (kProduct == Product::e4m3_f16) {
#pragma unroll
                    for (int n = 0; n < 2; n++) {
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            const float2 y = unpack_f16(part[n][r]);
                            o[2 * j + n][2 * r] += y.x;
                            o[2 * j + n][2 * r + 1] += y.y;
                        }
                    }
                }
            }
#endif
        }
    }

    const float inverse[2] = {1.0f / warp_sum<4>(sum[0]), 1.0f / warp_sum<4>(sum[1])};
    u32 x[2][kDim / 8];
#pragma unroll
    for (int j = 0; j < kDim / 8; j++) {
        Vector<float, 2> scale{{1.0f, 1.0f}};
        if constexpr (!kHalf) {
            scale = Vector<float, 2>::load(a.v_scales + head * kDim + 8 * j + 2 * (lane % 4));
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            x[r][j] = pack_bf16(o[j][2 * r] * (scale[0] * inverse[r]),
                                o[j][2 * r + 1] * (scale[1] * inverse[r]));
        }
    }
    const int query = block * kQueries + warp_row + lane / 4;
    const i64 stride = i64(a.heads) * kDim;
    const i64 place = query * stride + head * kDim;
    store_rows(static_cast<bf16*>(a.out) + place,
               a.addend ? static_cast<const bf16*>(a.addend) + place : nullptr, stride,
               a.queries - query, x);
}
