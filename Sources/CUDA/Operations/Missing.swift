// Operations whose kernels are being written: each is deleted here when its file defines it.

public import Tensors

// cuda-matmul: delete the ones below as they come. For f32 activations or weights `linear` may call
// `fullPrecisionLinear` (Operations/FullPrecisionLinear.swift).
extension CUDABackend {
    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor { preconditionFailure("linear: no CUDA kernel") }

    public func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor {
        preconditionFailure("quantize: no CUDA kernel")
    }

    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor { preconditionFailure("convolution: no CUDA kernel") }
}

// cuda-attention: delete the ones below as they come.
extension CUDABackend {
    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCount: Int
    ) -> Tensor { preconditionFailure("attention: no CUDA kernel") }

    public func relativeAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor
    ) -> Tensor { preconditionFailure("relativeAttention: no CUDA kernel") }

    public func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        preconditionFailure("blockMap: no CUDA kernel")
    }

    public func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor { preconditionFailure("sparseLinearAttention: no CUDA kernel") }
}
