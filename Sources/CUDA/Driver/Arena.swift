// The allocator of device memory, which only decides about addresses. It uses no device, so it can be tested without
// one.

import Ground
import Tensors

/// Allocates ranges of addresses by best fit, and joins free neighbours. The same sequence of requests gives the same
/// addresses and the same peak in every run.
struct Arena {
    /// Addresses `start ..< end`.
    struct Block: Hashable {
        var start: UInt64
        var end: UInt64
        var byteCount: Int { Int(end - start) }
    }

    /// Address and size of every block are multiples of this, as bulk copies and vector loads require.
    static let alignment = 512

    /// Free blocks by address; neighbours within a segment are joined.
    private(set) var free: [Block] = []
    private var live: [UInt64: Block] = [:]
    /// Starts of separately allocated segments. Blocks on both sides of such an address are never joined.
    private var borders: Set<UInt64> = []

    /// Bytes of allocated blocks: now, and the most at once.
    private(set) var current = 0
    private(set) var peak = 0

    mutating func resetPeak() { peak = current }

    /// Adds new memory.
    /// - Parameter extends: whether it may be joined with the memory directly before it.
    mutating func add(_ block: Block, extends: Bool) {
        if !extends { borders.insert(block.start) }
        insert(block)
    }

    /// Takes memory away again: free bytes at the end of the last block.
    mutating func remove(_ block: Block) {
        guard let last = free.last, last.start <= block.start, last.end == block.end else {
            programmingError("Arena: \(block) is not free at the end")
        }
        free.removeLast()
        if last.start < block.start { free.append(Block(start: last.start, end: block.start)) }
    }

    static func rounded(_ byteCount: Int) -> Int {
        roundUp(max(byteCount, 1), to: alignment)
    }

    /// The address of `byteCount` newly allocated bytes; nil if no free block is large enough.
    mutating func allocate(_ byteCount: Int) -> UInt64? {
        let size = Self.rounded(byteCount)
        var best = -1
        for index in free.indices where free[index].byteCount >= size {
            if best < 0 || free[index].byteCount < free[best].byteCount { best = index }
        }
        guard best >= 0 else { return nil }
        let block = Block(start: free[best].start, end: free[best].start + UInt64(size))
        if free[best].end == block.end {
            free.remove(at: best)
        } else {
            free[best].start = block.end
        }
        live[block.start] = block
        current += size
        peak = max(peak, current)
        return block.start
    }

    mutating func deallocate(_ start: UInt64) {
        guard let block = live.removeValue(forKey: start) else {
            programmingError("Arena: \(start) is not allocated")
        }
        current -= block.byteCount
        insert(block)
    }

    /// Bytes of all free blocks.
    var freeBytes: Int { free.reduce(0) { $0 + $1.byteCount } }

    /// Bytes of the free block that ends at `end`; 0 if there is none.
    func freeTail(before end: UInt64) -> Int {
        guard let last = free.last, last.end == end else { return 0 }
        return last.byteCount
    }

    // ---- the free list ----

    private mutating func insert(_ block: Block) {
        var index = free.firstIndex { $0.start > block.start } ?? free.count
        var block = block
        if index < free.count, free[index].start == block.end, !borders.contains(block.end) {
            block.end = free.remove(at: index).end
        }
        if index > 0, free[index - 1].end == block.start, !borders.contains(block.start) {
            index -= 1
            block.start = free.remove(at: index).start
        }
        free.insert(block, at: index)
    }
}
