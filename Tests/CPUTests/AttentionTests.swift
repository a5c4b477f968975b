/// Dense and sparse attention on awkward sizes.

import CPU
import Glibc
import Tensors
import Testing

@Suite struct AttentionTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    /// Softmax attention in f64; `bias` is added to the scaled logits.
    private func textbook(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Double,
        bias: (_ head: Int, _ query: Int, _ key: Int) -> Double = { _, _, _ in 0 }
    ) -> [Float] {
        let (qs, ks, vs) = (q.floats(), k.floats(), v.floats())
        let (queries, keys, heads, dim) = (q.shape[0], k.shape[0], q.shape[1], q.shape[2])
        var out = [Float](repeating: 0, count: qs.count)
        for head in 0..<heads {
            for query in 0..<queries {
                let row = (query * heads + head) * dim
                var logits = (0..<keys).map { key -> Double in
                    let column = (key * heads + head) * dim
                    var sum = 0.0
                    for i in 0..<dim { sum += Double(qs[row + i]) * Double(ks[column + i]) }
                    return sum * scale + bias(head, query, key)
                }
                let top = logits.max()!
                logits = logits.map { exp($0 - top) }
                let total = logits.reduce(0, +)
                for i in 0..<dim {
                    var sum = 0.0
                    for key in 0..<keys {
                        sum += logits[key] * Double(vs[(key * heads + head) * dim + i])
                    }
                    out[row + i] = Float(sum / total)
                }
            }
        }
        return out
    }

    @Test(arguments: [(1, 1, 1, 8), (5, 3, 2, 20), (70, 130, 3, 64), (33, 512, 1, 128)])
    func denseAttentionAgreesWithTheTextbook(queries: Int, keys: Int, heads: Int, dim: Int) {
        var random = Random(UInt64(queries * keys))
        let q = random.tensor([queries, heads, dim], deviation: 2)
        let k = random.tensor([keys, heads, dim])
        let v = random.tensor([keys, heads, dim])
        let scale = 1 / Float(dim).squareRoot()
        let y = device.attention(q, k, v, scale: scale)
        #expect(y.shape == q.shape && y.dtype == .f32)
        let expected = textbook(q, k, v, scale: Double(scale))
        #expect(relativeDifference(y.floats(), expected) < 2e-6)
        let half = device.attention(
            q.converted(to: .bf16), k.converted(to: .bf16), v.converted(to: .bf16), scale: scale)
        #expect(half.dtype == .bf16)
        #expect(relativeDifference(half.floats(), expected) < 1e-2)
    }

    @Test func repeatedLastKeysCountAsOftenAsTheySay() {
        var random = Random(9)
        let q = random.tensor([11, 2, 32])
        let (k, v) = (random.tensor([6, 2, 32]), random.tensor([6, 2, 32]))
        for counts in [[19], [7, 19]] {
            func padded(_ x: Tensor) -> Tensor {
                let first = 6 - counts.count
                return device.concatenate(
                    [x.slice(0..<first)]
                        + counts.enumerated().flatMap { index, count in
                            [Tensor](
                                repeating: x.slice(first + index..<first + index + 1), count: count)
                        })
            }
            let y = device.attention(q, k, v, scale: 0.2, lastKeyCounts: counts)
            let expected = device.attention(q, padded(k), padded(v), scale: 0.2)
            #expect(relativeDifference(y, expected) < 1e-6)
        }
    }

    @Test func distancesFallIntoTheirBuckets() {
        var random = Random(10)
        let (count, heads, dim) = (300, 2, 16)
        let q = random.tensor([count, heads, dim], deviation: 0.3)
        let k = random.tensor([count, heads, dim])
        let v = random.tensor([count, heads, dim])
        let table = random.tensor([32, heads])
        let values = table.floats()
        // The smallest distances of the buckets 8...15: 8 * 16^(i/8) rounded up.
        let bounds = [8, 12, 16, 23, 32, 46, 64, 91]
        let y = device.relativeAttention(q, k, v, table: table)
        let expected = textbook(q, k, v, scale: 1) { head, query, key in
            let distance = key - query
            let magnitude = abs(distance)
            let near = magnitude < 8 ? magnitude : 7 + bounds.count { $0 <= magnitude }
            return Double(values[(near + (distance > 0 ? 16 : 0)) * heads + head])
        }
        #expect(relativeDifference(y.floats(), expected) < 2e-6)
    }

    /// Softmax attention plus the projected linear branch, in f64, over all keys.
    private func sparseTextbook(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ projection: Tensor)
        -> [Float]
    {
        let (count, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        var out = textbook(q, k, v, scale: 1 / Double(dim).squareRoot())
        let w = projection.floats().map(Double.init)
        func features(_ x: Tensor) -> [Double] {
            let values = x.floats().map(Double.init)
            return stride(from: 0, to: values.count, by: dim).flatMap { start -> [Double] in
                let row = values[start..<start + dim].map { exp($0) }
                let total = row.reduce(0, +)
                return row.map { $0 / total }
            }
        }
        let (cq, ck, vs) = (features(q), features(k), v.floats().map(Double.init))
        for head in 0..<heads {
            for query in 0..<count {
                let row = (query * heads + head) * dim
                var weights = (0..<count).map { key in
                    (0..<dim).reduce(0.0) {
                        $0 + cq[row + $1] * ck[(key * heads + head) * dim + $1]
                    }
                }
                let total = weights.reduce(1e-5, +)
                weights = weights.map { $0 / total }
                let o = (0..<dim).map { i in
                    (0..<count).reduce(0.0) { $0 + weights[$1] * vs[($1 * heads + head) * dim + i] }
                }
                for i in 0..<dim {
                    out[row + i] += Float((0..<dim).reduce(0.0) { $0 + w[i * dim + $1] * o[$1] })
                }
            }
        }
        return out
    }

    @Test(arguments: [(1, 64), (63, 64), (130, 128), (200, 40)])
    func everyBlockSelectedIsDenseAttention(tokens: Int, dim: Int) {
        var random = Random(UInt64(tokens))
        let q = random.tensor([tokens, 2, dim])
        let k = random.tensor([tokens, 2, dim], mean: 0.5)
        let v = random.tensor([tokens, 2, dim])
        let projection = random.tensor([dim, dim], deviation: 0.2)
        let expected = sparseTextbook(q, k, v, projection)
        func run(_ arithmetic: SparseAttention.Arithmetic) -> [Float] {
            device.sparseLinearAttention(
                q, k, v, projection: .dense(projection), bias: nil,
                SparseAttention(topK: 1, arithmetic: arithmetic)
            ).floats()
        }
        #expect(relativeDifference(run(.exact), expected) < 2e-6)
        #expect(relativeDifference(run(.bf16), expected) < 1e-2)
        for architecture in SageArchitecture.allCases {
            #expect(relativeDifference(run(.sage(architecture)), expected) < 4e-2)
        }
    }

    @Test func onlyTheSelectedBlocksAreAttendedTo() {
        var random = Random(11)
        let (tokens, dim) = (300, 64)
        let spec = SparseAttention(topK: 0.4, arithmetic: .exact)
        let q = random.tensor([tokens, 1, dim], deviation: 3)
        let k = random.tensor([tokens, 1, dim])
        let v = random.tensor([tokens, 1, dim])
        let zero = LinearWeight.dense(Tensor([Float](repeating: 0, count: dim * dim), [dim, dim]))
        let map = device.blockMap(q, k, spec)
        let selected = map.indices.floats().map { Int($0) }
        #expect(map.scores.shape == [1, 3, 5] && map.indices.shape == [1, 3, 2])
        let expected = textbook(q, k, v, scale: 0.125) { _, query, key in
            let block = query / 128
            return selected[block * 2..<block * 2 + 2].contains(key / 64) ? 0 : -1e9
        }
        let y = device.sparseLinearAttention(q, k, v, projection: zero, bias: nil, spec)
        #expect(relativeDifference(y.floats(), expected) < 2e-6)
    }

    @Test func equalScoresGoToTheLowerBlock() {
        let q = Tensor([Float](repeating: 1, count: 128 * 64), [128, 1, 64])
        let k = Tensor([Float](repeating: 1, count: 320 * 64), [320, 1, 64]).slice(0..<128)
        let map = device.blockMap(
            q, k, SparseAttention(topK: 0.5, arithmetic: .bf16, queryBlock: 64, keyBlock: 16))
        #expect(map.indices.floats() == [0, 1, 2, 3, 0, 1, 2, 3])
    }

    @Test(arguments: SageArchitecture.allCases)
    func aChannelOfZerosStaysZero(_ architecture: SageArchitecture) {
        var random = Random(12)
        let q = random.tensor([70, 1, 64], .bf16)
        let k = random.tensor([70, 1, 64], .bf16)
        var values = random.tensor([70, 1, 64]).floats()
        for i in stride(from: 5, to: values.count, by: 64) { values[i] = 0 }
        let v = Tensor(values, [70, 1, 64]).converted(to: .bf16)
        let zero = LinearWeight.dense(Tensor([Float](repeating: 0, count: 4096), [64, 64]))
        let y = device.sparseLinearAttention(
            q, k, v, projection: zero, bias: nil,
            SparseAttention(topK: 1, arithmetic: .sage(architecture))
        ).floats()
        #expect(y.allSatisfy { $0.isFinite })
        #expect(stride(from: 5, to: y.count, by: 64).allSatisfy { y[$0] == 0 })
    }
}
