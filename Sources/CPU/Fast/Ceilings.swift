/// The highest rates that this machine can reach, to which the speed of operations is compared.

internal import CDrivers
internal import Glibc

/// Measured limits of this machine, for all threads together.
public struct CPUCeilings: Sendable, Hashable {
    /// Operations per second in registers; a multiplication and its addition count as two.
    public let f32, bf16, int8: Double
    /// Bytes read and written per second when copying blocks that fit into no cache.
    public let copy: Double

    /// Measures the limits, which takes about a second. Each figure is the best of many short runs, so that other work
    /// on the machine disturbs it little.
    public static func measure(threads: Int? = nil) -> CPUCeilings {
        let threads = Threads(count: threads ?? Threads.available)
        let arithmetic = [CPU_F32, CPU_BF16, CPU_INT8].map { registerPeak($0, threads) }
        return CPUCeilings(
            f32: arithmetic[0], bf16: arithmetic[1], int8: arithmetic[2],
            copy: copyRate(threads))
    }

    private static func registerPeak(_ kind: cpu_kind, _ threads: Threads) -> Double {
        let kernels = cpu_kernels_of(cpu_variant_found()).pointee
        let steps = 100_000
        return best(of: 200) {
            threads.parallel(threads.count) { for _ in $0 { kernels.peak(kind, steps) } }
            return kernels.peak_operations(kind, steps) * Double(threads.count)
        }
    }

    private static func copyRate(_ threads: Threads) -> Double {
        let bytes = 64 << 20
        let blocks = (0..<2 * threads.count).map { _ in
            let block = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
            memset(block, 1, bytes)
            return block
        }
        defer { for block in blocks { block.deallocate() } }
        return best(of: 20) {
            threads.parallel(threads.count) {
                for thread in $0 { memcpy(blocks[2 * thread], blocks[2 * thread + 1], bytes) }
            }
            return 2 * Double(bytes * threads.count)
        }
    }

    /// The highest rate in `count` runs: the amount that `run` returns, per second.
    private static func best(of count: Int, _ run: () -> Double) -> Double {
        (0..<count).map { _ in
            let start = seconds()
            let amount = run()
            return amount / (seconds() - start)
        }.max()!
    }

    private static func seconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }
}
