/// Forward mode: every value with its derivative along one direction.

import Ground
public import Tensors

/// A backend that carries the tangents of values along with them. Those of values that are gone are dropped.
public final class Tangents: ForwardingBackend {
    private struct Entry {
        weak var storage: Storage?
        var tangent: Tensor
    }

    private var entries: [Tensor.Identity: Entry] = [:]
    private var sinceSweep = 0

    public override init(_ base: any Backend) { super.init(base) }

    /// From now on `x` moves along `tangent`. Shape and dtype of x
    public func move(_ x: Tensor, along tangent: Tensor) {
        ensure(
            x.shape == tangent.shape && x.dtype == tangent.dtype,
            "Tangents: \(tangent) cannot be the tangent of \(x)")
        entries[x.identity] = Entry(storage: x.storage, tangent: tangent)
    }

    /// The derivative of a value along the direction; nil for a constant.
    public func tangent(of x: Tensor) -> Tensor? { entries[x.identity]?.tangent }

    public override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        guard !operation.isConstant, isMoving(operation) else { return results }
        guard let known = operation.differentiable else {
            programmingError("\(operation.name): no rule for its derivative")
        }
        if let tangent = known.forward(
            { self.tangent(of: $0) }, result: results[0], on: base)
        {
            move(results[0], along: tangent)
        }
        sweep()
        return results
    }

    private func isMoving(_ operation: Operation) -> Bool {
        var found = false
        var facts = operation.facts
        facts.visit { tensor, _ in found = found || entries[tensor.identity] != nil }
        return found
    }

    /// A value's storage leaves with the last tensor that looks at it.
    private func sweep() {
        sinceSweep += 1
        guard sinceSweep >= 8 else { return }
        sinceSweep = 0
        entries = entries.filter { $0.value.storage != nil }
    }
}
