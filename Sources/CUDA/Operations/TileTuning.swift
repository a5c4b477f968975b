// Measuring which tiles a card prefers.

internal import Ground

extension CUDABackend {
    /// What can be told of a measurement.
    public struct TuningReport: Sendable {
        public var tuning = Tuning()
        /// What was left out, and why.
        public var notes: [String] = []
        /// Whether the next processes will find it.
        public var isKept = false
    }

    /// Measures the few configurations between which heuristics choose, and keeps the result beside the compiled
    /// kernels. Only candidates with equal bits are compared.
    /// - Parameter limit: seconds; what has not been measured by then stays as it is assumed.
    /// - Throws: ``CUDAError``, or ``FileError`` where the result cannot be written.
    public func tune(limit: Double = 10) throws -> TuningReport {
        var report = TuningReport()
        let elements: [LinearProblem.Element] =
            [.i8, .bf16] + (KernelFamily.fp8.includes(properties.architecture) ? [.e4m3] : [])
        let began = ContinuousClock.now
        for (index, element) in elements.enumerated() {
            let left = limit - (ContinuousClock.now - began) / .seconds(1)
            switch try tiles(element, limit: left / Double(elements.count - index)) {
            case .success(let advantage): report.tuning.setAdvantageOfTallTiles(element, advantage)
            case .failure(let reason):
                report.notes.append("products of \(element.rawValue): \(reason.description)")
            }
        }
        // Nothing found is no reason to forget what was known.
        guard !report.tuning.lines.isEmpty else { return report }
        report.isKept = try context.kernels.store(report.tuning)
        context.tuning = report.tuning
        return report
    }

    /// Forgets what was measured.
    /// - Returns: whether anything was.
    public func forgetTuning() -> Bool {
        context.tuning = Tuning()
        return context.kernels.forgetTuning()
    }

    private var properties: DeviceProperties { context.properties }

    /// Why there is no measurement.
    private enum Unmeasured: Error {
        case differs, noTime
        var description: String {
            switch self {
            case .differs: "the results of two tiles differ, so that nothing may be chosen"
            case .noTime: "there was no time"
            }
        }
    }

    /// How many times as fast tiles of 256 rows are per row, in a product of whole waves of both.
    private func tiles(
        _ element: LinearProblem.Element, limit: Double
    ) throws -> Result<Double, Unmeasured> {
        let problem = LinearProblem(
            element: element, output: .bf16, rows: 256 * properties.multiprocessors, outputs: 512,
            inputs: 2048)
        let x = pattern(byteCount: problem.rows * problem.rowBytes)
        let w = pattern(byteCount: problem.outputs * problem.rowBytes)
        let ones = storage(byteCount: problem.rows * 16 * 4)
        context.stream.fill(ones.location, withWord: Float(1).bitPattern, count: problem.rows * 16)
        let size = problem.rows * problem.outputRowBytes
        let out = (0..<2).map { _ in storage(byteCount: size) }
        func run(_ candidate: Int) {
            let arguments = LinearArguments(
                x: x.location, w: w.location, out: out[candidate].location,
                xScales: ones.location, wScales: ones.location, rows: Int32(problem.rows),
                outputs: Int32(problem.outputs), inputs: Int32(problem.inputs))
            Linear.launch(
                problem, arguments, context, plan: .mma(rows: Linear.mmaRows[candidate]))
        }
        // The first launches load the kernels.
        let results = try (0..<2).map { candidate in
            run(candidate)
            var bytes = [UInt8](repeating: 0, count: size)
            bytes.withUnsafeMutableBytes {
                context.stream.copy(out[candidate].location, to: $0.baseAddress!, byteCount: size)
            }
            try context.synchronize()
            return bytes
        }
        guard results[0] == results[1] else { return .failure(.differs) }
        let (start, end) = (
            try Event(context.device, timing: true), try Event(context.device, timing: true)
        )
        let began = ContinuousClock.now
        let medians = try Tuning.medians(
            of: 2, rounds: 15, limit: limit, now: { (ContinuousClock.now - began) / .seconds(1) }
        ) { (candidate) throws(CUDAError) -> Double in
            start.record(in: context.stream)
            for _ in 0..<4 { run(candidate) }
            end.record(in: context.stream)
            try context.synchronize()
            return Double(start.milliseconds(to: end)) / 4000
        }
        guard let medians else { return .failure(.noTime) }
        // 256 rows come first in `Linear.mmaRows`.
        return .success(medians[1] / medians[0])
    }

    /// Bytes that are harmless numbers as bf16, e4m3 and int8, and as different from each other as those of a model: how
    /// fast a card can be depends on how many bits change.
    private func pattern(byteCount: Int) -> DeviceStorage {
        let piece = min(byteCount, 1 << 20)
        var state: UInt32 = 1
        let bytes = (0..<piece).map { index in
            state = state &* 1_664_525 &+ 1_013_904_223
            let byte = UInt8(state >> 24)
            // The upper byte of a bf16 is a sign and an exponent near 0.
            return index % 2 == 0 ? byte & 0xBF : byte & 0x80 | 0x3C
        }
        let result = storage(byteCount: byteCount)
        bytes.withUnsafeBytes {
            context.stream.copy($0.baseAddress!, to: result.location, byteCount: piece)
        }
        for at in stride(from: piece, to: byteCount, by: piece) {
            context.stream.copy(
                result.location, to: result.location + at, byteCount: min(piece, byteCount - at))
        }
        return result
    }
}
