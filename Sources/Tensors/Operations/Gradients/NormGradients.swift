/// Derivatives of the norms, and the rotation of q and k on its own.
///
/// With h the normalised row and s its scale, J u = s (u - mean(u) - h mean(h u)); an RMS norm has no mean(u). J is its
/// own transpose: both modes use it.

extension Operation {
    /// What a norm normalises by.
    public enum Normalization: Sendable, Hashable {
        /// Mean and variance.
        case layer
        /// The mean square.
        case rms
    }

    /// Of y = normalised(x) * gain + bias: J (gain * g), sum g * normalised(x), sum g. Statistics in f32.
    /// x, cotangent: [tokens, dim] → as x; f32 [dim]; f32 [dim]
    public struct NormGradient: OperationFacts {
        public static let name = "normGradient"
        public var x, cotangent: Tensor
        /// f32 [dim]; nil for 1.
        public var gain: Tensor?
        /// Whether the gain is 1 + `gain`.
        public var isOffset: Bool
        public var epsilon: Float
        public var normalization: Normalization

        public var fits: Bool {
            cotangent.shape == x.shape && gain.isVector(of: x.shape.columns)
        }
        public var results: [ResultType] {
            let vector = ResultType([x.shape.columns], .f32)
            return [ResultType(x.shape, x.dtype), vector, vector]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&cotangent, .activation)
            Tensors.visit(&gain, .parameter, tensor)
        }
        public var operation: Operation { .training(.normGradient(self)) }
    }

    /// gain * (J t): the tangent of a norm whose gain is constant. x, tangent: [tokens, dim] → same in `dtype`
    public struct NormTangent: OperationFacts {
        public static let name = "normTangent"
        public var x, tangent: Tensor
        /// f32 [dim]; nil for 1.
        public var gain: Tensor?
        /// Whether the gain is 1 + `gain`.
        public var isOffset: Bool
        public var epsilon: Float
        public var normalization: Normalization
        public var dtype: DType

        public var fits: Bool { tangent.shape == x.shape && gain.isVector(of: x.shape.columns) }
        public var results: [ResultType] { [ResultType(x.shape, dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&tangent, .activation)
            Tensors.visit(&gain, .parameter, tensor)
        }
        public var operation: Operation { .training(.normTangent(self)) }
    }

    /// Rotary embedding alone, of interleaved pairs in each head, in f32; backwards it turns by the negative angles.
    /// x: [tokens, heads, headDim] → same
    public struct Rotate: OperationFacts {
        public static let name = "rotate"
        public var x: Tensor
        public var rope: RotaryTable
        public var isBackwards: Bool

        public var fits: Bool {
            x.shape.rank == 3 && x.shape[2] % 2 == 0
                && rope.cosine.shape == [x.shape[0], x.shape[2] / 2]
                && rope.sine.shape == rope.cosine.shape
        }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&rope.cosine, .parameter)
            tensor(&rope.sine, .parameter)
        }
        public var operation: Operation { .training(.rotate(self)) }
    }
}

extension Backend {
    /// Rotary embedding of x, or its inverse. x: [tokens, heads, headDim] → same
    public func rotate(_ x: Tensor, _ rope: RotaryTable, backwards: Bool = false) -> Tensor {
        result(of: Operation.Rotate(x: x, rope: rope, isBackwards: backwards))
    }

    fileprivate func normGradient(
        _ x: Tensor, _ cotangent: Tensor, gain: Tensor?, isOffset: Bool, epsilon: Float,
        _ normalization: Operation.Normalization
    ) -> (x: Tensor, gain: Tensor, bias: Tensor) {
        let found = results(
            of: Operation.NormGradient(
                x: x, cotangent: cotangent, gain: gain, isOffset: isOffset, epsilon: epsilon,
                normalization: normalization))
        return (found[0], found[1], found[2])
    }

    fileprivate func normTangent(
        _ x: Tensor, _ tangent: Tensor, gain: Tensor?, isOffset: Bool, epsilon: Float,
        _ normalization: Operation.Normalization, as dtype: DType
    ) -> Tensor {
        result(
            of: Operation.NormTangent(
                x: x, tangent: tangent, gain: gain, isOffset: isOffset, epsilon: epsilon,
                normalization: normalization, dtype: dtype))
    }
}

extension Operation.Rotate: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(device.rotate(cotangent, rope, backwards: !isBackwards), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map { device.rotate($0, rope, backwards: isBackwards) }
    }
}

extension Operation.LayerNorm: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let found = device.normGradient(
            x, cotangent, gain: weight, isOffset: false, epsilon: epsilon, .layer)
        gradients.add(found.x, to: x)
        if let weight { gradients.add(found.gain, to: weight) }
        if let bias { gradients.add(found.bias, to: bias) }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map {
            device.normTangent(
                x, $0, gain: weight, isOffset: false, epsilon: epsilon, .layer, as: x.dtype)
        }
    }
}

extension Operation.ModulatedLayerNorm: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let found = device.normGradient(
            x, cotangent, gain: scale, isOffset: true, epsilon: epsilon, .layer)
        gradients.add(found.x, to: x)
        gradients.add(found.gain, to: scale)
        gradients.add(found.bias, to: shift)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let moved = tangent(x).map {
            device.normTangent(
                x, $0, gain: scale, isOffset: true, epsilon: epsilon, .layer, as: resultType)
        }
        let shiftTangent = tangent(shift)
        let scaleTangent = tangent(scale)
        guard shiftTangent != nil || scaleTangent != nil else { return moved }
        // LN(x) * tangent of the scale + tangent of the shift.
        let turned = device.layerNorm(
            x, weight: scaleTangent ?? device.zeros([x.shape.columns], .f32), bias: shiftTangent,
            epsilon: epsilon, kind: kind, format: .plain)
        return device.sum(moved, device.cast(turned, to: resultType))
    }
}

extension Operation.RMSNorm: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let found = device.normGradient(
            x, cotangent, gain: weight, isOffset: false, epsilon: epsilon, .rms)
        gradients.add(found.x, to: x)
        gradients.add(found.gain, to: weight)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map {
            device.normTangent(
                x, $0, gain: weight, isOffset: false, epsilon: epsilon, .rms, as: x.dtype)
        }
    }
}

extension Operation.RMSNormRope: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let turned = device.reshape(device.rotate(cotangent, rope, backwards: true), x.shape)
        let found = device.normGradient(
            x, turned, gain: weight, isOffset: false, epsilon: epsilon, .rms)
        gradients.add(found.x, to: x)
        gradients.add(found.gain, to: weight)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map {
            let moved = device.normTangent(
                x, $0, gain: weight, isOffset: false, epsilon: epsilon, .rms, as: x.dtype)
            return device.rotate(device.reshape(moved, result.shape), rope)
        }
    }
}
