/// Derivatives of attention to listed blocks of keys; dense attention lists them all.

import Glibc
import Ground
import Tensors

/// Which blocks of keys each block of queries attends to.
struct BlockPattern {
    let queryBlock, keyBlock, queries, keys: Int
    /// Blocks of keys, ascending. [heads][query blocks]
    let lists: [[[Int]]]
    /// The inverted list: blocks of queries that attend to a block of keys, ascending. [heads][key blocks]
    let inverted: [[[Int]]]
    /// Added to the logits of the last keys, which count several times.
    var lastLogits: [Float] = []

    init(queryBlock: Int, keyBlock: Int, queries: Int, keys: Int, lists: [[[Int]]]) {
        self.queryBlock = queryBlock
        self.keyBlock = keyBlock
        self.queries = queries
        self.keys = keys
        self.lists = lists
        let keyBlocks = ceilDivide(keys, keyBlock)
        inverted = lists.map { blocks in
            var queries = [[Int]](repeating: [], count: keyBlocks)
            for (query, list) in blocks.enumerated() {
                for key in list { queries[key].append(query) }
            }
            return queries
        }
    }

    /// Every block of keys.
    static func dense(queries: Int, keys: Int, heads: Int, lastKeyCounts: [Int]) -> Self {
        let block = 64
        let all = Array(0..<ceilDivide(keys, block))
        let lists = [[Int]](repeating: all, count: ceilDivide(queries, block))
        var pattern = Self(
            queryBlock: block, keyBlock: block, queries: queries, keys: keys,
            lists: [[[Int]]](repeating: lists, count: heads))
        pattern.lastLogits = lastKeyCounts.map { logf(Float($0)) }
        return pattern
    }

    func queryRows(_ block: Int) -> Range<Int> {
        block * queryBlock..<min(queries, (block + 1) * queryBlock)
    }

    func keyRows(_ block: Int) -> Range<Int> {
        block * keyBlock..<min(keys, (block + 1) * keyBlock)
    }

    /// Columns that a block of keys takes in a row of logits.
    var width: Int { Panels.columns(keyBlock) }

    /// Turns products q k of one block of keys into logits; columns past its keys are lost.
    func finish(_ logits: UnsafeMutablePointer<Float>, keyBlock block: Int, scale: Float) {
        let rows = keyRows(block)
        Vector.scale(logits, rows.count, by: scale)
        for (index, extra) in lastLogits.enumerated() {
            let key = keys - lastLogits.count + index
            if rows.contains(key) { logits[key - rows.lowerBound] += extra }
        }
        for column in rows.count..<max(width, rows.count) { logits[column] = -.infinity }
    }
}

extension Definitions {
    func attentionGradient(_ o: Operation.AttentionGradient) -> [Tensor] {
        let pattern = BlockPattern.dense(
            queries: o.q.shape[0], keys: o.k.shape[0], heads: o.q.shape[1],
            lastKeyCounts: o.lastKeyCounts)
        return blockAttentionGradient(o.q, o.k, o.v, o.cotangent, scale: o.scale, pattern)
            .enumerated().map { converted($1, to: [o.q, o.k, o.v][$0].dtype) }
    }

    func attentionTangent(_ o: Operation.AttentionTangent) -> Tensor {
        let pattern = BlockPattern.dense(
            queries: o.q.shape[0], keys: o.k.shape[0], heads: o.q.shape[1],
            lastKeyCounts: o.lastKeyCounts)
        return converted(
            blockAttentionTangent(
                (o.q, o.queryTangent), (o.k, o.keyTangent), (o.v, o.valueTangent), scale: o.scale,
                pattern), to: o.q.dtype)
    }

    /// Each key block's rows as panels. x: [keys, dim] → [blocks][dim][width]
    private func panels(_ x: Matrix, _ pattern: BlockPattern) -> Matrix {
        let (width, dim) = (pattern.width, x.columns)
        let blocks = ceilDivide(pattern.keys, pattern.keyBlock)
        let result = matrix(blocks, width * dim)
        let rows = Rows(x.tensor)
        threads.parallel(blocks) { range in
            for block in range {
                let keys = pattern.keyRows(block)
                Panels.pack(
                    rows, first: keys.lowerBound, count: keys.count, dim, into: result.row(block))
                // A block whose last panel is not needed has one all the same.
                let packed = Panels.columns(keys.count) * dim
                (result.row(block) + packed).update(repeating: 0, count: width * dim - packed)
            }
        }
        return result
    }

    /// Rows of q times the keys of the listed blocks. → [rows.count][list.count * width]
    private func listedProducts(
        _ q: Matrix, _ rows: Range<Int>, _ panels: Matrix, _ list: [Int], _ width: Int,
        into out: UnsafeMutablePointer<Float>, accumulate: Bool = false
    ) {
        for (index, block) in list.enumerated() {
            Panels.multiply(
                m: rows.count, k: q.columns, columns: width, a: q.row(rows.lowerBound),
                aStride: q.columns, panels: panels.row(block), c: out + index * width,
                cStride: list.count * width, accumulate: accumulate)
        }
    }

    /// weights times the values of the listed blocks. weights: [m][list.count * width] → [m, dim]
    private func listedSum(
        _ weights: UnsafePointer<Float>, m: Int, _ values: Matrix, _ list: [Int],
        _ pattern: BlockPattern, into out: UnsafeMutablePointer<Float>, accumulate: Bool
    ) {
        for (index, block) in list.enumerated() {
            let keys = pattern.keyRows(block)
            MatrixProduct.run(
                m: m, n: values.columns, k: keys.count, a: weights + index * pattern.width,
                aStride: list.count * pattern.width, b: values.row(keys.lowerBound),
                bStride: values.columns, c: out, cStride: values.columns,
                accumulate: accumulate || index > 0)
        }
    }

    /// Logits to probabilities in place. → the logarithm of the denominator
    private func softmax(
        _ logits: UnsafeMutablePointer<Float>, _ list: [Int], _ pattern: BlockPattern, scale: Float
    ) -> Float {
        for (index, block) in list.enumerated() {
            pattern.finish(logits + index * pattern.width, keyBlock: block, scale: scale)
        }
        let count = list.count * pattern.width
        let top = Vector.maximum(logits, count)
        Vector.map(logits, count) { exp($0 - top) }
        let sum = Vector.sum(logits, count)
        Vector.scale(logits, count, by: 1 / sum)
        return top + logf(sum)
    }

    /// d loss / d q by the lists, then d k and d v by the inverted lists: no sum depends on the order of threads.
    /// q, cotangent: [Lq, heads, dim]; k, v: [Lk, heads, dim] → f32, of q, k, v
    func blockAttentionGradient(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ cotangent: Tensor, scale: Float,
        _ pattern: BlockPattern
    ) -> [Tensor] {
        let (heads, dim, width) = (q.shape[1], q.shape[2], pattern.width)
        let results = [q, k, v].map { memory.tensor($0.shape, .f32) }
        for head in 0..<heads {
            let (qs, ks, vs) = (matrix(q, head: head), matrix(k, head: head), matrix(v, head: head))
            let gs = matrix(cotangent, head: head)
            let (keyPanels, valuePanels) = (panels(ks, pattern), panels(vs, pattern))
            let (dq, dk, dv) = (
                matrix(qs.rows, dim), matrix(ks.rows, dim), matrix(vs.rows, dim)
            )
            // Of each query: log of the denominator, rowsum(P * dP).
            let (logs, along) = (matrix(1, qs.rows), matrix(1, qs.rows))

            threads.parallel(pattern.lists[head].count) { range in
                for block in range {
                    let list = pattern.lists[head][block]
                    let rows = pattern.queryRows(block)
                    let count = list.count * width
                    scratch(2 * rows.count * count) { p in
                        let dp = p + rows.count * count
                        listedProducts(qs, rows, keyPanels, list, width, into: p)
                        listedProducts(gs, rows, valuePanels, list, width, into: dp)
                        for (index, row) in rows.enumerated() {
                            let (p, dp) = (p + index * count, dp + index * count)
                            logs.base[row] = softmax(p, list, pattern, scale: scale)
                            let sum = Vector.dot(p, dp, count)
                            along.base[row] = sum
                            Vector.map(p, dp, count) { $0 * ($1 - sum) * scale }
                        }
                        listedSum(
                            p, m: rows.count, ks, list, pattern, into: dq.row(rows.lowerBound),
                            accumulate: false)
                    }
                }
            }

            threads.parallel(pattern.inverted[head].count) { range in
                for block in range {
                    let keys = pattern.keyRows(block)
                    let (dk, dv) = (dk.row(keys.lowerBound), dv.row(keys.lowerBound))
                    dk.update(repeating: 0, count: keys.count * dim)
                    dv.update(repeating: 0, count: keys.count * dim)
                    let most = pattern.queryBlock
                    scratch(2 * most * (width + keys.count)) { p in
                        let dp = p + most * width
                        let turnedP = dp + most * width
                        let turnedS = turnedP + most * keys.count
                        for queryBlock in pattern.inverted[head][block] {
                            let rows = pattern.queryRows(queryBlock)
                            let m = rows.count
                            listedProducts(qs, rows, keyPanels, [block], width, into: p)
                            listedProducts(gs, rows, valuePanels, [block], width, into: dp)
                            for (index, row) in rows.enumerated() {
                                let (p, dp) = (p + index * width, dp + index * width)
                                pattern.finish(p, keyBlock: block, scale: scale)
                                let (log, sum) = (logs.base[row], along.base[row])
                                Vector.map(p, width) { exp($0 - log) }
                                for key in 0..<keys.count {
                                    turnedP[key * m + index] = p[key]
                                    turnedS[key * m + index] = p[key] * (dp[key] - sum) * scale
                                }
                            }
                            MatrixProduct.run(
                                m: keys.count, n: dim, k: m, a: turnedP, aStride: m,
                                b: gs.row(rows.lowerBound), bStride: dim, c: dv, cStride: dim,
                                accumulate: true)
                            MatrixProduct.run(
                                m: keys.count, n: dim, k: m, a: turnedS, aStride: m,
                                b: qs.row(rows.lowerBound), bStride: dim, c: dk, cStride: dim,
                                accumulate: true)
                        }
                    }
                }
            }
            for (gradient, result) in zip([dq, dk, dv], results) {
                store(gradient, in: result, head: head)
            }
        }
        return results
    }

    /// Each argument: value and tangent. → f32, as q
    func blockAttentionTangent(
        _ q: (Tensor, Tensor?), _ k: (Tensor, Tensor?), _ v: (Tensor, Tensor?), scale: Float,
        _ pattern: BlockPattern
    ) -> Tensor {
        let (heads, dim, width) = (q.0.shape[1], q.0.shape[2], pattern.width)
        let result = memory.tensor(q.0.shape, .f32)
        for head in 0..<heads {
            let (qs, ks, vs) = (
                matrix(q.0, head: head), matrix(k.0, head: head), matrix(v.0, head: head)
            )
            let tq = q.1.map { matrix($0, head: head) }
            let tv = v.1.map { matrix($0, head: head) }
            let keyPanels = panels(ks, pattern)
            let tangentPanels = k.1.map { panels(matrix($0, head: head), pattern) }
            let to = matrix(qs.rows, dim)
            threads.parallel(pattern.lists[head].count) { range in
                for block in range {
                    let list = pattern.lists[head][block]
                    let rows = pattern.queryRows(block)
                    let count = list.count * width
                    scratch(2 * rows.count * count) { p in
                        let ts = p + rows.count * count
                        let out = to.row(rows.lowerBound)
                        listedProducts(qs, rows, keyPanels, list, width, into: p)
                        ts.update(repeating: 0, count: rows.count * count)
                        if let tq {
                            listedProducts(
                                tq, rows, keyPanels, list, width, into: ts, accumulate: true)
                        }
                        if let tangentPanels {
                            listedProducts(
                                qs, rows, tangentPanels, list, width, into: ts, accumulate: true)
                        }
                        for index in 0..<rows.count {
                            let (p, ts) = (p + index * count, ts + index * count)
                            _ = softmax(p, list, pattern, scale: scale)
                            let sum = Vector.dot(p, ts, count)
                            Vector.map(ts, p, count) { ($0 - sum) * $1 * scale }
                        }
                        listedSum(
                            ts, m: rows.count, vs, list, pattern, into: out, accumulate: false)
                        if let tv {
                            listedSum(
                                p, m: rows.count, tv, list, pattern, into: out, accumulate: true)
                        }
                    }
                }
            }
            store(to, in: result, head: head)
        }
        return result
    }
}
