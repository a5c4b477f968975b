// What both convolutions on wgmma do with their sums: add bias and residual, and write the result.
#pragma once
#include "conv.cuh"
#include "gemm_epilogue.cuh"
#include "gemm_sm90.cuh"

/// This thread's part of a piece of 64 pixels: two pixels, and where they are stored.
struct PixelPair {
    /// For each pixel, the index of this thread's first channel in out and residual.
    i64 at[2];
    /// Whether the pixel exists.
    bool inside[2];
    /// This thread's first channel in the tile, and how many channels of the result there are from it on.
    int channel, columns;
    /// The row of the staging panel in shared memory, and the swizzle of that row.
    u32 staging_row, swizzle;
};

/// Writes one piece: kN channels from `output` on in panels of 64, each staged in shared memory and stored by
/// `store(panel)`, which the leader of the kThreads threads at `barrier` calls. acc: this thread's accumulators
template <int kN, int kThreads, typename Store>
DEVICE void write_piece(const float (&acc)[kN / 2], const ConvolutionArguments& a, int output,
                        const PixelPair& pixels, int barrier, bool leader, Store store) {
    const bf16* residual = static_cast<const bf16*>(a.residual);
    if constexpr (kN <= 16) {
        bf16* out = static_cast<bf16*>(a.out);
#pragma unroll
        for (int i = 0; i < kN / 2; i++) {
            const int h = i / 2 % 2, offset = i / 4 * 8 + i % 2;
            if (!pixels.inside[h] || offset >= pixels.columns) continue;
            float y = acc[i];
            if (a.bias) y += a.bias[output + pixels.channel + offset];
            if (residual) y = float(residual[pixels.at[h] + offset]) + round_bf16(y);
            out[pixels.at[h] + offset] = bf16(y);
        }
    } else {
#pragma unroll
        for (int panel = 0; panel < (kN + 63) / 64; panel++) {
            if (output + 64 * panel >= a.outputs) break;
            if (leader) bulk_wait_read<0>();
            bar_sync(barrier, kThreads);
            constexpr int kBatch = 2;
#pragma unroll
            for (int first_j = 0; first_j < 8 && 64 * panel + 8 * first_j < kN;
                 first_j += kBatch) {
                float2 bias[kBatch];
                u32 added[kBatch][2];
#pragma unroll
                for (int b = 0; b < kBatch; b++) {
                    const int offset = 64 * panel + 8 * (first_j + b);
                    bias[b] = make_float2(0.0f, 0.0f);
                    added[b][0] = added[b][1] = 0;
                    if (offset >= pixels.columns) continue;
                    if (a.bias) bias[b] = load_pair(a.bias + output + pixels.channel + offset);
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        if (residual && pixels.inside[h]) {
                            added[b][h] = load_pair(residual + pixels.at[h] + offset);
                        }
                    }
                }
#pragma unroll
                for (int b = 0; b < kBatch; b++) {
                    const int j = first_j + b;
                    const u32 address = pixels.staging_row + ((16 * j) ^ pixels.swizzle);
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const int i = 4 * (8 * panel + j) + 2 * h;
                        float2 v = make_float2(acc[i] + bias[b].x, acc[i + 1] + bias[b].y);
                        u32 pair = pack_bf16(v.x, v.y);
                        if (residual) {
                            v = unpack_bf16(pair);
                            const float2 r = unpack_bf16(added[b][h]);
                            pair = pack_bf16(r.x + v.x, r.y + v.y);
                        }
                        st_shared(address + 1024 * h, pair);
                    }
                }
            }
            fence_proxy_async();
            bar_sync(barrier, kThreads);
            if (leader) {
                store(panel);
                bulk_commit();
            }
        }
    }
}
