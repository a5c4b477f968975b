// Layouts of shared memory: the swizzles of bulk tensor copies and wgmma, and rings of stages.
#pragma once
#include "numeric.cuh"

/// The 128-byte swizzle: where byte `offset` of a tile with rows of 128 bytes is stored. The 16-byte chunk (bits 4..6)
/// is xor-ed with the row modulo 8 (bits 7..9). The tile's address is a multiple of 1024. The function is its own
/// inverse, and also avoids bank conflicts of ldmatrix.
DEVICE constexpr u32 swizzle_128b(u32 offset) { return offset ^ ((offset >> 3) & 0x70u); }
/// The same for rows of 64 bytes, with the tile at a multiple of 512: bits 4..5 are xor-ed with bits 7..8.
DEVICE constexpr u32 swizzle_64b(u32 offset) { return offset ^ ((offset >> 3) & 0x30u); }
/// The same for rows of 32 bytes, with the tile at a multiple of 256: bit 4 is xor-ed with bit 7.
DEVICE constexpr u32 swizzle_32b(u32 offset) { return offset ^ ((offset >> 3) & 0x10u); }

/// A position in a ring of kStages buffers: the next stage, and the parity to wait for at its barriers.
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
