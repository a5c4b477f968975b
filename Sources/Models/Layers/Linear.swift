/// The linear layer of all models.

public import Checkpoints
public import Tensors

/// activation(x W^T + bias). The matrix is stored in the dtype of activations, or quantised.
public struct Linear {
    /// [out, in]
    public let weight: LinearWeight
    /// f32 [out]
    public let bias: Tensor?
    /// The dtype of the result.
    public let dtype: DType

    /// - Parameters:
    ///   - quantizable: whether a dense weight is quantised to the `linearFormat` of `weights`.
    ///   - dtype: the dtype of the result; nil for that of activations.
    public init(
        _ weights: Weights, from inputs: Int, to outputs: Int, quantizable: Bool = false,
        result dtype: DType? = nil
    ) throws(CheckpointError) {
        (weight, bias) = try weights.linear(
            from: inputs, to: outputs, quantizable: quantizable)
        self.dtype = dtype ?? weights.activations
    }

    public init(weight: LinearWeight, bias: Tensor?, dtype: DType) {
        self.weight = weight
        self.bias = bias
        self.dtype = dtype
    }

    /// The format in which the operation before this layer should write its result.
    public var inputFormat: LinearFormat { weight.inputFormat }

    /// x: [..., in] → [..., out]
    public func callAsFunction(
        _ x: Tensor, activation: Activation = .none, format: LinearFormat = .plain,
        on device: any Backend
    ) -> Tensor {
        device.linear(
            x, weight, bias: bias, activation: activation, format: format, dtype: dtype)
    }

    /// residual + gate * (x W^T + bias). x: [tokens, in], residual: [tokens, out], gate: f32 [out]
    public func add(
        _ x: Tensor, to residual: Tensor, gate: Tensor? = nil, on device: any Backend
    ) -> Tensor {
        device.linearAdd(x, weight, bias: bias, to: residual, gate: gate)
    }
}
