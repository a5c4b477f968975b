/// Derivatives of what goes element by element.

extension Operation {
    /// act(x), or act'(x) * factor: a rule's half of either mode. x, factor: [...] → same, in the dtype of x
    public struct Activate: OperationFacts {
        public static let name = "activate"
        public var x: Tensor
        public var activation: Activation
        public var factor: Tensor?

        public var fits: Bool {
            factor.map { $0.shape == x.shape && $0.dtype == x.dtype } ?? true
        }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            Tensors.visit(&factor, .activation, tensor)
        }
        public var operation: Operation { .training(.activate(self)) }
    }

    /// Each row times a vector. x: [..., n], factor: f32 [n] → as x
    public struct ScaleColumns: OperationFacts {
        public static let name = "scaleColumns"
        public var x, factor: Tensor

        public var fits: Bool { factor.shape.count == x.shape.columns && factor.dtype == .f32 }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&factor, .parameter)
        }
        public var operation: Operation { .training(.scaleColumns(self)) }
    }

    /// The sum over the rows of x, or of x * other. x, other: [..., n] → f32 [n]
    public struct ColumnSum: OperationFacts {
        public static let name = "columnSum"
        public var x: Tensor
        public var other: Tensor?

        public var fits: Bool { other.map { $0.shape == x.shape } ?? true }
        public var results: [ResultType] { [ResultType([x.shape.columns], .f32)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            Tensors.visit(&other, .activation, tensor)
        }
        public var operation: Operation { .training(.columnSum(self)) }
    }
}

extension Backend {
    /// act(x), or act'(x) * factor.
    public func activate(_ x: Tensor, _ activation: Activation, factor: Tensor? = nil) -> Tensor {
        result(of: Operation.Activate(x: x, activation: activation, factor: factor))
    }

    /// Each row of x times `factor`. x: [..., n], factor: f32 [n]
    public func scaleColumns(_ x: Tensor, by factor: Tensor) -> Tensor {
        result(of: Operation.ScaleColumns(x: x, factor: factor))
    }

    /// The sum over the rows of x, or of x * other. x, other: [..., n] → f32 [n]
    public func columnSum(_ x: Tensor, times other: Tensor? = nil) -> Tensor {
        result(of: Operation.ColumnSum(x: x, other: other))
    }
}

extension Operation.Activate: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(device.activate(x, activation, factor: cotangent), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map { device.activate(x, activation, factor: $0) }
    }
}

extension Operation.GatedAdd: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        gradients.add(cotangent, to: x)
        if let gate, gradients.wants(gate) {
            gradients.add(device.columnSum(cotangent, times: y), to: gate)
        }
        guard gradients.wants(y) else { return }
        gradients.add(gate.map { device.scaleColumns(cotangent, by: $0) } ?? cotangent, to: y)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let moved = tangent(y).map { y in gate.map { device.scaleColumns(y, by: $0) } ?? y }
        let turned = gate.flatMap(tangent).map { device.scaleColumns(y, by: $0) }
        return device.sum(device.sum(tangent(x), moved), turned)
    }
}

extension Operation.Combine: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        for (term, coefficient) in zip(terms, coefficients) where gradients.wants(term) {
            gradients.add(device.combine([cotangent], [coefficient], as: term.dtype), to: term)
        }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let moved = zip(terms, coefficients).compactMap { term, coefficient in
            tangent(term).map { ($0, coefficient) }
        }
        return moved.isEmpty ? nil : device.combine(moved.map(\.0), moved.map(\.1), as: dtype)
    }
}
