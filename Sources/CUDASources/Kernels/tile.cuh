// Where things lie in shared memory: the swizzles of bulk tensor copies and wgmma, stage by stage.
#pragma once
#include "numeric.cuh"

/// The byte offset of byte `offset` of a tile of 128-byte rows under the 128-byte swizzle: the
/// 16-byte chunk (bits 4..6) is xor-ed with the row modulo 8 (bits 7..9). The tile's base address is a
/// multiple of 1024. An involution; also conflict-free for ldmatrix on rows of 128 bytes.
DEVICE constexpr u32 swizzle_128b(u32 offset) { return offset ^ ((offset >> 3) & 0x70u); }
/// Rows of 64 bytes, base a multiple of 512: bits 4..5 are xor-ed with bits 7..8.
DEVICE constexpr u32 swizzle_64b(u32 offset) { return offset ^ ((offset >> 3) & 0x30u); }
/// Rows of 32 bytes, base a multiple of 256: bit 4 is xor-ed with bit 7.
DEVICE constexpr u32 swizzle_32b(u32 offset) { return offset ^ ((offset >> 3) & 0x10u); }

/// A ring of kStages buffers: which one is next, and the parity its barrier is waited for with.
/// Consumer: mbarrier_wait(full[stage], parity). Producer: mbarrier_wait(empty[stage], parity ^ 1).
template <int kStages>
struct Ring {
    int stage = 0;
    u32 parity = 0;

    DEVICE void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};
