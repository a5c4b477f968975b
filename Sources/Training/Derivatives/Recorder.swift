/// Reverse mode: keeps operations, and walks back through them.

import Ground
public import Tensors

/// A backend that remembers what it was asked for, as far as it leads from the watched tensors to a result, so that
/// `backward` can find the derivatives of a loss by them.
///
/// One recorder serves one pass forward and one back. Rules compute on the backend below; nothing here knows a machine.
public final class Recorder: ForwardingBackend {
    private enum Entry {
        case operation(any DifferentiableOperation, result: Tensor)
        /// Computed without being recorded; `body` computes it again.
        case segment(body: () -> Tensor, result: Tensor)
    }

    private var entries: [Entry] = []
    /// Values that depend on a watched tensor, and those themselves.
    private var dependent: Set<Tensor.Identity> = []
    private var isKeeping = true
    private let names: [UInt64: String]
    /// What placed tensors are called that no operation has used yet.
    private var unused: [Tensor.Identity: String] = [:]
    /// What placed tensors are called, by the entry that uses them first.
    private var firstUses: [Int: [String]] = [:]

    /// What placed tensors are called, and as what they lie on the device: those whose memory `names` knows.
    public private(set) var placed: [String: Tensor] = [:]

    /// - Parameter names: of host tensors that are to be watched when they are placed, by the serial of their storage.
    public init(_ base: any Backend, names: [UInt64: String] = [:]) {
        self.names = names
        super.init(base)
    }

    /// From now on what depends on `x` is recorded.
    public func watch(_ x: Tensor) { dependent.insert(x.identity) }

    // MARK: Forward

    public override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        guard !operation.isConstant, dependsOnWatched(operation) else { return results }
        guard let known = operation.differentiable else {
            programmingError("\(operation.name): no rule for its derivative")
        }
        dependent.insert(results[0].identity)
        if isKeeping { entries.append(.operation(known, result: results[0])) }
        return results
    }

    private func dependsOnWatched(_ operation: Operation) -> Bool {
        var found = false
        var facts = operation.facts
        facts.visit { tensor, _ in
            guard dependent.contains(tensor.identity) else { return }
            found = true
            // The operations of a segment come before its entry does.
            if let name = unused.removeValue(forKey: tensor.identity) {
                firstUses[entries.count, default: []].append(name)
            }
        }
        return found
    }

    /// Runs `body`, whose operations come here, and forgets what happened in it but for its result; on the way back it
    /// runs again. Its values must come from outside or be made in it from there.
    public func recomputed(_ body: @escaping () -> Tensor) -> Tensor {
        guard isKeeping else { return body() }
        isKeeping = false
        let result = body()
        isKeeping = true
        if dependent.contains(result.identity) {
            entries.append(.segment(body: body, result: result))
        }
        return result
    }

    public override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        let placed = super.place(host, as: dtype, in: group)
        note(host, placed)
        return placed
    }

    public override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        let placed = super.place(weight, as: dtype, in: group)
        note(weight.matrix, placed.matrix)
        return placed
    }

    private func note(_ host: Tensor, _ tensor: Tensor) {
        guard let name = names[host.storage.serial] else { return }
        placed[name] = tensor
        unused[tensor.identity] = name
        watch(tensor)
    }

    // MARK: Back

    /// The derivatives of sum <value, cotangent> by what is watched; they are taken from the result. What was recorded
    /// is forgotten on the way.
    /// - Parameters:
    ///   - cotangents: shape and dtype of their values.
    ///   - finished: is told what placed tensors are called to whose derivatives nothing more will be added.
    public func backward(
        _ cotangents: [(value: Tensor, cotangent: Tensor)],
        finished: ([String], Gradients) -> Void = { _, _ in }
    ) -> Gradients {
        let gradients = Gradients(on: base) { [self] in dependent.contains($0.identity) }
        for (value, cotangent) in cotangents { gradients.add(cotangent, to: value) }
        walkBack(gradients) {
            if let names = firstUses.removeValue(forKey: $0) { finished(names, gradients) }
        }
        return gradients
    }

    /// - Parameter done: is called with the number of each entry that has been dealt with.
    private func walkBack(_ gradients: Gradients, done: (Int) -> Void = { _ in }) {
        while let entry = entries.popLast() {
            defer { done(entries.count) }
            switch entry {
            case .operation(let operation, let result):
                guard let cotangent = gradients.take(result) else { continue }
                operation.reverse(cotangent, result: result, into: gradients, on: base)
            case .segment(let body, let result):
                guard let cotangent = gradients.take(result) else { continue }
                let before = entries
                entries = []
                let again = body()
                gradients.add(cotangent, to: again)
                walkBack(gradients)
                entries = before
            }
        }
    }
}
