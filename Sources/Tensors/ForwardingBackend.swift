/// A backend that passes every operation on: the base of those that watch, time or interrupt another one.

/// Passes all requirements on to `base`. A subclass overrides `perform`, which surrounds every operation that
/// computes, and single requirements where it must.
open class ForwardingBackend: Backend {
    private let target: any Backend
    /// Where operations go.
    open var base: any Backend { target }

    public init(_ base: any Backend) { target = base }

    /// Surrounds one operation. `inputs` are its activations, in the order of its arguments; weights are left out.
    open func perform<Result>(
        _ operation: String, _ inputs: [Tensor], _ compute: () -> Result
    ) -> Result {
        compute()
    }

    open var name: String { base.name }
    open func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool {
        base.supports(arithmetic)
    }
    open func supports(_ format: ActivationFormat) -> Bool { base.supports(format) }

    // MARK: Memory

    open func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        base.place(host, as: dtype, in: group)
    }
    open func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        base.place(weight, as: dtype, in: group)
    }
    open func place(
        _ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?
    ) -> LinearWeight {
        base.place(weight, quantizedTo: format, in: group)
    }
    open func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        base.place(convolution: kernel, bias: bias, as: dtype, in: group)
    }
    open func require(_ group: WeightGroup) {
        base.require(group)
    }
    open func read(_ x: Tensor) -> Tensor { base.read(x) }
    open func beginRead(_ x: Tensor) -> HostCopy { base.beginRead(x) }
    open func equalBits(_ a: Tensor, _ b: Tensor) -> Bool { base.equalBits(a, b) }
    open func synchronize() throws { try base.synchronize() }
    open var memory: MemoryUse { base.memory }
    open func resetPeak() { base.resetPeak() }

    // MARK: Linear layers and norms

    open func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        perform("linear", [x]) {
            base.linear(
                x, weight, bias: bias, activation: activation, format: format, dtype: dtype)
        }
    }
    open func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        perform("linearAdd", [x, residual]) {
            base.linearAdd(x, weight, bias: bias, to: residual, gate: gate)
        }
    }
    open func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor {
        perform("quantize", [x]) { base.quantize(x, to: format) }
    }
    open func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        perform("modulatedLayerNorm", [x]) {
            base.modulatedLayerNorm(
                x, shift: shift, scale: scale, epsilon: epsilon, kind: kind, format: format,
                dtype: dtype)
        }
    }
    open func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        perform("layerNorm", [x]) {
            base.layerNorm(
                x, weight: weight, bias: bias, epsilon: epsilon, kind: kind, format: format)
        }
    }
    open func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        perform("rmsNorm", [x]) {
            base.rmsNorm(x, weight: weight, epsilon: epsilon, kind: kind, format: format)
        }
    }
    open func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        perform("rmsNormRope", [x]) {
            base.rmsNormRope(
                x, weight: weight, epsilon: epsilon, kind: kind, rope: rope, heads: heads)
        }
    }
    open func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        perform("gatedAdd", [x, y]) { base.gatedAdd(x, y, gate: gate) }
    }
    open func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        perform("geluGate", [gate, up]) { base.geluGate(gate, up, format: format) }
    }

    // MARK: Attention

    open func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int]
    ) -> Tensor {
        perform("attention", [q, k, v]) {
            base.attention(q, k, v, scale: scale, lastKeyCounts: lastKeyCounts)
        }
    }
    open func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        perform("relativeAttention", [q, k, v]) {
            base.relativeAttention(q, k, v, table: table)
        }
    }
    open func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        perform("blockMap", [q, k]) { base.blockMap(q, k, spec) }
    }
    open func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor {
        perform("sparseLinearAttention", [q, k, v]) {
            base.sparseLinearAttention(q, k, v, projection: projection, bias: bias, spec)
        }
    }
    open func sageOperands(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention)
        -> SageOperands?
    {
        perform("sageOperands", [q, k, v]) { base.sageOperands(q, k, v, spec) }
    }

    // MARK: Tokens and latents

    open func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        perform("embedding", [table]) { base.embedding(ids, table: table) }
    }
    open func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        perform("embedding", [table]) { base.embedding(ids, hostTable: table, as: dtype) }
    }
    open func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        perform("patchify", parts) { base.patchify(parts, dtype: dtype) }
    }
    open func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        perform("unpatchify", [x]) { base.unpatchify(x, size: size) }
    }
    open func rcmStep(
        _ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double
    ) -> Tensor {
        perform("rcmStep", [x, velocity]) {
            base.rcmStep(x, velocity: velocity, noise: noise, t: t, next: next)
        }
    }
    open func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        perform("combine", terms) { base.combine(terms, coefficients, as: dtype) }
    }
    open func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        perform("noise", []) { base.noise(shape, generator: &generator) }
    }

    // MARK: Video autoencoder

    open func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        perform("channelsLast", [x]) {
            base.channelsLast(x, scale: scale, shift: shift, dtype: dtype)
        }
    }
    open func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        perform("channelsFirst", [x]) { base.channelsFirst(x, scale: scale, shift: shift) }
    }
    open func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        perform("convolution", [x]) {
            base.convolution(
                x, history: history, leadingZeros: leadingZeros, weight, timeStride: timeStride,
                spatialStride: spatialStride, padding: padding, upsample: upsample,
                residual: residual)
        }
    }
    open func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        perform("channelNorm", [x]) { base.channelNorm(x, gamma: gamma, silu: silu) }
    }
    open func interleaveTime(_ x: Tensor) -> Tensor {
        perform("interleaveTime", [x]) { base.interleaveTime(x) }
    }
    open func concatenate(_ parts: [Tensor]) -> Tensor {
        perform("concatenate", parts) { base.concatenate(parts) }
    }
    open func rgb8(_ x: Tensor) -> Tensor {
        perform("rgb8", [x]) { base.rgb8(x) }
    }
    open func nv12(_ x: Tensor) -> Tensor {
        perform("nv12", [x]) { base.nv12(x) }
    }
}
