/// Linear layers, and the 8-bit formats of their activations.

/// Element-wise function applied after a linear layer.
public enum Activation: Sendable, Hashable {
    case none
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    case geluTanh
    /// x / (1 + exp(-x))
    case silu
}

extension Operation {
    /// activation(x W^T + bias). x: [..., in], plain or in the weight's `inputFormat` → [..., out]
    ///
    /// A plain x is quantised first if the weight is quantised. f32 activations times a bf16 matrix is computed in f32.
    /// Dense: rounded to the result's dtype once, after the bias and before the activation. int8 blocks: y = sum over
    /// k-blocks of f32(int32 dot) * xs * ws (scales of x and W), rounded to the result's dtype, and only then is the
    /// bias added in that dtype.
    public struct Linear: OperationFacts {
        public static let name = "linear"
        public var x: Tensor
        public var weight: LinearWeight
        /// [out]
        public var bias: Tensor?
        public var activation: Activation
        /// Quantises the result for the next linear layer.
        public var format: LinearFormat
        /// The dtype of the result; nil for that of a plain x, and for bf16 where x is quantised.
        public var dtype: DType?

        /// The dtype of the result before `format` quantises it.
        public var resultType: DType { dtype ?? (x.format == .plain ? x.dtype : .bf16) }

        public var fits: Bool { weight.takes(x, bias: bias) }
        public var results: [ResultType] {
            [ResultType(x.shape.replacingLast(weight.outputs), resultType, format)]
        }
        public var flops: Int { 2 * x.shape.rows * weight.inputs * weight.outputs }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            weight.visit(tensor)
            Tensors.visit(&bias, .parameter, tensor)
        }
        public var operation: Operation { .linear(self) }
    }

    /// residual + gate * (x W^T + bias). x: [tokens, in], residual: [tokens, out] → shape and dtype of residual
    ///
    /// In bf16 the linear layer's result and the gate are rounded to bf16 before the product, as in the original.
    public struct LinearAdd: OperationFacts {
        public static let name = "linearAdd"
        public var x: Tensor
        public var weight: LinearWeight
        /// [out]
        public var bias: Tensor?
        public var residual: Tensor
        /// f32 [out]; nil for 1.
        public var gate: Tensor?

        public var fits: Bool {
            weight.takes(x, bias: bias) && gate.isVector(of: weight.outputs)
                && residual.shape == x.shape.replacingLast(weight.outputs)
        }
        public var results: [ResultType] { [ResultType(residual.shape, residual.dtype)] }
        public var flops: Int { 2 * x.shape.rows * weight.inputs * weight.outputs }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            weight.visit(tensor)
            Tensors.visit(&bias, .parameter, tensor)
            tensor(&residual, .activation)
            Tensors.visit(&gate, .parameter, tensor)
        }
        public var operation: Operation { .linearAdd(self) }

        public func composed(on device: any Backend) -> Tensor {
            let y = device.linear(x, weight, bias: bias, dtype: residual.dtype)
            return device.gatedAdd(residual, y, gate: gate)
        }
    }

    /// Quantises x to 8-bit activations; see `Int8Blocks` and `FP8Rows`. x: [..., columns] → same shape, with `scales`
    public struct Quantize: OperationFacts {
        public static let name = "quantize"
        public var x: Tensor
        public var format: LinearFormat

        public var fits: Bool { x.format == .plain }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype, format)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .quantize(self) }
    }
}

extension LinearWeight {
    fileprivate func takes(_ x: Tensor, bias: Tensor?) -> Bool {
        shape.rank == 2 && x.shape.columns == inputs && bias.isVector(of: outputs)
            && (x.format == .plain || x.format == inputFormat)
    }
}

extension Backend {
    /// See `Operation.Linear`.
    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation = .none,
        format: LinearFormat = .plain, dtype: DType? = nil
    ) -> Tensor {
        result(
            of: Operation.Linear(
                x: x, weight: weight, bias: bias, activation: activation, format: format,
                dtype: dtype))
    }

    /// See `Operation.LinearAdd`.
    public func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        result(
            of: Operation.LinearAdd(
                x: x, weight: weight, bias: bias, residual: residual, gate: gate))
    }

    /// Quantises x; returns x itself if `format` is plain.
    public func quantize(_ x: Tensor, to format: LinearFormat) -> Tensor {
        format == .plain ? x : result(of: Operation.Quantize(x: x, format: format))
    }
}
