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

    /// Each row times a vector, plus another. x: [..., n], factor: f32 [n] → as x
    public struct ScaleColumns: OperationFacts {
        public static let name = "scaleColumns"
        public var x, factor: Tensor
        /// Whether the factor is 1 + `factor`.
        public var isOffset = false
        /// f32 [n]; nil for 0.
        public var shift: Tensor?

        public var fits: Bool {
            factor.shape.count == x.shape.columns && factor.dtype == .f32
                && (shift.map { $0.shape.count == x.shape.columns && $0.dtype == .f32 } ?? true)
        }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&factor, .parameter)
            Tensors.visit(&shift, .parameter, tensor)
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

    /// x * (1 + scale) + shift, column by column. x: [..., n], scale, shift: f32 [n]
    public func modulateColumns(_ x: Tensor, shift: Tensor?, scale: Tensor) -> Tensor {
        result(of: Operation.ScaleColumns(x: x, factor: scale, isOffset: true, shift: shift))
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

extension Operation.ScaleColumns: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        if gradients.wants(factor) {
            gradients.add(device.columnSum(cotangent, times: x), to: factor)
        }
        if let shift, gradients.wants(shift) {
            gradients.add(device.columnSum(cotangent), to: shift)
        }
        guard gradients.wants(x) else { return }
        gradients.add(along(cotangent, on: device), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let moved = tangent(x).map { along($0, on: device) }
        let (turned, shifted) = (tangent(factor), shift.flatMap(tangent))
        guard turned != nil || shifted != nil else { return moved }
        return device.sum(
            moved,
            device.result(
                of: Operation.ScaleColumns(
                    x: x, factor: turned ?? device.zeros(factor.shape, .f32), shift: shifted)))
    }

    /// Times the factor alone.
    private func along(_ x: Tensor, on device: any Backend) -> Tensor {
        device.result(
            of: Operation.ScaleColumns(x: x, factor: factor, isOffset: isOffset))
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
