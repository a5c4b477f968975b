// What the attention operations promise their kernels, checked without a GPU.

import Testing

@testable import CUDA

@Suite struct AttentionPlanTests {
    @Test func argumentsAreAsLargeAsTheKernels() {
        // attention.cuh: eight pointers, eleven words.
        #expect(MemoryLayout<AttentionArguments>.size == 8 * 8 + 11 * 4)
    }

    @Test func tilesFitTheCardsTheyAreFor() {
        let hopper = 227 << 10
        for tile in Attention.hopperTiles { #expect(tile.sharedBytes <= hopper, "\(tile.kernel)") }
        for dim in [64, 128] {
            #expect(Sage.hopperBytes(dim) <= hopper)
            #expect(SparseLinearAttention.hopperProjectBytes(dim) <= hopper)
        }
        // Two blocks of the autoencoder's share a multiprocessor, whose 228 KiB include 1 KiB for each block.
        #expect(2 * (Attention.hopperWideBytes + 1024) <= 228 << 10)
        // The autoencoder's 384 columns have a tile on every card.
        #expect(Attention.wideTiles.contains { $0.dim == 384 && $0.sharedBytes <= 99 << 10 })
    }

    @Test func twoBlocksOfThreadsShareTheSmallestMultiprocessor() {
        // RTX 3090, 4090, 5090: 100 KiB, and a block's own use is 1 KiB.
        for tile in Attention.mmaTiles { #expect(2 * (tile.sharedBytes + 1024) <= 100 << 10) }
        for dim in [64, 128] { #expect(2 * (Sage.mmaBytes(dim) + 1024) <= 100 << 10) }
    }

    @Test func blockListsFitTheCardsTheyAreFor() {
        // 14B at 720p, 75,600 tokens: 591 blocks of 128 keys on Hopper, 1,182 of 64 elsewhere.
        #expect(2 * (BlockMaps.listBytes(dim: 128, keyBlocks: 591) + 1024) <= 228 << 10)
        #expect(BlockMaps.listBytes(dim: 128, keyBlocks: 1182) > 99 << 10)
        #expect(BlockMaps.listBytes(dim: 128, keyBlocks: 512) <= 99 << 10)
        for keyBlocks in [1, 63, 64, 591] {
            // Whole tiles, rows of whole words, and rows that begin in different banks.
            let stride = BlockMaps.listStride(keyBlocks: keyBlocks)
            #expect(stride >= (keyBlocks + 63) / 64 * 64 && stride % 4 == 2)
        }
    }

    @Test func everyDimensionHasOneTile() {
        for dim in [64, 128] {
            #expect(
                Attention.hopperTiles.filter { $0.dim == dim && $0.visits == .listed }.count == 1)
            #expect(
                Attention.hopperTiles.filter { $0.dim == dim && $0.visits == .all }.map(\.keys)
                    .sorted() == [64, 128])
        }
    }
}
