/// The highest rates that this machine can reach, to which the speed of operations is compared.

internal import CDrivers
internal import Glibc
internal import Tensors

/// Measured limits of this machine, for all threads together.
public struct CPUCeilings: Sendable, Hashable {
    /// Operations per second; a multiplication and its addition count as two.
    public let f32, bf16, int8: Double
    /// Bytes read and written per second when copying blocks that fit into no cache.
    public let copy: Double
    /// Whether the arithmetic was measured in registers; otherwise it is the rate of a large matrix product.
    public let isRegisterPeak: Bool

    /// Measures the limits, which takes about a second. Each figure is the best of many short runs, so that other work
    /// on the machine disturbs it little.
    public static func measure(threads: Int? = nil) -> CPUCeilings {
        let threads = Threads(count: threads ?? Threads.available)
        let inRegisters = cpu_variant_found() != CPU_NO_VECTORS
        let arithmetic = [CPU_F32, CPU_BF16, CPU_INT8].map {
            inRegisters ? registerPeak($0, threads) : productPeak($0, threads)
        }
        return CPUCeilings(
            f32: arithmetic[0], bf16: arithmetic[1], int8: arithmetic[2],
            copy: copyRate(threads), isRegisterPeak: inRegisters)
    }

    private static func registerPeak(_ kind: cpu_kind, _ threads: Threads) -> Double {
        let steps = 100_000
        return best(of: 200) {
            threads.parallel(threads.count) { for _ in $0 { cpu_peak(kind, steps) } }
            return cpu_peak_operations(kind, steps) * Double(threads.count)
        }
    }

    /// The rate of the fastest operation available, in a large product and in one that fits into the caches.
    private static func productPeak(_ kind: cpu_kind, _ threads: Threads) -> Double {
        max(productRate(kind, threads, 512, 1024), productRate(kind, threads, 192, 256))
    }

    /// Of [rows, side] and [side, side].
    private static func productRate(
        _ kind: cpu_kind, _ threads: Threads, _ rows: Int, _ side: Int
    ) -> Double {
        let backend = CPUBackend(threads: threads.count)
        let dtype: DType = kind == CPU_F32 ? .f32 : .bf16
        let x = Tensor.zeros([rows, side], dtype)
        let dense = Tensor.zeros([side, side], dtype)
        let weight =
            kind == CPU_INT8
            ? backend.place(dense, quantizedTo: .int8Blocks, in: nil) : .dense(dense)
        let input = backend.quantize(x, to: weight.inputFormat)
        return best(of: 20) {
            _ = backend.linear(input, weight, bias: nil)
            return 2 * Double(rows * side * side)
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
