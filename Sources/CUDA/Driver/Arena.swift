// The allocator of device memory: which addresses are free. It touches no device, so it is tested
// without one.

import Ground
import Tensors

/// Best fit over ranges of addresses, with coalescing. The same sequence of requests gives the same
/// addresses and the same peak on every run.
struct Arena {
    /// Addresses `start ..< end`.
    struct Block: Hashable {
        var start: UInt64
        var end: UInt64
        var byteCount: Int { Int(end - start) }
    }

    /// Every block starts at and has a multiple of this: what bulk copies and vector loads want.
    static let alignment = 512

    /// Free blocks by address; neighbours within a segment are joined.
    private(set) var free: [Block] = []
    private var live: [UInt64: Block] = [:]
    /// Live blocks of a graph, which stay the graph's when freed.
    private var heldWhenFreed: Set<UInt64> = []
    /// Starts of separately allocated segments: blocks on both sides of one are never joined.
    private var borders: Set<UInt64> = []
    private var recording: [Block]?

    /// Bytes of live blocks, now and at most.
    private(set) var current = 0
    private(set) var peak = 0

    mutating func resetPeak() { peak = current }

    /// Adds fresh memory.
    /// - Parameter extends: whether it may be joined with the memory just before it.
    mutating func add(_ block: Block, extends: Bool) {
        if !extends { borders.insert(block.start) }
        insert(block)
    }

    static func rounded(_ byteCount: Int) -> Int {
        (max(byteCount, 1) + alignment - 1) / alignment * alignment
    }

    /// The start of `byteCount` bytes, or nil where no free block is large enough.
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
        recording?.append(block)
        current += size
        peak = max(peak, current)
        return block.start
    }

    mutating func deallocate(_ start: UInt64) {
        guard let block = live.removeValue(forKey: start) else {
            programmingError("Arena: \(start) is not allocated")
        }
        current -= block.byteCount
        if heldWhenFreed.remove(start) == nil { insert(block) }
    }

    /// How much of a growth of `byteCount` at the end of the last block is already there.
    func freeTail(before end: UInt64) -> Int {
        guard let last = free.last, last.end == end else { return 0 }
        return last.byteCount
    }

    // ---- memory of captured graphs ----

    /// From here until ``endRecording()`` the arena notes which addresses are given out.
    mutating func beginRecording() { recording = [] }

    /// Withholds every address given out since, free or live, from later requests: a captured graph
    /// writes there whenever it is launched.
    mutating func endRecording() -> [Block] {
        let touched = Self.union(recording ?? [])
        recording = nil
        for block in touched {
            remove(block)
            for start in live.keys where start >= block.start && start < block.end {
                heldWhenFreed.insert(start)
            }
        }
        return touched
    }

    /// Gives back what ``endRecording()`` withheld.
    mutating func release(_ blocks: [Block]) {
        for block in blocks {
            var start = block.start
            let inside = live.values.filter { $0.start >= block.start && $0.start < block.end }
            for used in inside.sorted(by: { $0.start < $1.start }) {
                heldWhenFreed.remove(used.start)
                if used.start > start { insert(Block(start: start, end: used.start)) }
                start = used.end
            }
            if block.end > start { insert(Block(start: start, end: block.end)) }
        }
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

    /// Takes the addresses of `block` out of the free list.
    private mutating func remove(_ block: Block) {
        free = free.flatMap { candidate -> [Block] in
            if candidate.end <= block.start || candidate.start >= block.end { return [candidate] }
            var rest: [Block] = []
            if candidate.start < block.start {
                rest.append(Block(start: candidate.start, end: block.start))
            }
            if candidate.end > block.end {
                rest.append(Block(start: block.end, end: candidate.end))
            }
            return rest
        }
    }

    private static func union(_ blocks: [Block]) -> [Block] {
        var result: [Block] = []
        for block in blocks.sorted(by: { $0.start < $1.start }) {
            if let last = result.last, block.start <= last.end {
                result[result.count - 1].end = max(last.end, block.end)
            } else {
                result.append(block)
            }
        }
        return result
    }
}
