/// Every operation of a backend on random inputs of awkward sizes, against another backend and against itself.

public import Tensors

/// Checks one backend against another, operation by operation.
public struct OperationTable {
    /// Determines all inputs.
    public let seed: UInt64

    public init(seed: UInt64) { self.seed = seed }

    /// One row of the table. `compute` gets the device and returns results in host memory.
    struct Entry {
        let operation, variant: String
        let tolerance: Tolerance
        /// Whether a device has the arithmetic.
        let isSupported: (any Backend) -> Bool
        let compute: (any Backend) -> [Tensor]
    }

    /// Collects entries; inputs come from one stream of random numbers.
    struct Builder {
        var random: RandomTensors
        private(set) var entries: [Entry] = []

        init(seed: UInt64) { random = RandomTensors(seed: seed) }

        mutating func add(
            _ operation: String, _ variant: String, _ tolerance: Tolerance,
            where isSupported: @escaping (any Backend) -> Bool = { _ in true },
            _ compute: @escaping (any Backend) -> [Tensor]
        ) {
            entries.append(
                Entry(
                    operation: operation, variant: variant, tolerance: tolerance,
                    isSupported: isSupported,
                    compute: { device in compute(device).map(device.read) }))
        }
    }

    var entries: [Entry] {
        var builder = Builder(seed: seed)
        builder.addLinearLayers()
        builder.addNorms()
        builder.addAttention()
        builder.addTokens()
        builder.addConvolutions()
        return builder.entries
    }

    /// Runs each operation on both backends, and twice on the subject: results must agree within tolerance, and
    /// be equal to the bit when repeated.
    @discardableResult
    public func run(
        subject: any Backend, reference: any Backend, filter: String? = nil,
        each: (CaseResult) -> Void = { _ in }
    ) -> [CaseResult] {
        entries.compactMap { entry in
            let name = "\(entry.operation) \(entry.variant)"
            guard filter.map({ "operations/\(name)".contains($0) }) ?? true else { return nil }
            let checks = Checks(acceptsLoose: true)
            let start = ContinuousClock.now
            func finish() -> CaseResult {
                let result = CaseResult(
                    group: "operations", name: name, operation: entry.operation,
                    checks: checks.results, seconds: (ContinuousClock.now - start) / .seconds(1))
                each(result)
                return result
            }
            for device in [subject, reference] where !entry.isSupported(device) {
                checks.skip("result", "\(device.name) has not this arithmetic")
                return finish()
            }
            let expected = entry.compute(reference)
            let actual = entry.compute(subject)
            let repeated = entry.compute(subject)
            do {
                try subject.synchronize()
            } catch {
                checks.fail("device", "\(error)")
            }
            for index in expected.indices {
                let label = expected.count == 1 ? "result" : "result \(index)"
                checks.compare(
                    label, actual[index].doubles(), expected[index].doubles(), entry.tolerance)
                checks.expect(
                    actual[index].shape == expected[index].shape
                        && actual[index].dtype == expected[index].dtype, "\(label) type",
                    "is \(actual[index].dtype) \(actual[index].shape), "
                        + "expected \(expected[index].dtype) \(expected[index].shape)")
                checks.expect(
                    actual[index].isBitwiseEqual(to: repeated[index]), "\(label) repeated",
                    "a second run gives other bits")
            }
            return finish()
        }
    }
}

extension Tensor {
    func isBitwiseEqual(to other: Tensor) -> Bool {
        guard byteCount == other.byteCount, dtype == other.dtype else { return false }
        return UnsafeRawBufferPointer(start: hostAddress, count: byteCount)
            .elementsEqual(UnsafeRawBufferPointer(start: other.hostAddress, count: byteCount))
    }
}

/// Reproducible random tensors in host memory.
struct RandomTensors {
    /// SplitMix64
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    private mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }

    /// About normal (the sum of four uniform numbers), times `scale`, plus `offset`; rounded to `dtype`.
    mutating func normal(
        _ shape: Shape, as dtype: DType = .f32, scale: Float = 1, offset: Float = 0
    ) -> Tensor {
        let values = (0..<shape.count).map { _ in
            let bits = next()
            var sum: Float = 0
            for part in 0..<4 {
                let word = UInt16(truncatingIfNeeded: bits >> UInt64(16 * part))
                sum += Float(word) * 0x1p-16 - 0.5
            }
            return sum * 1.7320508 * scale + offset
        }
        return Tensor(values, shape).converted(to: dtype)
    }

    mutating func integers(_ count: Int, below bound: Int) -> [Int32] {
        (0..<count).map { _ in Int32(next() % UInt64(bound)) }
    }
}
