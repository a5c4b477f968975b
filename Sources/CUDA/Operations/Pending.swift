// Operations to come.

public import Tensors

extension CUDABackend {
    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool {
        preconditionFailure("equalBits: no CUDA kernel")
    }
    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor { preconditionFailure("modulatedLayerNorm: no CUDA kernel") }
    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor { preconditionFailure("layerNorm: no CUDA kernel") }
    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor { preconditionFailure("rmsNorm: no CUDA kernel") }
    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor { preconditionFailure("rmsNormRope: no CUDA kernel") }
    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        preconditionFailure("gatedAdd: no CUDA kernel")
    }
    public func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        preconditionFailure("geluGate: no CUDA kernel")
    }
    public func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        preconditionFailure("embedding: no CUDA kernel")
    }
    public func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        preconditionFailure("embedding: no CUDA kernel")
    }
    public func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        preconditionFailure("patchify: no CUDA kernel")
    }
    public func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        preconditionFailure("unpatchify: no CUDA kernel")
    }
    public func rcmStep(_ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double)
        -> Tensor
    { preconditionFailure("rcmStep: no CUDA kernel") }
    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        preconditionFailure("combine: no CUDA kernel")
    }
    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        preconditionFailure("noise: no CUDA kernel")
    }
    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        preconditionFailure("channelsLast: no CUDA kernel")
    }
    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        preconditionFailure("channelsFirst: no CUDA kernel")
    }
    public func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        preconditionFailure("channelNorm: no CUDA kernel")
    }
    public func interleaveTime(_ x: Tensor) -> Tensor {
        preconditionFailure("interleaveTime: no CUDA kernel")
    }
    public func concatenate(_ parts: [Tensor]) -> Tensor {
        preconditionFailure("concatenate: no CUDA kernel")
    }
    public func rgb8(_ x: Tensor) -> Tensor { preconditionFailure("rgb8: no CUDA kernel") }
    func convert(
        _ source: DevicePointer, _ from: DType, to target: DevicePointer, _ to: DType, count: Int
    ) { preconditionFailure() }
}
