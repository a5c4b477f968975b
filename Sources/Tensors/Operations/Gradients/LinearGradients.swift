/// Derivatives of linear layers.

extension Operation {
    /// g W: what a linear layer's result asks of its input. cotangent: [..., out] → [..., in] in `dtype`
    ///
    /// Sums in f32. Quantised weights count as the numbers that their codes stand for.
    public struct InputGradient: OperationFacts {
        public static let name = "inputGradient"
        public var cotangent: Tensor
        public var weight: LinearWeight
        public var dtype: DType

        public var fits: Bool {
            weight.shape.rank == 2 && cotangent.shape.columns == weight.outputs
                && cotangent.format == .plain
        }
        public var results: [ResultType] {
            [ResultType(cotangent.shape.replacingLast(weight.inputs), dtype)]
        }
        public var flops: Int { 2 * cotangent.shape.rows * weight.inputs * weight.outputs }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&cotangent, .activation)
            weight.visit(tensor)
        }
        public var operation: Operation { .training(.inputGradient(self)) }
    }

    /// g^T x: d loss / d W of a linear layer, summed over the rows in f32.
    /// cotangent: [..., out], x: [..., in] → f32 [out, in]
    public struct WeightGradient: OperationFacts {
        public static let name = "weightGradient"
        public var cotangent, x: Tensor

        public var fits: Bool {
            cotangent.shape.rows == x.shape.rows && cotangent.format == .plain
                && x.format == .plain
        }
        public var results: [ResultType] {
            [ResultType([cotangent.shape.columns, x.shape.columns], .f32)]
        }
        public var flops: Int { 2 * x.shape.count * cotangent.shape.columns }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&cotangent, .activation)
            tensor(&x, .activation)
        }
        public var operation: Operation { .training(.weightGradient(self)) }
    }
}

extension Gradients {
    /// The shares of x W^T + bias. cotangent: [..., out], x: [..., in]
    fileprivate func add(
        _ cotangent: Tensor, of x: Tensor, _ weight: LinearWeight, bias: Tensor?,
        on device: any Backend
    ) {
        if wants(x) {
            add(
                device.result(
                    of: Operation.InputGradient(
                        cotangent: cotangent, weight: weight, dtype: x.dtype)), to: x)
        }
        if wants(weight.matrix) {
            add(
                device.result(of: Operation.WeightGradient(cotangent: cotangent, x: x)),
                to: weight.matrix)
        }
        if let bias, wants(bias) { add(device.columnSum(cotangent), to: bias) }
    }
}

extension Operation.Linear: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        var cotangent = cotangent
        if activation != .none {
            cotangent = device.activate(
                beforeActivation(on: device), activation, factor: cotangent)
        }
        gradients.add(cotangent, of: x, weight, bias: bias, on: device)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        guard let tangent = tangent(x) else { return nil }
        let moved = device.linear(tangent, weight, bias: nil, dtype: resultType)
        return activation == .none
            ? moved : device.activate(beforeActivation(on: device), activation, factor: moved)
    }

    /// x W^T + bias, computed again.
    private func beforeActivation(on device: any Backend) -> Tensor {
        device.linear(x, weight, bias: bias, dtype: resultType)
    }
}

extension Operation.LinearAdd: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        gradients.add(cotangent, to: residual)
        if let gate, gradients.wants(gate) {
            gradients.add(device.columnSum(cotangent, times: product(on: device)), to: gate)
        }
        guard gradients.wants(x) || gradients.wants(weight.matrix) || gradients.wants(bias) else {
            return
        }
        gradients.add(
            gate.map { device.scaleColumns(cotangent, by: $0) } ?? cotangent, of: x, weight,
            bias: bias, on: device)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let moved = tangent(x).map {
            let y = device.linear($0, weight, bias: nil, dtype: residual.dtype)
            return gate.map { device.scaleColumns(y, by: $0) } ?? y
        }
        let turned = gate.flatMap(tangent).map {
            device.scaleColumns(product(on: device), by: $0)
        }
        return device.sum(device.sum(tangent(residual), moved), turned)
    }

    /// x W^T + bias, computed again.
    private func product(on device: any Backend) -> Tensor {
        device.linear(x, weight, bias: bias, dtype: residual.dtype)
    }
}
