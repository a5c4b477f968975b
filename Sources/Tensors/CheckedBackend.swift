/// Two machines side by side: everything is computed on both, and the first operation that they
/// disagree about is named.

import Ground

/// Runs every operation on `reference` and on `subject` and compares the results.
///
/// By default the subject then goes on from the reference's result, so that each operation is
/// judged by itself, on the inputs that it meets in a real model, and not by the errors of those
/// before it.
public final class CheckedBackend: Backend {
    /// A result that is further off than it may be.
    public struct Disagreement: Sendable, Hashable, CustomStringConvertible {
        public let operation: String
        /// How many operations came before.
        public let index: Int
        public let shape: Shape
        public let relativeError: Double
        public let limit: Double

        public var description: String {
            "\(operation) (operation \(index)), result \(shape): "
                + "relative error \(relativeError), at most \(limit) expected"
        }
    }

    public let reference: any Backend
    public let subject: any Backend
    private let limits: [String: Double]
    private let defaultLimit: Double
    private let resynchronizes: Bool
    /// Operations compared so far.
    public private(set) var operations = 0
    public private(set) var disagreements: [Disagreement] = []
    /// The largest relative error of each operation.
    public private(set) var largestErrors: [String: Double] = [:]

    /// - Parameters:
    ///   - limits: relative L2 errors by the name of the operation; others may reach
    /// `defaultLimit`.
    ///   - resynchronizes: the subject goes on from the reference's results.
    public init(
        reference: any Backend, subject: any Backend, limits: [String: Double] = [:],
        defaultLimit: Double, resynchronizes: Bool = true
    ) {
        self.reference = reference
        self.subject = subject
        self.limits = limits
        self.defaultLimit = defaultLimit
        self.resynchronizes = resynchronizes
    }

    public var name: String { "\(subject.name) checked against \(reference.name)" }
    public var firstDisagreement: Disagreement? { disagreements.first }

    public func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool {
        subject.supports(arithmetic) && reference.supports(arithmetic)
    }
    public func supports(_ format: ActivationFormat) -> Bool {
        subject.supports(format) && reference.supports(format)
    }

    // MARK: Pairs

    /// The same tensor on both machines.
    private final class Pair: Storage {
        let reference, subject: Tensor

        init(_ reference: Tensor, _ subject: Tensor) {
            self.reference = reference
            self.subject = subject
            super.init(byteCount: max(reference.byteCount, subject.byteCount))
        }
    }

    /// One of the two machines, and its half of a pair.
    private struct Side {
        let backend: any Backend
        let half: (Pair) -> Tensor

        func callAsFunction(_ x: Tensor) -> Tensor {
            guard let pair = x.storage as? Pair else { return backend.place(x, as: x.dtype) }
            let whole = half(pair)
            if x.shape == whole.shape && x.byteOffset == 0 { return whole }
            return Tensor(
                x.shape, x.dtype, storage: whole.storage,
                byteOffset: whole.byteOffset + x.byteOffset, scales: whole.scales)
        }
        func callAsFunction(_ x: Tensor?) -> Tensor? { x.map { self($0) } }
        func callAsFunction(_ weight: LinearWeight) -> LinearWeight {
            switch weight {
            case .dense(let matrix): .dense(self(matrix))
            case .int8Blocks(let matrix, let scale):
                .int8Blocks(weight: self(matrix), scale: self(scale))
            case .fp8Rows(let matrix, let scale):
                .fp8Rows(weight: self(matrix), scale: self(scale))
            }
        }
        func callAsFunction(_ weight: ConvolutionWeight) -> ConvolutionWeight {
            ConvolutionWeight(self(weight.tensor), bias: self(weight.bias))
        }
        func callAsFunction(_ rope: RotaryTable) -> RotaryTable {
            RotaryTable(cosine: self(rope.cosine), sine: self(rope.sine))
        }
    }

    private var sides: (reference: Side, subject: Side) {
        (Side(backend: reference) { $0.reference }, Side(backend: subject) { $0.subject })
    }

    private func pair(_ reference: Tensor, _ subject: Tensor) -> Tensor {
        ensure(
            reference.shape == subject.shape && reference.dtype == subject.dtype,
            "CheckedBackend: \(reference.shape) \(reference.dtype) and "
                + "\(subject.shape) \(subject.dtype)"
        )
        return Tensor(
            reference.shape, reference.dtype, storage: Pair(reference, subject),
            scales: reference.scales)
    }

    private func pair(_ reference: LinearWeight, _ subject: LinearWeight) -> LinearWeight {
        switch (reference, subject) {
        case (.dense(let a), .dense(let b)): .dense(pair(a, b))
        case (.int8Blocks(let a, let p), .int8Blocks(let b, let q)):
            .int8Blocks(weight: pair(a, b), scale: pair(p, q))
        case (.fp8Rows(let a, let p), .fp8Rows(let b, let q)):
            .fp8Rows(weight: pair(a, b), scale: pair(p, q))
        default:
            programmingError("CheckedBackend: weights placed as \(reference) and \(subject)")
        }
    }

    // MARK: Comparing

    private func both(_ operation: String, _ compute: (any Backend, Side) -> Tensor) -> Tensor {
        let (a, b) = sides
        return compared(operation, compute(reference, a), compute(subject, b))
    }

    private func compared(_ operation: String, _ expected: Tensor, _ found: Tensor) -> Tensor {
        let host = reference.read(expected)
        let error = relativeError(host.floats(), subject.read(found).floats())
        let limit = limits[operation] ?? defaultLimit
        // Written so that an error that is not a number counts.
        if !(error <= limit) {
            disagreements.append(
                Disagreement(
                    operation: operation, index: operations, shape: expected.shape,
                    relativeError: error, limit: limit))
        }
        if !(error <= largestErrors[operation, default: 0]) { largestErrors[operation] = error }
        operations += 1
        let goesOn = resynchronizes && expected.scales == nil
        return pair(expected, goesOn ? subject.place(host, as: host.dtype) : found)
    }

    /// ||found - expected|| / ||expected||
    private func relativeError(_ expected: [Float], _ found: [Float]) -> Double {
        var difference = 0.0
        var norm = 0.0
        for (a, b) in zip(expected, found) {
            let d = Double(a) - Double(b)
            difference += d * d
            norm += Double(a) * Double(a)
        }
        if norm == 0 { return difference == 0 ? 0 : .infinity }
        return (difference / norm).squareRoot()
    }

    // MARK: Memory

    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        pair(
            reference.place(host, as: dtype, in: nil), subject.place(host, as: dtype, in: nil))
    }
    public func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        pair(
            reference.place(weight, as: dtype, in: nil), subject.place(weight, as: dtype, in: nil))
    }
    public func place(
        _ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?
    ) -> LinearWeight {
        pair(
            reference.place(weight, quantizedTo: format, in: nil),
            subject.place(weight, quantizedTo: format, in: nil))
    }
    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        let a = reference.place(convolution: kernel, bias: bias, as: dtype, in: nil)
        let b = subject.place(convolution: kernel, bias: bias, as: dtype, in: nil)
        return ConvolutionWeight(
            pair(a.tensor, b.tensor),
            bias: a.bias.flatMap { bias in b.bias.map { pair(bias, $0) } })
    }
    /// The reference's values.
    public func read(_ x: Tensor) -> Tensor { reference.read(sides.reference(x)) }
    public func synchronize() throws {
        try reference.synchronize()
        try subject.synchronize()
    }
    public var memory: MemoryUse { subject.memory }
    public func resetPeak() { subject.resetPeak() }

    // MARK: Linear layers and norms

    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        both("linear") {
            $0.linear(
                $1(x), $1(weight), bias: $1(bias), activation: activation, format: format,
                dtype: dtype)
        }
    }
    public func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        both("linearAdd") {
            $0.linearAdd($1(x), $1(weight), bias: $1(bias), to: $1(residual), gate: $1(gate))
        }
    }
    public func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor {
        both("quantize") { $0.quantize($1(x), to: format) }
    }
    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        both("modulatedLayerNorm") {
            $0.modulatedLayerNorm(
                $1(x), shift: $1(shift), scale: $1(scale), epsilon: epsilon, kind: kind,
                format: format, dtype: dtype)
        }
    }
    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        both("layerNorm") {
            $0.layerNorm(
                $1(x), weight: $1(weight), bias: $1(bias), epsilon: epsilon, kind: kind,
                format: format)
        }
    }
    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        both("rmsNorm") {
            $0.rmsNorm($1(x), weight: $1(weight), epsilon: epsilon, kind: kind, format: format)
        }
    }
    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        both("rmsNormRope") {
            $0.rmsNormRope(
                $1(x), weight: $1(weight), epsilon: epsilon, kind: kind, rope: $1(rope),
                heads: heads)
        }
    }
    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        both("gatedAdd") { $0.gatedAdd($1(x), $1(y), gate: $1(gate)) }
    }
    public func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        both("geluGate") { $0.geluGate($1(gate), $1(up), format: format) }
    }

    // MARK: Attention

    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int]
    ) -> Tensor {
        both("attention") {
            $0.attention($1(q), $1(k), $1(v), scale: scale, lastKeyCounts: lastKeyCounts)
        }
    }
    public func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        both("relativeAttention") {
            $0.relativeAttention($1(q), $1(k), $1(v), table: $1(table))
        }
    }
    public func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        let (a, b) = sides
        let expected = reference.blockMap(a(q), a(k), spec)
        let found = subject.blockMap(b(q), b(k), spec)
        return BlockMap(
            scores: compared("blockMap", expected.scores, found.scores),
            indices: compared("blockMap", expected.indices, found.indices))
    }
    public func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor {
        both("sparseLinearAttention") {
            $0.sparseLinearAttention(
                $1(q), $1(k), $1(v), projection: $1(projection), bias: $1(bias), spec)
        }
    }

    // MARK: Tokens and latents

    public func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        both("embedding") { $0.embedding(ids, table: $1(table)) }
    }
    public func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        both("embedding") { backend, _ in backend.embedding(ids, hostTable: table, as: dtype) }
    }
    public func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        both("patchify") { backend, side in
            backend.patchify(parts.map { side($0) }, dtype: dtype)
        }
    }
    public func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        both("unpatchify") { $0.unpatchify($1(x), size: size) }
    }
    public func rcmStep(
        _ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double
    ) -> Tensor {
        both("rcmStep") {
            $0.rcmStep($1(x), velocity: $1(velocity), noise: $1(noise), t: t, next: next)
        }
    }
    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        both("combine") { backend, side in
            backend.combine(terms.map { side($0) }, coefficients, as: dtype)
        }
    }
    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        var copy = generator
        return compared(
            "noise", reference.noise(shape, generator: &generator),
            subject.noise(shape, generator: &copy))
    }

    // MARK: Video autoencoder

    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        both("channelsLast") { $0.channelsLast($1(x), scale: scale, shift: shift, dtype: dtype) }
    }
    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        both("channelsFirst") { $0.channelsFirst($1(x), scale: scale, shift: shift) }
    }
    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        both("convolution") {
            $0.convolution(
                $1(x), history: $1(history), leadingZeros: leadingZeros, $1(weight),
                timeStride: timeStride, spatialStride: spatialStride, padding: padding,
                upsample: upsample, residual: $1(residual))
        }
    }
    public func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        both("channelNorm") { $0.channelNorm($1(x), gamma: $1(gamma), silu: silu) }
    }
    public func interleaveTime(_ x: Tensor) -> Tensor {
        both("interleaveTime") { $0.interleaveTime($1(x)) }
    }
    public func concatenate(_ parts: [Tensor]) -> Tensor {
        both("concatenate") { backend, side in backend.concatenate(parts.map { side($0) }) }
    }
    public func rgb8(_ x: Tensor) -> Tensor {
        both("rgb8") { $0.rgb8($1(x)) }
    }
    public func nv12(_ x: Tensor) -> Tensor {
        both("nv12") { $0.nv12($1(x)) }
    }
}
