// Operations whose kernels are being written: each is deleted here when its file defines it.

public import Tensors

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
