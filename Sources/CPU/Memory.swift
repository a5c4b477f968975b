/// The memory pool of the CPU backend.

import Glibc
import Ground
import Synchronization
import Tensors

/// Allocates blocks of host memory and counts what is in use.
///
/// Freed blocks are kept for the next request of the same size, because fresh pages cost more than many operations.
/// Kept blocks and blocks in use together never exceed the peak of what was in use.
final class MemoryPool: Sendable {
    private struct State {
        var free: [Int: [UnsafeMutableRawPointer]] = [:]
        var cached = 0
        var use = MemoryUse(current: 0, peak: 0)

        /// Returns kept blocks to the system until all blocks together do not exceed the peak.
        mutating func trim() {
            while use.current + cached > use.peak, let (size, blocks) = free.first {
                for block in blocks { Glibc.free(block) }
                cached -= size * blocks.count
                free[size] = nil
            }
        }
    }

    private let state = Mutex(State())

    var use: MemoryUse { state.withLock { $0.use } }

    func resetPeak() {
        state.withLock {
            $0.use.peak = $0.use.current
            $0.trim()
        }
    }

    /// Rounds up to a multiple of a cache line, or of a page for large blocks.
    private static func rounded(_ byteCount: Int) -> Int {
        let unit = byteCount < 4096 ? 64 : 4096
        return max(1, ceilDivide(byteCount, unit)) * unit
    }

    fileprivate func allocate(_ byteCount: Int) -> UnsafeMutableRawPointer {
        let size = Self.rounded(byteCount)
        let address = state.withLock { state -> UInt? in
            state.use.current += size
            state.use.peak = max(state.use.peak, state.use.current)
            if let block = state.free[size]?.popLast() {
                state.cached -= size
                return UInt(bitPattern: block)
            }
            state.trim()
            return nil
        }
        if let address { return UnsafeMutableRawPointer(bitPattern: address)! }
        return hostBlock(byteCount: size)
    }

    fileprivate func release(_ address: UInt, _ byteCount: Int) {
        let size = Self.rounded(byteCount)
        state.withLock { state in
            state.use.current -= size
            state.free[size, default: []].append(UnsafeMutableRawPointer(bitPattern: address)!)
            state.cached += size
            state.trim()
        }
    }

    /// A new uninitialised tensor.
    func tensor(_ shape: Shape, _ dtype: DType, scales: Storage? = nil) -> Tensor {
        Tensor(
            shape, dtype,
            storage: CPUStorage(byteCount: shape.count * dtype.byteCount, pool: self),
            scales: scales)
    }

    func storage(byteCount: Int) -> Storage { CPUStorage(byteCount: byteCount, pool: self) }

    deinit {
        state.withLock { state in
            for blocks in state.free.values { for block in blocks { Glibc.free(block) } }
        }
    }
}

/// A block of a `MemoryPool`.
private final class CPUStorage: Storage {
    private let base: UnsafeMutableRawPointer
    private let pool: MemoryPool

    init(byteCount: Int, pool: MemoryPool) {
        self.pool = pool
        base = pool.allocate(byteCount)
        super.init(byteCount: byteCount)
    }

    override var hostPointer: UnsafeMutableRawPointer? { base }

    deinit { pool.release(UInt(bitPattern: base), byteCount) }
}
