// The geometry of the gradients' launches: pure functions of shapes.

import Ground
import Tensors
import Testing

@testable import CUDA

@Suite struct GradientPlanTests {
    /// Shared memory that every card gives to a block of threads.
    private let shared = 99 * 1024

    @Test func sumsOverRowsDependOnShapesAlone() {
        for rows in [1, 255, 256, 257, 32_760, 393_120, 40_000_000] {
            let plan = RowSumPlan(rows: rows, columns: 77)
            #expect(plan.chunk * plan.chunks >= rows)
            #expect(plan.chunk * (plan.chunks - 1) < rows)
            #expect(plan.shape.grid.y <= 65_535)
            #expect(plan.shape.grid.x * 32 >= 77)
            #expect(plan.byteCount == plan.chunks * 77 * 4)
        }
        #expect(dotParts(1) == 1)
        #expect(dotParts(2049) == 2)
        #expect(dotParts(1 << 30) == 1024)
    }

    @Test func transposedRowsSuitTheTensorCores() {
        for rows in 1...40 {
            let stride = transposedStride(rows: rows, .bf16)
            #expect(stride >= rows && stride < rows + 8 && stride * 2 % 16 == 0)
            #expect(transposedStride(rows: rows, .f32) == rows)
        }
    }

    @Test func normsFitEveryCard() {
        #expect(NormGradients.shape(rows: 7, columns: 5120).sharedBytes == 40_960)
        #expect(
            NormGradients.shape(rows: 7, columns: NormGradients.mostColumns).sharedBytes <= shared)
    }

    @Test(arguments: AttentionGradients.tiles + AttentionGradients.halfTiles)
    func everyRowOfAttentionHasATile(tile: AttentionGradients.Tile) {
        let kernels = AttentionGradients.units.flatMap(\.kernels)
        for pass in AttentionGradients.Pass.allCases {
            #expect(tile.sharedBytes(pass) <= shared)
            #expect(kernels.contains(tile.kernel(pass)))
            for rows in [1, tile.owned, tile.owned + 1, 32_760] {
                let shape = tile.shape(pass, rows: rows, heads: 3)
                #expect(shape.grid.x * tile.owned >= rows)
                #expect((shape.grid.x - 1) * tile.owned < rows)
                #expect(shape.grid.y == 3 && shape.block.x % 32 == 0)
            }
        }
        // Blocks of the published training are whole tiles.
        #expect(64 % tile.owned == 0 && 64 % tile.visited == 0)
    }

    @Test(arguments: zip(AttentionGradients.hopperTiles, [99448, 198_824]))
    func hoppersTilesFitAMultiprocessor(tile: AttentionGradients.Tile, sharedBytes: Int) {
        let passes: [AttentionGradients.Pass] = [.reverseStatistics, .queryGradient, .keyGradient]
        for pass in passes {
            // As attention_gradient_sm90.cu asserts.
            #expect(tile.sharedBytes(pass) == sharedBytes)
            // Two blocks of 64 rows, or one of 128, with the kibibyte that the system takes of each.
            #expect((tile.sharedBytes(pass) + 1024) * (128 / tile.owned) <= 228 * 1024)
            #expect(AttentionGradients.sm90.kernels.contains(tile.kernel(pass)))
            let shape = tile.shape(pass, rows: tile.owned + 1, heads: 3, parts: 5)
            #expect(shape.grid.x == 2 && shape.grid.y == 3 && shape.grid.z == 5)
            #expect(shape.block.x == 2 * tile.owned)
        }
        #expect(tile.statistics(1) == 128 && tile.statistics(128) == 128)
        #expect(tile.statistics(32_760) == 32_768)
    }

    @Test func hoppersTilesSuitTheirOperands() {
        typealias Tile = AttentionGradients.Tile
        func tile(_ dim: Int, _ queries: Int, _ keys: Int, _ blocks: (Int, Int)? = nil) -> Tile? {
            AttentionGradients.hopperTile(dim: dim, queries: queries, keys: keys, blocks: blocks)
        }
        let (small, large) = (Tile.hopper(dim: 128, groups: 1), Tile.hopper(dim: 128, groups: 2))
        #expect(tile(128, 1024, 1024) == large && tile(96, 32_760, 32_760) == large)
        #expect(tile(128, 1023, 4096) == small && tile(72, 32_760, 512) == small)
        #expect(tile(128, 32_760, 32_760, (64, 64)) == small)
        #expect(tile(128, 32_760, 32_760, (128, 64)) == small)
        #expect(tile(128, 32_760, 32_760, (64, 32)) == nil)
        for dim in [32, 64, 68, 100, 136, 256] { #expect(tile(dim, 2048, 2048) == nil) }
    }

    @Test func weightsSumInPartsByTheirShapes() {
        func parts(_ rows: Int, _ outputs: Int, _ inputs: Int) -> Int {
            let chunk = WeightGradients.chunk(rows: rows, outputs: outputs, inputs: inputs)
            return ceilDivide(rows, chunk * WeightGradients.rows)
        }
        for (rows, outputs, inputs) in [
            (1, 64, 96), (300, 128, 96), (1296, 256, 1024), (32_760, 16, 5120),
            (32_760, 13_824, 5120),
        ] {
            let count = parts(rows, outputs, inputs)
            #expect((1...32).contains(count))
            // The plan of a training run reckons with the operands in f32.
            #expect(count == 1 || count * outputs * inputs <= rows * (outputs + inputs))
        }
        #expect(parts(32_760, 1536, 1536) == 5)
        #expect(parts(1, 1536, 1536) == 1)
    }

    @Test func tilesSuitTheirOperands() {
        func tile(_ dim: Int, _ isHalf: Bool, _ blocks: (Int, Int)? = nil)
            -> AttentionGradients.Tile?
        {
            AttentionGradients.tile(dim: dim, isHalf: isHalf, blocks: blocks)
        }
        #expect(tile(64, true) == .bf16(dim: 64, visited: 64))
        #expect(tile(96, true) == .bf16(dim: 128, visited: 32))
        #expect(tile(60, true) == .f32(dim: 64, rows: 32))
        #expect(tile(128, false) == .f32(dim: 128, rows: 32))
        #expect(tile(200, true) == .f32(dim: 256, rows: 16))
        #expect(tile(128, true, (64, 128)) == .bf16(dim: 128, visited: 32))
        #expect(tile(128, true, (32, 64)) == .f32(dim: 128, rows: 32))
        #expect(tile(128, true, (8, 4)) == nil)
        #expect(tile(66, true) == nil && tile(512, true) == nil)
    }

    @Test func queriesAreTakenInPartsWhereKeysAreFew() {
        func parts(_ queries: Int, _ keys: Int, _ heads: Int) -> Int {
            AttentionGradients.queryParts(
                .bf16(dim: 128, visited: 32), queries: queries, keys: keys, heads: heads)
        }
        #expect(parts(32_760, 61, 12) == 10)
        #expect(parts(32_760, 32_760, 12) == 1)
        #expect(parts(1296, 1296, 2) == 3)
        #expect(parts(1, 1, 1) == 1)
        // Each part has tiles enough to be worth its sums.
        #expect(parts(600, 61, 1) == 2)
    }

    @Test func argumentsHaveTheLayoutOfTheKernel() {
        typealias Arguments = AttentionGradientArguments
        #expect(MemoryLayout<Arguments>.offset(of: \.queries) == 14 * 8)
        #expect(MemoryLayout<Arguments>.offset(of: \.scale) == 14 * 8 + 4 * 4)
        #expect(MemoryLayout<Arguments>.offset(of: \.keyBlock) == 14 * 8 + 9 * 4)
        #expect(MemoryLayout<Arguments>.size == 14 * 8 + 10 * 4)
    }

    @Test func branchesCoverAllTokens() {
        for tokens in [1, 31, 32, 70, 1296, 32_760, 75_600] {
            let part = BranchGradients.parts(tokens: tokens)
            #expect(part.tokens % 32 == 0)
            #expect(part.tokens * part.count >= tokens)
            #expect(part.tokens * (part.count - 1) < tokens)
            #expect(part.count <= SparseLinearAttention.chunks)
            for dim in [64, 128] {
                let shape = BranchGradients.productShape(
                    tokens: tokens, heads: 12, dim: dim, multiprocessors: 132)
                #expect(shape.sharedBytes <= shared)
                #expect((1...ceilDivide(tokens, 64)).contains(shape.grid.x))
            }
        }
        #expect(BranchGradients.rowShape(9).grid.x == 2)
    }

    @Test func narrowTilesAreCompiled() {
        for tile in Attention.narrowTiles {
            #expect(tile.queries == 64)
            #expect(Attention.mma.kernels.contains(tile.kernel("listed")))
        }
    }
}
