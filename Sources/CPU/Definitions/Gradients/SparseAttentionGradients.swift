/// Derivatives of sparse-linear attention: the selected blocks, and the linear branch over all keys.
///
/// cq, ck = softmax(q), softmax(k) over a head's width, M = ck^T v, s = sum ck, den = 1e-5 + cq s, y = cq M / den,
/// o = sparse + y W^T + b.

import Ground
import Tensors

extension Definitions {
    /// The blocks that the map selects.
    private func pattern(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockPattern {
        let indices = blockMap(q, k, spec).indices
        let (heads, blocks, selected) = (indices.shape[0], indices.shape[1], indices.shape[2])
        let lists = indices.withElements(Int32.self) { chosen in
            (0..<heads).map { head in
                (0..<blocks).map { block in
                    let start = (head * blocks + block) * selected
                    return chosen[start..<start + selected].map { Int($0) }
                }
            }
        }
        return BlockPattern(
            queryBlock: spec.queryBlock, keyBlock: spec.keyBlock, queries: q.shape[0],
            keys: k.shape[0], lists: lists)
    }

    func sparseAttentionGradient(_ o: Operation.SparseAttentionGradient) -> [Tensor] {
        let (heads, dim) = (o.q.shape[1], o.q.shape[2])
        let scale = 1 / Float(dim).squareRoot()
        let sums = blockAttentionGradient(
            o.q, o.k, o.v, o.cotangent, scale: scale, pattern(o.q, o.k, o.spec))
        let weight = matrix(o.projection.matrix)
        var projection = [Double](repeating: 0, count: dim * dim)
        for head in 0..<heads {
            let found = LinearBranch(self, o.q, o.k, o.v, head: head).gradients(
                matrix(o.cotangent, head: head), weight)
            for (gradient, sum) in zip([found.q, found.k, found.v], sums) {
                add(gradient, to: sum, head: head)
            }
            for index in projection.indices {
                projection[index] += Double(found.projection.base[index])
            }
        }
        return zip(sums, [o.q, o.k, o.v]).map { converted($0, to: $1.dtype) } + [
            vector(of: projection[...]).reshaped([dim, dim]), columnSum(o.cotangent),
        ]
    }

    private func add(_ values: Matrix, to x: Tensor, head: Int) {
        let rows = Rows(x)
        let heads = x.shape[1]
        threads.parallel(values.rows, grain: grain(values.columns)) { range in
            for token in range {
                Vector.add(rows.floats(token * heads + head), values.row(token), values.columns)
            }
        }
    }

    func sparseAttentionTangent(_ o: Operation.SparseAttentionTangent) -> Tensor {
        let (heads, dim) = (o.q.shape[1], o.q.shape[2])
        let result = blockAttentionTangent(
            (o.q, o.queryTangent), (o.k, o.keyTangent), (o.v, o.valueTangent),
            scale: 1 / Float(dim).squareRoot(), pattern(o.q, o.k, o.spec))
        let weight = matrix(o.projection.matrix)
        for head in 0..<heads {
            func tangent(_ x: Tensor?) -> Matrix? { x.map { matrix($0, head: head) } }
            let moved = LinearBranch(self, o.q, o.k, o.v, head: head).tangent(
                tangent(o.queryTangent), tangent(o.keyTangent), tangent(o.valueTangent))
            add(product(moved, transposed(weight)), to: result, head: head)
        }
        return converted(result, to: o.q.dtype)
    }
}

/// The linear branch of one head, with what its derivatives need.
private struct LinearBranch {
    private let definitions: Definitions
    /// cq, ck, v: [tokens, dim]; state: M [dim, dim]; y: [tokens, dim]
    private let cq, ck, v, state, y: Matrix
    /// s: [dim]; den: [tokens]
    private let keySum, denominator: Matrix

    init(_ definitions: Definitions, _ q: Tensor, _ k: Tensor, _ v: Tensor, head: Int) {
        self.definitions = definitions
        let dim = q.shape[2]
        func features(_ x: Tensor) -> Matrix {
            let rows = definitions.matrix(x, head: head)
            return definitions.matrix(rows.rows, dim) { row, out in
                out.update(from: rows.row(row), count: dim)
                Vector.softmax(out, dim)
            }
        }
        (cq, ck) = (features(q), features(k))
        self.v = definitions.matrix(v, head: head)
        state = definitions.product(definitions.transposed(ck), self.v)
        let keySum = Self.columnSum(ck, definitions)
        self.keySum = keySum
        let (cq, sums) = (cq, definitions.product(cq, state))
        let denominator = definitions.matrix(1, cq.rows)
        y = definitions.matrix(cq.rows, dim) { row, out in
            let total = 1e-5 + Vector.dot(cq.row(row), keySum.base, dim)
            denominator.base[row] = total
            out.update(from: sums.row(row), count: dim)
            Vector.map(out, dim) { $0 / total }
        }
        self.denominator = denominator
    }

    private static func columnSum(_ x: Matrix, _ definitions: Definitions) -> Matrix {
        Matrix(tensor: definitions.columnSum(x.tensor).reshaped([1, x.columns]))
    }

    /// u <- c (u - rowsum(c u)): the Jacobian of a softmax, its own transpose.
    private static func applySoftmax(
        _ c: UnsafePointer<Float>, _ u: UnsafeMutablePointer<Float>, _ n: Int
    ) {
        let along = Vector.dot(c, u, n)
        Vector.map(u, c, n) { ($0 - along) * $1 }
    }

    /// cotangent: [tokens, dim], weight: W [dim, dim]
    func gradients(_ cotangent: Matrix, _ weight: Matrix) -> (
        q: Matrix, k: Matrix, v: Matrix, projection: Matrix
    ) {
        let (d, dim, tokens) = (definitions, cq.columns, cq.rows)
        let dy = d.product(cotangent, weight)
        // d sums = dy / den; d den = -rowsum(dy * y) / den
        let dDenominator = d.matrix(1, tokens)
        let dSums = d.matrix(tokens, dim) { row, out in
            let total = denominator.base[row]
            dDenominator.base[row] = -Vector.dot(dy.row(row), y.row(row), dim) / total
            out.update(from: dy.row(row), count: dim)
            Vector.map(out, dim) { $0 / total }
        }
        let dState = d.product(d.transposed(cq), dSums)
        let byState = d.product(dSums, d.transposed(state))
        let dq = d.matrix(tokens, dim) { row, out in
            let share = dDenominator.base[row]
            out.update(from: byState.row(row), count: dim)
            Vector.map(out, keySum.base, dim) { $0 + $1 * share }
            Self.applySoftmax(cq.row(row), out, dim)
        }
        let weighted = d.matrix(tokens, dim) { row, out in
            out.update(from: cq.row(row), count: dim)
            Vector.scale(out, dim, by: dDenominator.base[row])
        }
        let dKeySum = Self.columnSum(weighted, d)
        let byValue = d.product(v, d.transposed(dState))
        let dk = d.matrix(tokens, dim) { row, out in
            out.update(from: byValue.row(row), count: dim)
            Vector.add(out, dKeySum.base, dim)
            Self.applySoftmax(ck.row(row), out, dim)
        }
        return (dq, dk, d.product(ck, dState), d.product(d.transposed(cotangent), y))
    }

    /// The tangent of y. tq, tk, tv: [tokens, dim] or nil for constants
    func tangent(_ tq: Matrix?, _ tk: Matrix?, _ tv: Matrix?) -> Matrix {
        let (d, dim, tokens) = (definitions, cq.columns, cq.rows)
        func features(_ c: Matrix, _ t: Matrix?) -> Matrix {
            d.matrix(tokens, dim) { row, out in
                guard let t else { return out.update(repeating: 0, count: dim) }
                out.update(from: t.row(row), count: dim)
                Self.applySoftmax(c.row(row), out, dim)
            }
        }
        let (tcq, tck) = (features(cq, tq), features(ck, tk))
        let tState = d.product(d.transposed(tck), v)
        if let tv {
            let byValue = d.product(d.transposed(ck), tv)
            Vector.add(tState.base, byValue.base, dim * dim)
        }
        let tKeySum = Self.columnSum(tck, d)
        let (one, other) = (d.product(tcq, state), d.product(cq, tState))
        return d.matrix(tokens, dim) { row, out in
            let total = denominator.base[row]
            let tTotal =
                Vector.dot(tcq.row(row), keySum.base, dim)
                + Vector.dot(cq.row(row), tKeySum.base, dim)
            out.update(from: one.row(row), count: dim)
            Vector.add(out, other.row(row), dim)
            Vector.map(out, y.row(row), dim) { ($0 - $1 * tTotal) / total }
        }
    }
}
