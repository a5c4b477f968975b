/// Derivatives of what the members of a group give to each other. They are collectives themselves: all members take part,
/// forward and back.
///
/// Every member computes the same loss from values that all of them have, such as the result of `gather`, so the loss
/// counts once and not once for each member. What a member finds by a value that all have, such as a weight, is its own
/// rows' share: the sum over the members is the derivative.

extension Collective where Self: DifferentiableOperation {
    /// Tangents go as their values do.
    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map {
            var moved = self
            moved.x = $0
            return device.result(of: moved)
        }
    }
}

extension Operation.Exchange: DifferentiableOperation {
    /// Numbers go back the way they came. x: the cotangent, as the result
    private func reversed(_ x: Tensor) -> Operation.Exchange {
        var back = self
        back.x = x
        back.direction = direction == .toHeads ? .toRows : .toHeads
        return back
    }

    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(device.result(of: reversed(cotangent)), to: x)
    }
}

extension Operation.Gather: DifferentiableOperation {
    /// All have the whole cotangent, the same bits: nothing has to be summed. Along the outermost axis only.
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(device.slice(cotangent, shares[member]), to: x)
    }
}
