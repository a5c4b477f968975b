/// What the machine can do at best: operations and stages are compared with it.

import CPU
import CUDA
import Ground
public import Tensors

/// Measured rates of a machine.
public struct Ceilings: Sendable {
    /// Bytes per second, read plus written, when copying.
    public var copy: Double
    /// Operations per second, counting a multiplication and its addition as two.
    public var arithmetic: [ArithmeticKind: Double]
    /// How the rates of arithmetic were measured.
    public var method: String

    /// Measures the rates, in about a second.
    /// - Parameter threads: CPU threads; nil: all.
    /// - Throws: the device's errors.
    public static func measure(_ backend: any Backend, threads: Int?) throws -> Ceilings {
        if let gpu = backend as? CUDABackend { return try measure(gpu) }
        let found = CPUCeilings.measure(threads: threads)
        return Ceilings(
            copy: found.copy,
            arithmetic: [.f32: found.f32, .bf16: found.bf16, .int8: found.int8],
            method: "in registers")
    }

    /// The least time in which this machine could do the work, in seconds; nil if its kind of
    /// arithmetic was not measured.
    public func floor(_ cost: Operation.Cost, _ kind: ArithmeticKind) -> Double? {
        let traffic = Double(cost.bytes) / copy
        if cost.flops == 0 { return traffic }
        guard let rate = arithmetic[kind] else { return nil }
        return max(Double(cost.flops) / rate, traffic)
    }

    // MARK: On a GPU

    private static func measure(_ gpu: CUDABackend) throws -> Ceilings {
        let stopwatch = EventStopwatch(gpu.context)
        /// The median of five runs after a first one, in seconds.
        func time(_ body: () -> Void) throws -> Double {
            body()
            let marks = (0..<5).map { _ in
                let start = stopwatch.mark()
                body()
                return (start, stopwatch.mark())
            }
            try gpu.synchronize()
            defer { stopwatch.reset() }
            return median(marks.map { stopwatch.seconds(from: $0.0, to: $0.1) })
        }

        var generator = PhiloxNoise(seed: 0)
        let block = gpu.noise([1 << 26], generator: &generator)
        let copied = 2 * 2 * Double(block.byteCount)
        let copy = copied / (try time { _ = gpu.concatenate([block, block]) })

        var rates: [ArithmeticKind: Double] = [:]
        for kind in ArithmeticKind.allCases {
            let side = kind == .f32 ? 4096 : 8192
            let format: LinearFormat =
                switch kind {
                case .f32, .bf16: .plain
                case .int8: .int8Blocks
                case .fp8: .fp8Rows
                }
            let noise = gpu.noise([side, side], generator: &generator)
            let x = gpu.combine([noise], [1], as: kind == .f32 ? .f32 : .bf16)
            let weight: LinearWeight =
                format == .plain ? .dense(x) : gpu.place(x, quantizedTo: format, in: nil)
            let input = gpu.quantize(x, to: format)
            let seconds = try time { _ = gpu.linear(input, weight, bias: nil) }
            rates[kind] = 2 * Double(side) * Double(side) * Double(side) / seconds
        }
        return Ceilings(
            copy: copy, arithmetic: rates, method: "linear layers of 8192^3, f32 of 4096^3")
    }
}
