/// What may replace a definition: faster versions of some operations.

import Tensors

/// Faster versions of operations. Each returns nil where it has none for these arguments, and the definition
/// runs; shapes have been checked. Results are in memory of the pool that the implementation was made with.
protocol FastOperations: AnyObject {
    /// For the name of the backend: "oneDNN 2.6".
    var name: String { get }

    func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor?
    func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor?
    func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor?
    func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int])
        -> Tensor?
    func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor?
    func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor?
    func convolution(
        _ x: Tensor, history: Tensor?, _ weight: ConvolutionWeight, _ geometry: ConvolutionGeometry,
        residual: Tensor?
    ) -> Tensor?
    func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor?
}

extension FastOperations {
    func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor? { nil }
    func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor? { nil }
    func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor? { nil }
    func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int])
        -> Tensor?
    { nil }
    func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor? { nil }
    func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor? { nil }
    func convolution(
        _ x: Tensor, history: Tensor?, _ weight: ConvolutionWeight, _ geometry: ConvolutionGeometry,
        residual: Tensor?
    ) -> Tensor? { nil }
    func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor? { nil }
}
