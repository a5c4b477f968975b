/// Dense attention: softmax over all keys, row by row.

import Glibc
import Tensors

extension Definitions {
    func attention(_ o: Operation.Attention) -> Tensor {
        let multiplicities = o.lastKeyCounts.map { logf(Float($0)) }
        let first = o.k.shape[0] - multiplicities.count
        return attention(o.q, o.k, o.v, scale: o.scale) { logits, _, _ in
            for (index, x) in multiplicities.enumerated() { logits[first + index] += x }
        }
    }

    func relativeAttention(_ o: Operation.RelativeAttention) -> Tensor {
        let (count, heads) = (o.q.shape[0], o.q.shape[1])
        let table = vector(o.table)
        // The bias of each distance key - query, from -(count - 1) to count - 1. [heads][2 count - 1]
        let bias = (0..<heads).map { head in
            (1 - count..<count).map { table[Self.bucket($0) * heads + head] }
        }
        return attention(o.q, o.k, o.v, scale: 1) { logits, head, query in
            bias[head].withUnsafeBufferPointer {
                Vector.add(logits, $0.baseAddress! + (count - 1 - query), count)
            }
        }
    }

    /// The bucket of a distance key - query: the distance itself below 8, then half octaves up to 15; 16 more for keys
    /// after the query.
    static func bucket(_ distance: Int) -> Int {
        let side = distance > 0 ? 16 : 0
        let magnitude = distance.magnitude
        if magnitude < 8 { return side + Int(magnitude) }
        // log(m/8) / log(16) * 8 = log2(m^2) - 6, so the floor can be computed exactly with integers.
        let octaves = UInt.bitWidth - 1 - (magnitude * magnitude).leadingZeroBitCount - 6
        return side + min(8 + octaves, 15)
    }

    /// Attention in which `adjust` changes each row of logits before the softmax.
    private func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float,
        _ adjust: (_ logits: UnsafeMutablePointer<Float>, _ head: Int, _ query: Int) -> Void
    ) -> Tensor {
        let (queries, keys) = (q.shape[0], k.shape[0])
        let (heads, dim, valueDim) = (q.shape[1], q.shape[2], v.shape[2])
        let result = memory.tensor([queries, heads, valueDim], q.dtype)
        let (qs, ks, vs, out) = (Rows(q), Rows(k), Rows(v), Rows(result))
        let block = 32
        let width = Panels.columns(keys)
        // For one head: K in panels, then V.
        let packed = memory.storage(byteCount: (width * dim + keys * valueDim) * 4)
        let panels = packed.hostPointer!.assumingMemoryBound(to: Float.self)
        let values = panels + width * dim
        for head in 0..<heads {
            threads.parallel(keys, grain: 64) { range in
                Panels.pack(
                    ks, first: range.lowerBound * heads + head, count: range.count, step: heads,
                    dim, into: panels + range.lowerBound * dim)
                for key in range {
                    vs.load(key * heads + head, valueDim, into: values + key * valueDim)
                }
            }
            threads.parallel(queries, grain: block) { range in
                scratch(block * (dim + width + valueDim)) { memory in
                    let a = memory
                    let logits = a + block * dim
                    let sums = logits + block * width
                    for (index, query) in range.enumerated() {
                        qs.load(query * heads + head, dim, into: a + index * dim)
                    }
                    Panels.multiply(
                        m: range.count, k: dim, columns: width, a: a, aStride: dim, panels: panels,
                        c: logits, cStride: width)
                    for (index, query) in range.enumerated() {
                        let row = logits + index * width
                        Vector.scale(row, keys, by: scale)
                        adjust(row, head, query)
                        Vector.softmax(row, keys)
                    }
                    MatrixProduct.run(
                        m: range.count, n: valueDim, k: keys, a: logits, aStride: width, b: values,
                        bStride: valueDim, c: sums, cStride: valueDim)
                    for (index, query) in range.enumerated() {
                        out.store(query * heads + head, valueDim, sums + index * valueDim)
                    }
                }
            }
        }
        return withExtendedLifetime(packed) { result }
    }
}
