/// Layer norms, RMS norms, and what is fused with them. Statistics are f32.

/// Which definition of the norms is used; see `Operation.LayerNorm` and `Operation.RMSNorm`.
public enum NormKind: String, Sendable, Hashable {
    /// The textbook definition, in f32.
    case exact
    /// As the original's fast kernels do it: their layer norm pads the N columns with zeros to the next power of two N2
    /// and counts those in the variance: var = (sum (x-mean)^2 + (N2-N) mean^2) / N.
    case reference
}

/// Angles of the rotary embedding along all three axes. cosine, sine: f32 [tokens, headDim/2]
public struct RotaryTable {
    public var cosine, sine: Tensor
    public init(cosine: Tensor, sine: Tensor) {
        self.cosine = cosine
        self.sine = sine
    }
}

extension Operation {
    /// LN(x) * weight + bias, where LN(x) = (x - mean) / sqrt(var + epsilon); rounded once, at the end.
    /// x: [tokens, dim] → same
    public struct LayerNorm: OperationFacts {
        public static let name = "layerNorm"
        public var x: Tensor
        /// f32 [dim]; nil for 1 and 0.
        public var weight, bias: Tensor?
        public var epsilon: Float
        public var kind: NormKind
        /// Quantises the result for the next linear layer.
        public var format: LinearFormat

        public var fits: Bool {
            weight.isVector(of: x.shape.columns) && bias.isVector(of: x.shape.columns)
        }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype, format)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            Tensors.visit(&weight, .parameter, tensor)
            Tensors.visit(&bias, .parameter, tensor)
        }
        public var operation: Operation { .layerNorm(self) }
    }

    /// LN(x) * (1 + scale) + shift, where LN has no weights and is rounded to the dtype of x. x: [tokens, dim] → same
    public struct ModulatedLayerNorm: OperationFacts {
        public static let name = "modulatedLayerNorm"
        public var x: Tensor
        /// f32 [dim]
        public var shift, scale: Tensor
        public var epsilon: Float
        public var kind: NormKind
        /// Quantises the result for the next linear layer.
        public var format: LinearFormat
        /// The dtype of the result; nil for that of x.
        public var dtype: DType?

        /// The dtype of the result before `format` quantises it.
        public var resultType: DType { dtype ?? x.dtype }

        public var fits: Bool {
            shift.shape.count == x.shape.columns && scale.shape.count == x.shape.columns
        }
        public var results: [ResultType] { [ResultType(x.shape, resultType, format)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&shift, .parameter)
            tensor(&scale, .parameter)
        }
        public var operation: Operation { .modulatedLayerNorm(self) }
    }

    /// x / sqrt(mean(x^2) + epsilon) * weight over the last axis. x: [tokens, dim] → same
    ///
    /// In bf16, `.exact` rounds the normalised x to bf16 and multiplies it by the bf16 weight (WanRMSNorm,
    /// T5LayerNorm); `.reference` multiplies by the f32 weight first and rounds once (FastRMSNorm).
    public struct RMSNorm: OperationFacts {
        public static let name = "rmsNorm"
        public var x: Tensor
        /// [dim]
        public var weight: Tensor
        public var epsilon: Float
        public var kind: NormKind
        /// Quantises the result for the next linear layer.
        public var format: LinearFormat

        public var fits: Bool { weight.shape.count == x.shape.columns }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype, format)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&weight, .parameter)
        }
        public var operation: Operation { .rmsNorm(self) }
    }

    /// `RMSNorm` over all heads together, then the rotary embedding of interleaved pairs in each head, in f32.
    /// x: [tokens, heads * headDim] → [tokens, heads, headDim]
    public struct RMSNormRope: OperationFacts {
        public static let name = "rmsNormRope"
        public var x: Tensor
        /// [heads * headDim]
        public var weight: Tensor
        public var epsilon: Float
        public var kind: NormKind
        public var rope: RotaryTable
        public var heads: Int

        public var fits: Bool {
            let (tokens, dim) = (x.shape.rows, x.shape.columns)
            return weight.shape.count == dim && dim % (2 * heads) == 0
                && rope.cosine.shape == [tokens, dim / heads / 2]
                && rope.sine.shape == rope.cosine.shape
        }
        public var results: [ResultType] {
            [ResultType([x.shape.rows, heads, x.shape.columns / heads], x.dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&weight, .parameter)
            tensor(&rope.cosine, .parameter)
            tensor(&rope.sine, .parameter)
        }
        public var operation: Operation { .rmsNormRope(self) }
    }

    /// x / max(||x||_2, 1e-12) * sqrt(C) * gamma over the channels, then SiLU if `silu`; rounded once, at the end.
    /// x: [..., C] → same
    public struct ChannelNorm: OperationFacts {
        public static let name = "channelNorm"
        public var x: Tensor
        /// f32 [C]
        public var gamma: Tensor
        public var silu: Bool
        /// Rows above and below x, which are normalised too: the result is that of `JoinRows`.
        public var margin: Margin

        public var fits: Bool { gamma.shape.count == x.shape.columns && margin.fits(x) }
        public var results: [ResultType] { [ResultType(margin.joined(x.shape), x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&gamma, .parameter)
            margin.visit(tensor)
        }
        public var operation: Operation { .channelNorm(self) }

        public func composed(on device: any Backend) -> Tensor {
            device.channelNorm(device.joinRows(x, margin).frames, gamma: gamma, silu: silu)
        }
    }
}

extension Backend {
    /// See `Operation.LayerNorm`.
    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: LinearFormat
    ) -> Tensor {
        result(
            of: Operation.LayerNorm(
                x: x, weight: weight, bias: bias, epsilon: epsilon, kind: kind, format: format))
    }

    /// See `Operation.ModulatedLayerNorm`.
    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: LinearFormat, dtype: DType?
    ) -> Tensor {
        result(
            of: Operation.ModulatedLayerNorm(
                x: x, shift: shift, scale: scale, epsilon: epsilon, kind: kind, format: format,
                dtype: dtype))
    }

    /// See `Operation.RMSNorm`.
    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: LinearFormat
    ) -> Tensor {
        result(
            of: Operation.RMSNorm(
                x: x, weight: weight, epsilon: epsilon, kind: kind, format: format))
    }

    /// See `Operation.RMSNormRope`.
    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        result(
            of: Operation.RMSNormRope(
                x: x, weight: weight, epsilon: epsilon, kind: kind, rope: rope, heads: heads))
    }

    /// See `Operation.ChannelNorm`.
    public func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        result(of: Operation.ChannelNorm(x: x, gamma: gamma, silu: silu, margin: .none))
    }

    /// The same of frames and of the rows above and below them. x: [T, H, W, C] → [T, above + H + below, W, C]
    public func channelNorm(_ x: Tensor, _ margin: Margin, gamma: Tensor, silu: Bool)
        -> HaloedFrames
    {
        HaloedFrames(
            result(of: Operation.ChannelNorm(x: x, gamma: gamma, silu: silu, margin: margin)),
            above: margin.above, below: margin.below)
    }
}
