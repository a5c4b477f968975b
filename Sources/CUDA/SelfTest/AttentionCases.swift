// Cases of dense attention: every kernel against rows computed on the host in f64.

internal import Glibc
internal import Tensors

extension SelfTest {
    static var attentionCases: [SelfTestCase] {
        denseCases + relativeCases + sparseCases
    }

    // MARK: Dense

    /// Which kernel a case is about.
    private enum DenseKernel: String {
        case simt, mma, hopper, wide
    }

    private static var denseCases: [SelfTestCase] {
        var cases: [SelfTestCase] = []
        func add(
            _ kernel: DenseKernel, _ dtype: DType, _ queries: Int, _ keys: Int, _ heads: Int,
            _ dim: Int, last: [Int] = [], timed: Bool = false
        ) {
            cases.append(
                denseCase(kernel, dtype, queries, keys, heads, dim, last: last, timed: timed))
        }
        for (queries, keys, heads) in [(1, 1, 1), (77, 130, 2), (300, 61, 3), (1000, 515, 2)] {
            let last = keys == 61 ? [452] : keys == 130 ? [71, 3] : keys == 515 ? [90, 300] : []
            for dim in [64, 96, 128, 384] {
                add(.simt, .f32, queries, keys, heads, dim, last: last)
                add(.simt, .bf16, queries, keys, heads, dim, last: last)
            }
            for dim in [64, 96, 128] { add(.mma, .bf16, queries, keys, heads, dim, last: last) }
            for dim in [64, 128] { add(.hopper, .bf16, queries, keys, heads, dim, last: last) }
            for dim in [192, 384, 512] { add(.wide, .bf16, queries, keys, heads, dim, last: last) }
        }
        for kernel in [DenseKernel.hopper, .mma] {
            add(kernel, .bf16, 32760, 32760, 12, 128, timed: true)
            add(kernel, .bf16, 32760, 512, 12, 128, timed: true)
            add(kernel, .bf16, 32760, 61, 12, 128, last: [68, 384], timed: true)
            add(kernel, .bf16, 32760, 32760, 12, 64, timed: true)
        }
        add(.hopper, .bf16, 75600, 512, 40, 128, timed: true)
        add(.wide, .bf16, 6240, 6240, 1, 384, timed: true)
        add(.wide, .bf16, 14400, 14400, 1, 384, timed: true)
        add(.simt, .f32, 1296, 1296, 2, 128, timed: true)
        add(.simt, .f32, 576, 576, 1, 96, timed: true)
        return cases
    }

    private static func denseCase(
        _ kernel: DenseKernel, _ dtype: DType, _ queries: Int, _ keys: Int, _ heads: Int,
        _ dim: Int, last: [Int], timed: Bool
    ) -> SelfTestCase {
        let name =
            "attention \(kernel) \(dtype) \(queries)x\(keys) \(heads) heads of \(dim)"
            + (last.isEmpty ? "" : " last x\(last)")
        return SelfTestCase(name) { context in
            if kernel == .hopper, context.properties.architecture != .hopper {
                return .notOnThisCard
            }
            let backend = try CUDABackend(context)
            let q = backend.attentionOperand([queries, heads, dim], dtype, seed: 1)
            let k = backend.attentionOperand([keys, heads, dim], dtype, seed: 2)
            let v = backend.attentionOperand([keys, heads, dim], dtype, seed: 3)
            let out = backend.tensor(q.tensor.shape, dtype)
            context.stream.fill(out.pointer, with: 0xff, byteCount: out.byteCount)
            let scale = 1 / Float(dim).squareRoot()
            let arguments = AttentionArguments(
                q.tensor, k.tensor, v.tensor, out: out, scale: scale, lastKeyCounts: last)
            func run() {
                switch kernel {
                case .simt: context.simtAttention(arguments, dtype, .all)
                case .mma: context.mmaAttention(arguments, .all)
                case .hopper: _ = context.hopperAttention(arguments, .all)
                case .wide: _ = context.wideAttention(arguments)
                }
            }
            run()
            try context.synchronize()
            let comparison = compare(backend.read(out), queries, heads, dim, keys) { row, head in
                attentionRow(q, k, v, row, head) { key, logit in
                    let counted = key - (keys - last.count)
                    return logit * Double(scale) + (counted < 0 ? 0 : log(Double(last[counted])))
                }
            }
            var result = SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: dtype == .f32 ? 2e-6 : 5e-3)
            if timed {
                result.microseconds = try context.medianMicroseconds(run)
                result.operations = 4 * Double(queries) * Double(keys) * Double(heads * dim)
            }
            return result
        }
    }

    // MARK: umT5

    private static var relativeCases: [SelfTestCase] {
        [(64, 4, 9), (64, 4, 200), (64, 64, 512)].flatMap { dim, heads, length in
            [DType.f32, .bf16].map { dtype in
                SelfTestCase("attention relative \(dtype) \(length) \(heads) heads of \(dim)") {
                    try relativeCase($0, dtype, length, heads, dim)
                }
            }
        }
    }

    private static func relativeCase(
        _ context: Context, _ dtype: DType, _ length: Int, _ heads: Int, _ dim: Int
    ) throws -> SelfTestResult {
        let backend = try CUDABackend(context)
        let q = backend.attentionOperand([length, heads, dim], dtype, seed: 1, scale: 0.1)
        let k = backend.attentionOperand([length, heads, dim], dtype, seed: 2)
        let v = backend.attentionOperand([length, heads, dim], dtype, seed: 3)
        let table = backend.attentionOperand([32, heads], .f32, seed: 4)
        let out = backend.relativeAttention(q.tensor, k.tensor, v.tensor, table: table.tensor)
        try context.synchronize()
        func bucket(_ relative: Int) -> Int {
            let n = abs(relative)
            let far = 8 + Int(log(Double(max(n, 8)) / 8) / log(16) * 8 + 1e-9)
            return (n < 8 ? n : min(far, 15)) + (relative > 0 ? 16 : 0)
        }
        let comparison = compare(backend.read(out), length, heads, dim, length) { row, head in
            attentionRow(q, k, v, row, head) { key, logit in
                logit + Double(table[bucket(key - row) * heads + head])
            }
        }
        var result = SelfTestResult(
            relativeError: comparison.relative, maximumError: comparison.maximum,
            tolerance: dtype == .f32 ? 2e-6 : 5e-3)
        if length == 512 {
            result.microseconds = try context.medianMicroseconds {
                _ = backend.relativeAttention(q.tensor, k.tensor, v.tensor, table: table.tensor)
            }
            result.operations = 4 * Double(length * length) * Double(heads * dim)
        }
        return result
    }

    // MARK: The definition, row by row

    /// One row of the result, in f64. `logit` makes the final logit of a key from the plain product.
    private static func attentionRow(
        _ q: AttentionOperand, _ k: AttentionOperand, _ v: AttentionOperand, _ row: Int,
        _ head: Int, _ logit: (Int, Double) -> Double
    ) -> [Double] {
        let (keys, heads, dim) = (k.tensor.shape[0], k.tensor.shape[1], k.tensor.shape[2])
        let query = (0..<dim).map { Double(q[(row * heads + head) * dim + $0]) }
        var logits = [Double](repeating: 0, count: keys)
        for key in 0..<keys {
            var dot = 0.0
            for d in 0..<dim { dot += query[d] * Double(k[(key * heads + head) * dim + d]) }
            logits[key] = logit(key, dot)
        }
        let maximum = logits.max()!
        var sum = 0.0
        var out = [Double](repeating: 0, count: dim)
        for key in 0..<keys {
            let p = exp(logits[key] - maximum)
            sum += p
            for d in 0..<dim { out[d] += p * Double(v[(key * heads + head) * dim + d]) }
        }
        return out.map { $0 / sum }
    }

    /// Compares all rows of small results, some of large ones.
    private static func compare(
        _ out: Tensor, _ queries: Int, _ heads: Int, _ dim: Int, _ keys: Int,
        row: (Int, Int) -> [Double]
    ) -> SelfTestComparison {
        let got = out.floats()
        let all = queries * heads
        let wanted = max(3, min(all, 40_000_000 / (keys * dim * 4)))
        var comparison = SelfTestComparison()
        for i in 0..<wanted {
            // The first, the last and evenly spread ones between.
            let index = wanted == 1 ? 0 : min(all - 1, i * (all - 1) / max(1, wanted - 1))
            let expected = row(index / heads, index % heads)
            for d in 0..<dim { comparison.add(got[index * dim + d], Float(expected[d])) }
        }
        return comparison
    }
}

/// A tensor whose every element the host knows.
struct AttentionOperand {
    let tensor: Tensor
    let values: SelfTestArray
    subscript(index: Int) -> Float { values[index] }
}

extension CUDABackend {
    /// Nearly normal numbers times `scale`.
    func attentionOperand(
        _ shape: Shape, _ dtype: DType, seed: UInt64, scale: Float = 1
    ) -> AttentionOperand {
        let pattern = SelfTest.pattern(seed) { $0.normal() * scale }
        let values =
            dtype == .f32
            ? context.repeating(pattern, count: shape.count, encode: { $0 }, decode: { $0 })
            : context.repeating(
                pattern, count: shape.count, encode: { BFloat16($0) }, decode: { $0.float })
        let storage = DeviceStorage(values.buffer, byteCount: shape.count * dtype.byteCount)
        return AttentionOperand(tensor: Tensor(shape, dtype, storage: storage), values: values)
    }
}
