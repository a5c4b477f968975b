/// The CPU as a backend: checks shapes, then runs the fastest version of each operation that there is.

import Glibc
import Ground
public import Tensors

/// Operations on the processor's cores. Results do not depend on the number of threads.
public final class CPUBackend: Backend {
    /// Which versions of the operations run.
    public enum Engine: Sendable {
        /// The fastest that this machine and its libraries offer.
        case automatic
        /// oneDNN, where it is installed: what `automatic` chooses on processors without AVX-512 BF16.
        case oneDNN
        /// The definitions, in plain Swift: the oracle for everything else.
        case definition
    }

    public let name: String
    let definitions: Definitions
    private let fast: (any FastOperations)?

    /// A backend on `threads` threads, the caller's included (nil: as many as processors may be used).
    public init(threads: Int? = nil, engine: Engine = .automatic) {
        definitions = Definitions(
            memory: MemoryPool(), threads: Threads(count: threads ?? Threads.available))
        fast = fastOperations(definitions, engine)
        let count = definitions.threads.count
        name =
            "CPU (\(count) thread\(count == 1 ? "" : "s"), \(fast?.name ?? "definitions"))"
    }

    // MARK: Memory

    public var memory: MemoryUse { definitions.memory.use }
    public func resetPeak() { definitions.memory.resetPeak() }
    public func synchronize() throws {}

    /// Shares the host's memory where nothing changes and the elements are aligned.
    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        let target = host.dtype.isFloatingPoint ? dtype : host.dtype
        let aligned = Int(bitPattern: host.hostAddress) % host.dtype.byteCount == 0
        if target == host.dtype && aligned { return host }
        return definitions.converted(aligned ? host : copy(host), to: target)
    }

    public func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        switch weight {
        case .dense(let matrix): .dense(place(matrix, as: dtype, in: group))
        case .int8Blocks(let matrix, let scale):
            .int8Blocks(weight: matrix, scale: place(scale, as: .f32, in: group))
        case .fp8Rows(let matrix, let scale):
            .fp8Rows(weight: matrix, scale: place(scale, as: .f32, in: group))
        }
    }

    public func place(
        _ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?
    ) -> LinearWeight {
        definitions.quantizedWeight(
            place(weight, as: weight.dtype, in: group), to: format)
    }

    public func read(_ x: Tensor) -> Tensor {
        let host = Tensor.host(x.shape, x.dtype)
        host.hostAddress.copyMemory(from: x.hostAddress, byteCount: x.byteCount)
        return host
    }

    private func copy(_ x: Tensor) -> Tensor {
        let result = definitions.memory.tensor(x.shape, x.dtype)
        result.hostAddress.copyMemory(from: x.hostAddress, byteCount: x.byteCount)
        return result
    }

    // MARK: Linear layers and norms

    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        Self.checkLinear("linear", x, weight, bias)
        return fast?.linear(
            x, weight, bias: bias, activation: activation, format: format, dtype: dtype)
            ?? definitions.linear(
                x, weight, bias: bias, activation: activation, format: format, dtype: dtype)
    }

    public func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        Self.checkLinear("linearAdd", x, weight, bias)
        ensure(
            residual.shape == x.shape.replacingLast(weight.outputs),
            "linearAdd: residual \(residual.shape) for x \(x.shape), weight \(weight.shape)")
        if let y = fast?.linearAdd(x, weight, bias: bias, to: residual, gate: gate) { return y }
        let y = linear(
            x, weight, bias: bias, activation: .none, format: .plain, dtype: residual.dtype)
        return gatedAdd(residual, y, gate: gate)
    }

    public func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor {
        fast?.quantize(x, to: format) ?? definitions.quantize(x, to: format)
    }

    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        Self.checkVectors("modulatedLayerNorm", x, [shift, scale])
        return definitions.modulatedLayerNorm(
            x, shift: shift, scale: scale, epsilon: epsilon, kind: kind, format: format,
            dtype: dtype)
    }

    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        Self.checkVectors("layerNorm", x, [weight, bias])
        return definitions.layerNorm(
            x, weight: weight, bias: bias, epsilon: epsilon, kind: kind, format: format)
    }

    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        Self.checkVectors("rmsNorm", x, [weight])
        return definitions.rmsNorm(x, weight: weight, epsilon: epsilon, kind: kind, format: format)
    }

    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        Self.checkVectors("rmsNormRope", x, [weight])
        let width = x.shape.columns
        let table: Shape = [x.shape.rows, width / heads / 2]
        ensure(
            width % (2 * heads) == 0 && rope.cosine.shape == table && rope.sine.shape == table,
            "rmsNormRope: x \(x.shape), \(heads) heads, angles \(rope.cosine.shape)")
        return definitions.rmsNormRope(
            x, weight: weight, epsilon: epsilon, kind: kind, rope: rope, heads: heads)
    }

    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        ensure(x.shape == y.shape, "gatedAdd: \(x.shape) and \(y.shape)")
        Self.checkVectors("gatedAdd", x, [gate])
        return definitions.gatedAdd(x, y, gate: gate)
    }

    public func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        ensure(gate.shape == up.shape, "geluGate: \(gate.shape) and \(up.shape)")
        return definitions.geluGate(gate, up, format: format)
    }

    // MARK: Attention

    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int]
    ) -> Tensor {
        Self.checkHeads("attention", q, k, v)
        ensure(
            lastKeyCounts.count <= min(2, k.shape[0]) && lastKeyCounts.allSatisfy { $0 >= 1 },
            "attention: the last of \(k.shape[0]) keys count \(lastKeyCounts) times")
        return fast?.attention(q, k, v, scale: scale, lastKeyCounts: lastKeyCounts)
            ?? definitions.attention(q, k, v, scale: scale, lastKeyCounts: lastKeyCounts)
    }

    public func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        Self.checkHeads("relativeAttention", q, k, v)
        ensure(
            q.shape == k.shape && table.shape == [32, q.shape[1]],
            "relativeAttention: q \(q.shape), k \(k.shape), table \(table.shape)")
        return fast?.relativeAttention(q, k, v, table: table)
            ?? definitions.relativeAttention(q, k, v, table: table)
    }

    public func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        Self.checkHeads("blockMap", q, k, k)
        ensure(q.shape == k.shape, "blockMap: q \(q.shape), k \(k.shape)")
        return definitions.blockMap(q, k, spec)
    }

    public func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor {
        Self.checkHeads("sparseLinearAttention", q, k, v)
        let dim = q.shape[2]
        ensure(
            q.shape == k.shape && projection.shape == [dim, dim] && bias?.shape.count ?? dim == dim,
            "sparseLinearAttention: q \(q.shape), k \(k.shape), projection \(projection.shape)")
        return fast?.sparseLinearAttention(q, k, v, projection: projection, bias: bias, spec)
            ?? definitions.sparseLinearAttention(q, k, v, projection: projection, bias: bias, spec)
    }

    public func sageOperands(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention)
        -> SageOperands?
    {
        Self.checkHeads("sageOperands", q, k, v)
        guard case .sage(let architecture) = spec.arithmetic else { return nil }
        func half(_ x: Tensor) -> Tensor { definitions.converted(x, to: .bf16) }
        return definitions.sageOperands(half(q), half(k), half(v), spec, architecture)
    }

    // MARK: Tokens and latents

    public func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        ensure(table.shape.rank == 2, "embedding: table \(table.shape)")
        return definitions.embedding(ids, table: table)
    }

    public func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        let size = parts[0].shape
        ensure(
            parts.allSatisfy { $0.shape.rank == 4 && $0.shape.tail == size.tail }
                && size[2] % 2 == 0 && size[3] % 2 == 0,
            "patchify: \(parts.map(\.shape))")
        return definitions.patchify(parts, dtype: dtype)
    }

    public func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        ensure(
            x.shape.rank == 2 && x.shape[0] == size.t * (size.h / 2) * (size.w / 2)
                && size.h % 2 == 0 && size.w % 2 == 0 && x.shape[1] % 4 == 0,
            "unpatchify: \(x.shape) to latents of \(size)")
        return definitions.unpatchify(x, size: size)
    }

    public func rcmStep(_ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double)
        -> Tensor
    {
        ensure(
            x.shape == velocity.shape && noise?.shape ?? x.shape == x.shape,
            "rcmStep: x \(x.shape), velocity \(velocity.shape)")
        return definitions.rcmStep(x, velocity: velocity, noise: noise, t: t, next: next)
    }

    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        ensure(
            !terms.isEmpty && terms.count == coefficients.count
                && terms.allSatisfy { $0.shape == terms[0].shape },
            "combine: \(terms.map(\.shape)) with \(coefficients.count) coefficients")
        return definitions.combine(terms, coefficients, as: dtype)
    }

    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        definitions.noise(shape, generator: &generator)
    }

    // MARK: Video autoencoder

    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        ensure(
            x.shape.rank == 4 && scale.count == x.shape[0] && shift.count == x.shape[0],
            "channelsLast: \(x.shape), \(scale.count) scales, \(shift.count) shifts")
        return definitions.channelsLast(x, scale: scale, shift: shift, dtype: dtype)
    }

    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        ensure(
            x.shape.rank == 4 && scale.count == x.shape[3] && shift.count == x.shape[3],
            "channelsFirst: \(x.shape), \(scale.count) scales, \(shift.count) shifts")
        return definitions.channelsFirst(x, scale: scale, shift: shift)
    }

    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        let geometry = ConvolutionGeometry(
            x.shape, history: history?.shape, leadingZeros: leadingZeros, weight,
            timeStride: timeStride, spatialStride: spatialStride, padding: padding,
            upsample: upsample)
        ensure(
            residual?.shape ?? geometry.output == geometry.output,
            "convolution: residual \(residual?.shape ?? []) for \(geometry.output)")
        return fast?.convolution(x, history: history, weight, geometry, residual: residual)
            ?? definitions.convolution(x, history: history, weight, geometry, residual: residual)
    }

    public func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        Self.checkVectors("channelNorm", x, [gamma])
        return fast?.channelNorm(x, gamma: gamma, silu: silu)
            ?? definitions.channelNorm(x, gamma: gamma, silu: silu)
    }

    public func interleaveTime(_ x: Tensor) -> Tensor {
        ensure(x.shape.rank == 4 && x.shape[3] % 2 == 0, "interleaveTime: \(x.shape)")
        return definitions.interleaveTime(x)
    }

    public func concatenate(_ parts: [Tensor]) -> Tensor {
        ensure(
            !parts.isEmpty
                && parts.allSatisfy {
                    $0.shape.tail == parts[0].shape.tail && $0.dtype == parts[0].dtype
                },
            "concatenate: \(parts.map(\.shape)) \(parts.map(\.dtype))")
        return definitions.concatenate(parts)
    }

    public func rgb8(_ x: Tensor) -> Tensor { definitions.rgb8(x) }

    public func nv12(_ x: Tensor) -> Tensor {
        let s = x.shape
        ensure(s.rank == 4 && s[1] % 2 == 0 && s[2] % 2 == 0 && s[3] == 3, "nv12: \(s)")
        return definitions.nv12(x)
    }

    // MARK: Shapes

    private static func checkLinear(
        _ operation: String, _ x: Tensor, _ weight: LinearWeight, _ bias: Tensor?
    ) {
        ensure(
            weight.shape.rank == 2 && x.shape.columns == weight.inputs
                && bias?.shape.count ?? weight.outputs == weight.outputs,
            "\(operation): x \(x.shape), weight \(weight.shape), bias \(bias?.shape ?? [])")
        let format: ActivationFormat =
            switch x.dtype {
            case .i8: .int8Blocks
            case .f8e4m3: .fp8Rows
            default: weight.inputFormat
            }
        ensure(
            format == weight.inputFormat,
            "\(operation): x of \(format) for a weight that takes \(weight.inputFormat)")
    }

    /// x: [..., dim]; vectors: [dim] or nil
    private static func checkVectors(_ operation: String, _ x: Tensor, _ vectors: [Tensor?]) {
        for case let vector? in vectors {
            ensure(
                vector.shape.count == x.shape.columns,
                "\(operation): x \(x.shape) and a vector \(vector.shape)")
        }
    }

    /// q: [Lq, heads, headDim]; k, v: [Lk, heads, headDim]
    private static func checkHeads(_ operation: String, _ q: Tensor, _ k: Tensor, _ v: Tensor) {
        ensure(
            q.shape.rank == 3 && k.shape.tail == q.shape.tail && v.shape == k.shape
                && q.dtype == k.dtype && q.dtype == v.dtype,
            "\(operation): q \(q.shape) \(q.dtype), k \(k.shape) \(k.dtype), v \(v.shape) \(v.dtype)"
        )
    }
}
