/// The table of operations: each one on random inputs, checked against another backend and timed.

public import Tensors

/// Every operation of a backend with its variants, shapes and tolerances; ``Mode`` says what is done with them.
/// To add an operation, add a row in one of the files beside this one.
public struct OperationTable {
    /// What a run of the table checks.
    public enum Mode: Sendable {
        /// Whether operations are right: small awkward shapes, compared completely, with equal bits when repeated.
        case right
        /// Whether they are fast: the shapes of the published models, timed; of large results a sample is compared.
        case fast
    }

    /// One operation on inputs of one shape.
    struct Row {
        let operation, name: String
        let mode: Mode
        let tolerance: Tolerance
        /// Whether a device supports the arithmetic.
        let isSupported: (any Backend) -> Bool
        /// Brings the inputs to a device. What it returns is the operation: one call of the backend.
        let prepare: (Operands) -> () -> Tensor
    }

    /// Collects rows.
    struct Rows {
        private(set) var all: [Row] = []

        /// Adds a row for each shape.
        /// - Parameters:
        ///   - right: awkward shapes.
        ///   - fast: shapes of the published models.
        mutating func add<Size>(
            _ operation: String, _ variant: String, _ tolerance: Tolerance, right: [Size],
            fast: [Size] = [], where isSupported: @escaping (any Backend) -> Bool = { _ in true },
            _ prepare: @escaping (Operands, Size) -> () -> Tensor
        ) {
            for (mode, sizes) in [(Mode.right, right), (.fast, fast)] {
                for size in sizes {
                    let shape = (size as? [Int])?.map(String.init).joined(separator: "x")
                    let words = [operation, variant, shape ?? "\(size)"]
                    all.append(
                        Row(
                            operation: operation,
                            name: words.filter { !$0.isEmpty }.joined(separator: " "), mode: mode,
                            tolerance: tolerance, isSupported: isSupported,
                            prepare: { prepare($0, size) }))
                }
            }
        }
    }

    /// The seed of all inputs.
    public let seed: UInt64
    let rows: [Row]

    public init(seed: UInt64) {
        self.seed = seed
        var rows = Rows()
        rows.addLinearLayers()
        rows.addNorms()
        rows.addAttention()
        rows.addTokens()
        rows.addLatents()
        rows.addConvolutions()
        rows.addGradients()
        self.rows = rows.all
    }

    /// The rows of a mode whose "operations/name" contains `filter`, ignoring case; nil: all.
    private func rows(_ mode: Mode, filter: String?) -> [Row] {
        let wanted = filter?.lowercased()
        return rows.filter { row in
            row.mode == mode
                && wanted.map("operations/\(row.name)".lowercased().contains) ?? true
        }
    }

    /// The names of the rows that `run` runs.
    public func names(_ mode: Mode, filter: String?) -> [String] {
        rows(mode, filter: filter).map(\.name)
    }

    /// Runs the rows of a mode whose "operations/name" contains `filter`, ignoring case; nil: all.
    /// - Parameters:
    ///   - subject: the backend that is checked and timed.
    ///   - reference: the backend that is right by definition.
    ///   - each: called with each result as it comes.
    @discardableResult
    public func run(
        _ mode: Mode = .right, subject: any Backend, reference: any Backend,
        filter: String? = nil, each: (CaseResult) -> Void = { _ in }
    ) -> [CaseResult] {
        rows(mode, filter: filter).map { row in
            let result = run(row, subject, reference)
            each(result)
            return result
        }
    }

    private func run(_ row: Row, _ subject: any Backend, _ reference: any Backend) -> CaseResult {
        let checks = Checks(acceptsLoose: true)
        let start = ContinuousClock.now
        var time: OperationTime?
        if let device = [subject, reference].first(where: { !row.isSupported($0) }) {
            checks.skip("result", "\(device.name) does not support this arithmetic")
        } else {
            do {
                time = try check(row, subject, reference, checks)
                try subject.synchronize()
            } catch {
                checks.fail("device", "\(error)")
            }
        }
        return CaseResult(
            group: "operations", name: row.name, operation: row.operation,
            checks: checks.results, seconds: (ContinuousClock.now - start) / .seconds(1),
            time: time)
    }

    /// - Returns: how long the operation takes, in mode `.fast`.
    private func check(
        _ row: Row, _ subject: any Backend, _ reference: any Backend, _ checks: Checks
    ) throws -> OperationTime? {
        let (subject, reference) = (Described(subject), Described(reference))
        let here = Operands(on: subject, seed: seed, samples: row.mode == .fast)
        let launch = row.prepare(here)
        let actual = launch()
        checks.expect(
            here.isRepeated(actual, by: launch()), "repeated", "a second run gives other bits")
        let values = here.values(of: actual)
        try subject.synchronize()

        var label = "result"
        if values.count < actual.shape.count {
            label = "\(values.count) of \(actual.shape.count) elements"
        }
        var (operands, expected, tolerance) = (here, actual, row.tolerance)
        if row.mode == .fast, let substitute = here.substitute {
            label += ", against \(substitute.name)"
            (expected, tolerance) = (substitute.launch(), substitute.tolerance)
        } else {
            operands = Operands(on: reference, seed: seed, samples: row.mode == .fast, isCut: true)
            expected = row.prepare(operands)()
        }
        checks.compare(label, values, operands.values(of: expected), tolerance)
        let misfit = subject.misfit ?? reference.misfit
        checks.expect(misfit == nil, "type", misfit ?? "")
        guard row.mode == .fast else { return nil }
        return OperationTime(
            row.name, seconds: try subject.medianSeconds { _ = launch() }, work: work(of: row))
    }

    /// The work of one launch.
    func work(of row: Row) -> Operation.Cost {
        let counter = NullBackend()
        let launch = row.prepare(Operands(on: counter, seed: seed, samples: false))
        counter.resetCounts()
        _ = launch()
        return counter.total
    }
}

/// Remembers the first result that does not have the shape and type that its operation declares.
private final class Described: ForwardingBackend {
    private(set) var misfit: String?

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        if misfit != nil || operation.isView { return results }
        let expected = operation.facts.results
        if results.count != expected.count
            || !zip(expected, results).allSatisfy({ $0.describes($1) })
        {
            misfit = "\(operation.name) on \(name): \(results), expected \(expected)"
        }
        return results
    }
}

/// Elementwise results in f32 differ by the order of summation and by the last bits of exp and tanh.
let single = Tolerance(relativeL2: 1e-5)
/// One rounding to bf16 may go the other way.
let half = Tolerance(relativeL2: 4e-3)

func tolerance(_ dtype: DType) -> Tolerance { dtype == .f32 ? single : half }
