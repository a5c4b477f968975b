// The allocator of device memory, without a device.

import Testing

@testable import CUDA

@Suite struct ArenaTests {
    private func arena(_ byteCount: UInt64 = 1 << 20) -> Arena {
        var arena = Arena()
        arena.add(Arena.Block(start: 4096, end: 4096 + byteCount), extends: false)
        return arena
    }

    /// `#require` captures its expression, which cannot mutate.
    private func required(_ start: UInt64?) throws -> UInt64 { try #require(start) }

    @Test func blocksAreAlignedAndDisjoint() throws {
        var arena = arena()
        let a = try required(arena.allocate(1))
        let b = try required(arena.allocate(513))
        let c = try required(arena.allocate(0))
        #expect([a, b, c].allSatisfy { $0 % 512 == 0 })
        #expect(b == a + 512 && c == b + 1024)
        #expect(arena.current == 4 * 512)
    }

    @Test func freedNeighboursJoin() throws {
        var arena = arena(4096)
        let blocks = try (0..<8).map { _ in try required(arena.allocate(512)) }
        #expect(arena.allocate(1) == nil)
        for index in [1, 3, 2] { arena.deallocate(blocks[index]) }
        #expect(arena.free == [Arena.Block(start: blocks[1], end: blocks[4])])
        #expect(arena.allocate(1536) == blocks[1])
    }

    @Test func theSmallestFittingBlockIsTaken() throws {
        var arena = arena(8192)
        let large = try required(arena.allocate(2048))
        _ = arena.allocate(512)
        let small = try required(arena.allocate(1024))
        _ = arena.allocate(512)
        arena.deallocate(large)
        arena.deallocate(small)
        #expect(arena.allocate(1024) == small)
    }

    @Test func peaksAreKeptUntilReset() throws {
        var arena = arena()
        let a = try required(arena.allocate(10_240))
        arena.deallocate(a)
        _ = arena.allocate(512)
        #expect(arena.current == 512 && arena.peak == 10_240)
        arena.resetPeak()
        #expect(arena.peak == 512)
    }

    @Test func separateSegmentsNeverJoin() {
        var arena = Arena()
        arena.add(Arena.Block(start: 4096, end: 8192), extends: false)
        arena.add(Arena.Block(start: 8192, end: 12_288), extends: false)
        #expect(arena.free.count == 2 && arena.allocate(6000) == nil)
        arena.add(Arena.Block(start: 12_288, end: 16_384), extends: true)
        #expect(arena.free.count == 2 && arena.allocate(6000) == 8192)
    }

    @Test func theSameRequestsGiveTheSameAddresses() {
        func run() -> [UInt64?] {
            var arena = arena()
            var live: [UInt64] = []
            var state: UInt64 = 7
            return (0..<500).map { _ in
                state = state &* 6_364_136_223_846_793_005 &+ 1
                if state >> 62 == 0, !live.isEmpty {
                    arena.deallocate(live.remove(at: Int(state >> 33) % live.count))
                    return nil
                }
                let start = arena.allocate(Int(state >> 33) % 5000)
                if let start { live.append(start) }
                return start
            }
        }
        #expect(run() == run())
    }
}
