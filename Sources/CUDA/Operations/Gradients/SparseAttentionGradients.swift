// Derivatives of sparse-linear attention: the listed blocks, and the linear branch over all keys.

internal import Ground
internal import Tensors

enum BranchGradients {
    static let unit = KernelUnit(
        "branch_gradient.cu",
        kernels: [64, 128].flatMap { kernels($0) } + ["branch_join"])

    /// On the tensor cores what comes from outside is bf16.
    private static func kernels(_ dim: Int) -> [String] {
        let steps = ["branch_jacobian", "branch_quotient", "branch_moved"]
        return steps.map { "\($0)<\(dim)>" } + [
            features(dim, "float"), features(dim, "bf16"),
            product(dim, isTensor: false, "float"), product(dim, isTensor: true, "float"),
            product(dim, isTensor: true, "bf16"),
            outer(dim, isTensor: false, "float", "float"),
            outer(dim, isTensor: true, "float", "float"),
            outer(dim, isTensor: true, "float", "bf16"),
            outer(dim, isTensor: true, "bf16", "float"),
        ]
    }

    static func features(_ dim: Int, _ type: String) -> String {
        "branch_features<\(dim), \(type)>"
    }
    static func product(_ dim: Int, isTensor: Bool, _ a: String) -> String {
        "head_product<\(dim), \(isTensor), \(a)>"
    }
    static func outer(_ dim: Int, isTensor: Bool, _ a: String, _ b: String) -> String {
        "outer_parts<\(dim), \(isTensor), \(a), \(b)>"
    }

    static let units = [unit]

    /// A warp for each row.
    static func rowShape(_ rows: Int) -> LaunchShape {
        LaunchShape(grid: Extents(ceilDivide(rows, 8)), block: 256)
    }

    /// Each block of threads keeps a matrix and takes tiles of 64 tokens in turn.
    static func productShape(tokens: Int, heads: Int, dim: Int, multiprocessors: Int)
        -> LaunchShape
    {
        let chunks = min(ceilDivide(tokens, 64), max(1, 2 * multiprocessors / heads))
        return LaunchShape(
            grid: Extents(chunks, heads), block: 256,
            sharedBytes: 4 * (dim * dim + 64 * (dim + 4)))
    }

    /// Tokens of a part of a sum over tokens, and how many parts there are, whatever the card.
    static func parts(tokens: Int) -> (tokens: Int, count: Int) {
        let wanted = min(ceilDivide(tokens, 32), SparseLinearAttention.chunks)
        let chunk = roundUp(ceilDivide(tokens, wanted), to: 32)
        return (chunk, ceilDivide(tokens, chunk))
    }
}

extension CUDABackend {
    func sparseAttentionGradient(_ o: Operation.SparseAttentionGradient) -> [Tensor] {
        let dim = o.q.shape[2]
        let sums = blockGradients(
            o.q, o.k, o.v, o.cotangent, scale: 1 / Float(dim).squareRoot(),
            lists: blockLists(o.q, o.k, o.spec))
        var operands = [o.q, o.k, o.v, o.cotangent]
        let isTensor = operands.allSatisfy { $0.dtype == .bf16 && $0.byteOffset % 8 == 0 }
        if !isTensor { operands = operands.map(full) }
        let (q, k, v, g) = (operands[0], operands[1], operands[2], operands[3])
        let weight = full(o.projection.matrix)
        let branch = BranchWork(self, q, isTensor: isTensor, "sparseAttentionGradient")
        let (cq, ck) = (branch.features(q), branch.features(k))
        let state = branch.outer(ck, v)
        let keySum = branch.sum(ck)
        let y = branch.product(cq, state)
        let dSums = branch.product(g, weight)
        let (slopes, weighted) = branch.quotient(cq, y, dSums, keySum)
        let dState = branch.outer(cq, dSums)
        branch.addJacobian(
            to: sums[0], cq, branch.product(dSums, state, turned: true), vector: keySum,
            factor: slopes)
        branch.addJacobian(
            to: sums[1], ck, branch.product(v, dState, turned: true),
            vector: branch.sum(weighted))
        branch.product(ck, dState, addedTo: sums[2])
        let projection = branch.outer(g, y, overHeads: true)
        let rows = q.shape[0] * q.shape[1]
        return zip(sums, [o.q, o.k, o.v]).map { converted($0, to: $1.dtype) } + [
            projection, columnSums(o.cotangent.reshaped([rows, dim])),
        ]
    }

    func sparseAttentionTangent(_ o: Operation.SparseAttentionTangent) -> Tensor {
        let dim = o.q.shape[2]
        let out = blockTangent(
            o.q, o.k, o.v, (o.queryTangent, o.keyTangent, o.valueTangent),
            scale: 1 / Float(dim).squareRoot(), lists: blockLists(o.q, o.k, o.spec))
        let (q, k, v) = (full(o.q), full(o.k), full(o.v))
        let (tq, tk, tv) = (
            o.queryTangent.map(full), o.keyTangent.map(full), o.valueTangent.map(full)
        )
        let branch = BranchWork(self, q, isTensor: false, "sparseAttentionTangent")
        let (cq, ck) = (branch.features(q), branch.features(k))
        let tcq = branch.jacobian(cq, tq)
        let tck = branch.jacobian(ck, tk)
        let (state, keySum) = (branch.outer(ck, v), branch.sum(ck))
        let movingState = branch.outer(tck, v)
        if let tv { branch.outer(ck, tv, addedTo: movingState) }
        let moved = branch.product(tcq, state)
        branch.product(cq, movingState, addedTo: moved)
        branch.move(
            moved, cq, tcq, branch.product(cq, state), keySum, movingSum: branch.sum(tck))
        branch.product(moved, full(o.projection.matrix), turned: true, addedTo: out)
        return converted(out, to: o.q.dtype)
    }
}

/// The steps of the linear branch's derivatives on one device. Activations: f32 [tokens, heads, dim]; what comes from
/// outside may be bf16 where products are made on the tensor cores.
private struct BranchWork {
    private let device: CUDABackend
    private let isTensor: Bool
    private let shape: Shape
    private var tokens: Int { shape[0] }
    private var heads: Int { shape[1] }
    private var dim: Int { shape[2] }
    private var rows: Int { shape[0] * shape[1] }

    init(_ device: CUDABackend, _ q: Tensor, isTensor: Bool, _ operation: String) {
        self.device = device
        self.isTensor = isTensor
        shape = q.shape
        ensure(
            shape[2] == 64 || shape[2] == 128,
            "\(operation): q \(shape); headDim must be 64 or 128")
    }

    private func kernel<each Argument: BitwiseCopyable>(
        _ name: String
    ) -> Kernel<repeat each Argument> {
        device.context.kernel(name, of: BranchGradients.unit)
    }

    /// Softmax over the width of each head.
    func features(_ x: Tensor) -> Tensor {
        let out = device.tensor(shape, .f32)
        let run: Kernel<DevicePointer, DevicePointer, Int64> = kernel(
            BranchGradients.features(dim, CUDABackend.typeName(x.dtype)))
        run(BranchGradients.rowShape(rows), out.pointer, x.pointer, Int64(rows))
        return out
    }

    /// sum += c * (u - <c, u>) with u + factor * vector for u. vector: f32 [heads * dim]; factor: [rows], nil for 1
    func addJacobian(
        to sum: Tensor, _ c: Tensor, _ u: Tensor, vector: Tensor? = nil,
        factor: DeviceStorage? = nil, adds: Bool = true
    ) {
        let run:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int64,
                Int32, Int32
            > = kernel("branch_jacobian<\(dim)>")
        run(
            BranchGradients.rowShape(rows), sum.pointer, c.pointer, u.pointer,
            vector?.pointer ?? .null, factor?.location ?? .null, Int64(rows), Int32(heads),
            adds ? 1 : 0)
    }

    /// The tangent of features; zeros for a constant.
    func jacobian(_ c: Tensor, _ tangent: Tensor?) -> Tensor {
        let out = device.tensor(shape, .f32)
        if let tangent {
            addJacobian(to: out, c, tangent, adds: false)
        } else {
            device.context.stream.fill(out.pointer, with: 0, byteCount: out.byteCount)
        }
        return out
    }

    /// The sum over the tokens. → f32 [heads * dim]
    func sum(_ x: Tensor) -> Tensor { device.columnSums(x.reshaped([tokens, heads * dim])) }

    /// a B of each head. matrix: [heads, dim, dim], or [dim, dim] for all heads
    @discardableResult
    func product(
        _ a: Tensor, _ matrix: Tensor, turned: Bool = false, addedTo sum: Tensor? = nil
    ) -> Tensor {
        let out = sum ?? device.tensor(shape, .f32)
        let run:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32
            > = kernel(
                BranchGradients.product(
                    dim, isTensor: isTensor, CUDABackend.typeName(a.dtype)))
        run(
            BranchGradients.productShape(
                tokens: tokens, heads: heads, dim: dim,
                multiprocessors: device.context.properties.multiprocessors),
            out.pointer, a.pointer, matrix.pointer, Int32(tokens), Int32(heads),
            matrix.shape.rank == 2 ? 1 : 0, turned ? 1 : 0, sum == nil ? 0 : 1)
        return out
    }

    /// a^T b of each head, summed over the tokens. → f32 [heads, dim, dim], or [dim, dim] over all heads
    @discardableResult
    func outer(
        _ a: Tensor, _ b: Tensor, overHeads: Bool = false, addedTo sum: Tensor? = nil
    ) -> Tensor {
        let size = dim * dim
        let part = BranchGradients.parts(tokens: tokens)
        let parts = device.storage(byteCount: heads * part.count * size * 4)
        let run: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32> =
            kernel(
                BranchGradients.outer(
                    dim, isTensor: isTensor, CUDABackend.typeName(a.dtype),
                    CUDABackend.typeName(b.dtype)))
        run(
            LaunchShape(
                grid: Extents(part.count, heads), block: 256,
                sharedBytes: 4 * 64 * (dim + 8)),
            parts.location, a.pointer, b.pointer, Int32(tokens), Int32(heads),
            Int32(part.tokens))
        let groups = overHeads ? 1 : heads
        let out = sum ?? device.tensor(overHeads ? [dim, dim] : [heads, dim, dim], .f32)
        let join: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32> = kernel("branch_join")
        join(
            LaunchShape(grid: Extents(ceilDivide(size, 256), groups), block: 256), out.pointer,
            parts.location, Int32(part.count * heads / groups), Int32(size),
            sum == nil ? 0 : 1)
        return out
    }

    /// Puts y in place of cq M and its cotangent's share in place of dy.
    /// → d loss / d den [rows], and cq times it, as cq
    func quotient(_ cq: Tensor, _ y: Tensor, _ dy: Tensor, _ keySum: Tensor) -> (
        slopes: DeviceStorage, weighted: Tensor
    ) {
        let slopes = device.storage(byteCount: rows * 4)
        let weighted = device.tensor(shape, .f32)
        let run:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, Int64, Int32
            > = kernel("branch_quotient<\(dim)>")
        run(
            BranchGradients.rowShape(rows), cq.pointer, y.pointer, dy.pointer, slopes.location,
            weighted.pointer, keySum.pointer, Int64(rows), Int32(heads))
        return (slopes, weighted)
    }

    /// Puts the tangent of y in place of tcq M + cq tM.
    func move(
        _ moved: Tensor, _ cq: Tensor, _ tcq: Tensor, _ product: Tensor, _ keySum: Tensor,
        movingSum: Tensor
    ) {
        let run:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, Int64, Int32
            > = kernel("branch_moved<\(dim)>")
        run(
            BranchGradients.rowShape(rows), moved.pointer, cq.pointer, tcq.pointer,
            product.pointer, keySum.pointer, movingSum.pointer, Int64(rows), Int32(heads))
    }
}
