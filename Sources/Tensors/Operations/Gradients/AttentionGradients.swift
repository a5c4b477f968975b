/// Derivatives of dense and of sparse-linear attention.
///
/// S = scale q k^T over the listed keys, P = softmax S, o = P v. Reverse, g = d loss / d o: dP = g v^T,
/// dS = P * (dP - rowsum(P * dP)), dq = scale dS k, dk = scale dS^T q, dv = P^T g. Forward:
/// to = P tv + (P * (tS - rowsum(P * tS))) v. Which keys are listed is constant.

extension Operation {
    /// Of `Attention`. q, cotangent: [Lq, heads, headDim]; k, v: [Lk, heads, headDim] → as q, k, v
    ///
    /// Keys that count several times get the sum over their copies. P is computed again, in f32.
    public struct AttentionGradient: OperationFacts {
        public static let name = "attentionGradient"
        public var q, k, v, cotangent: Tensor
        public var scale: Float
        public var lastKeyCounts: [Int]

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && cotangent.shape == q.shape
                && lastKeyCounts.count <= min(2, k.shape[0])
        }
        public var results: [ResultType] { [q, k, v].map { ResultType($0.shape, $0.dtype) } }
        public var flops: Int { 10 * q.shape.count * k.shape[0] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            tensor(&cotangent, .activation)
        }
        public var operation: Operation { .training(.attentionGradient(self)) }
    }

    /// The tangent of `Attention`. Tangents: nil for a constant → as q
    public struct AttentionTangent: OperationFacts {
        public static let name = "attentionTangent"
        public var q, k, v: Tensor
        public var queryTangent, keyTangent, valueTangent: Tensor?
        public var scale: Float
        public var lastKeyCounts: [Int]

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && lastKeyCounts.count <= min(2, k.shape[0])
                && Tensor.areTangents([(queryTangent, q), (keyTangent, k), (valueTangent, v)])
        }
        public var results: [ResultType] { [ResultType(q.shape, q.dtype)] }
        public var flops: Int { 12 * q.shape.count * k.shape[0] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            Tensors.visit(&queryTangent, .activation, tensor)
            Tensors.visit(&keyTangent, .activation, tensor)
            Tensors.visit(&valueTangent, .activation, tensor)
        }
        public var operation: Operation { .training(.attentionTangent(self)) }
    }

    /// Of `SparseLinearAttention`: dq by the list of key blocks, dk and dv by the inverted list, the linear branch
    /// over all keys. q, k, v, cotangent: [L, heads, headDim] → as q, k, v; f32 [headDim, headDim]; f32 [headDim]
    public struct SparseAttentionGradient: OperationFacts {
        public static let name = "sparseAttentionGradient"
        public var q, k, v, cotangent: Tensor
        public var projection: LinearWeight
        public var spec: SparseAttention

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && q.shape == k.shape && cotangent.shape == q.shape
                && projection.shape == [q.shape[2], q.shape[2]]
        }
        public var results: [ResultType] {
            let dim = q.shape[2]
            return [q, k, v].map { ResultType($0.shape, $0.dtype) }
                + [ResultType([dim, dim], .f32), ResultType([dim], .f32)]
        }
        public var flops: Int {
            let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
            let blocks = spec.blocks(of: tokens)
            let visited = blocks.queries * blocks.selected * spec.queryBlock * spec.keyBlock
            return heads * (14 * visited * dim + 22 * tokens * dim * dim)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            tensor(&cotangent, .activation)
            projection.visit(tensor)
        }
        public var operation: Operation { .training(.sparseAttentionGradient(self)) }
    }

    /// The tangent of `SparseLinearAttention` with a constant projection. Tangents: nil for a constant → as q
    public struct SparseAttentionTangent: OperationFacts {
        public static let name = "sparseAttentionTangent"
        public var q, k, v: Tensor
        public var queryTangent, keyTangent, valueTangent: Tensor?
        public var projection: LinearWeight
        public var spec: SparseAttention

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && q.shape == k.shape
                && projection.shape == [q.shape[2], q.shape[2]]
                && Tensor.areTangents([(queryTangent, q), (keyTangent, k), (valueTangent, v)])
        }
        public var results: [ResultType] { [ResultType(q.shape, q.dtype)] }
        public var flops: Int {
            let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
            let blocks = spec.blocks(of: tokens)
            let visited = blocks.queries * blocks.selected * spec.queryBlock * spec.keyBlock
            return heads * (12 * visited * dim + 18 * tokens * dim * dim)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            Tensors.visit(&queryTangent, .activation, tensor)
            Tensors.visit(&keyTangent, .activation, tensor)
            Tensors.visit(&valueTangent, .activation, tensor)
            projection.visit(tensor)
        }
        public var operation: Operation { .training(.sparseAttentionTangent(self)) }
    }
}

extension Tensor {
    /// Whether each first is absent or can be the tangent of its second.
    fileprivate static func areTangents(_ pairs: [(Tensor?, Tensor)]) -> Bool {
        pairs.allSatisfy { tangent, value in
            tangent.map { $0.shape == value.shape && $0.dtype == value.dtype } ?? true
        }
    }
}

extension Operation.Attention: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let found = device.results(
            of: Operation.AttentionGradient(
                q: q, k: k, v: v, cotangent: cotangent, scale: scale, lastKeyCounts: lastKeyCounts))
        for (gradient, x) in zip(found, [q, k, v]) { gradients.add(gradient, to: x) }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let tangents = [q, k, v].map(tangent)
        guard tangents.contains(where: { $0 != nil }) else { return nil }
        return device.result(
            of: Operation.AttentionTangent(
                q: q, k: k, v: v, queryTangent: tangents[0], keyTangent: tangents[1],
                valueTangent: tangents[2], scale: scale, lastKeyCounts: lastKeyCounts))
    }
}

extension Operation.SparseLinearAttention: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        let found = device.results(
            of: Operation.SparseAttentionGradient(
                q: q, k: k, v: v, cotangent: cotangent, projection: projection, spec: spec))
        for (gradient, x) in zip(found, [q, k, v, projection.matrix]) {
            gradients.add(gradient, to: x)
        }
        if let bias { gradients.add(found[4], to: bias) }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let tangents = [q, k, v].map(tangent)
        guard tangents.contains(where: { $0 != nil }) else { return nil }
        return device.result(
            of: Operation.SparseAttentionTangent(
                q: q, k: k, v: v, queryTangent: tangents[0], keyTangent: tangents[1],
                valueTangent: tangents[2], projection: projection, spec: spec))
    }
}
