// Cases of sparse-linear attention: each arithmetic against the one that rounds nothing.

internal import Tensors

extension SelfTest {
    static var sparseCases: [SelfTestCase] {
        let arithmetics: [SparseAttention.Arithmetic] =
            [.bf16] + SageArchitecture.allCases.map { .sage($0) }
        var cases: [SelfTestCase] = []
        for (length, heads, dim) in [(77, 1, 128), (1035, 2, 64), (2000, 3, 128)] {
            for arithmetic in arithmetics {
                cases.append(sparseCase(arithmetic, length, heads, dim, topK: 0.3))
            }
        }
        let hopper = SparseAttention.Arithmetic.sage(.sm90)
        // The models at 480p and 720p, with neighbours that want different keys and the same ones.
        for (length, heads) in [(32760, 12), (32760, 40), (75600, 40)] {
            for smooth in [false, true] {
                cases.append(
                    sparseCase(hopper, length, heads, 128, topK: 0.1, smooth: smooth, timed: true))
            }
        }
        for arithmetic in arithmetics where arithmetic != hopper {
            cases.append(sparseCase(arithmetic, 32760, 12, 128, topK: 0.1, timed: true))
        }
        return cases
    }

    private static func sparseCase(
        _ arithmetic: SparseAttention.Arithmetic, _ length: Int, _ heads: Int, _ dim: Int,
        topK: Double, smooth: Bool = false, timed: Bool = false
    ) -> SelfTestCase {
        let label: String
        switch arithmetic {
        case .exact: label = "exact"
        case .bf16: label = "sla"
        case .sage(let architecture): label = "sage \(architecture.rawValue)"
        }
        let name =
            "attention \(label) \(length) \(heads) heads of \(dim)" + (smooth ? " smooth" : "")
        return SelfTestCase(name) { context in
            let backend = try CUDABackend(context)
            guard backend.supports(arithmetic) else { return .notOnThisCard }
            let operand = smooth ? backend.smoothOperand : backend.plainOperand
            let (q, k) = (operand([length, heads, dim], 1), operand([length, heads, dim], 2))
            let v = backend.plainOperand([length, heads, dim], 3)
            let weight = backend.attentionOperand([dim, dim], .f32, seed: 4, scale: 0.1).tensor
            let bias = backend.attentionOperand([dim], .f32, seed: 5).tensor
            let spec = SparseAttention(topK: topK, arithmetic: arithmetic)
            var exact = spec
            exact.arithmetic = .exact
            func run(_ spec: SparseAttention) -> Tensor {
                backend.sparseLinearAttention(
                    q, k, v, projection: .dense(weight), bias: bias, spec)
            }
            let expected = run(exact)
            let got = run(spec)
            try context.synchronize()
            let comparison = compare(backend, got, expected)
            let again = run(spec)
            var result = SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: arithmetic == .bf16 ? 1e-2 : 4e-2)
            if compare(backend, again, got).relative != 0 {
                result.relativeError = .infinity
                result.note = "two runs differ"
            }
            if timed {
                result.microseconds = try context.medianMicroseconds { _ = run(spec) }
                let blocks = (length + spec.keyBlock - 1) / spec.keyBlock
                let visited = Double(spec.selected(of: blocks) * spec.keyBlock)
                result.operations = 4 * Double(length) * visited * Double(heads * dim)
                result.note += try parts(backend, q, k, v, weight, bias, spec)
            }
            return result
        }
    }

    /// Where the time goes.
    private static func parts(
        _ backend: CUDABackend, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ weight: Tensor,
        _ bias: Tensor, _ spec: SparseAttention
    ) throws -> String {
        guard case .sage(let architecture) = spec.arithmetic else { return "" }
        let context = backend.context
        let weight = backend.converted(weight, to: .bf16)
        let branch = backend.linearBranch(k, v)
        let linear = backend.projected(q, branch, weight, bias)
        let operands = backend.sageLayout(q, k, v, branch, spec, architecture)
        let map = backend.selectBlocks(operands.qPooled, operands.kPooled, spec)
        func time(_ body: () -> Void) throws -> String {
            short(try context.medianMicroseconds(body))
        }
        return try " sums " + time { _ = backend.linearBranch(k, v) }
            + ", project " + time { _ = backend.projected(q, branch, weight, bias) }
            + ", quantise "
            + time { _ = backend.sageLayout(q, k, v, branch, spec, architecture) }
            + ", map "
            + time { _ = backend.selectBlocks(operands.qPooled, operands.kPooled, spec) }
            + ", kernel "
            + time { _ = backend.sageBlocks(operands, map.indices, linear, architecture) } + " us"
    }

    private static func compare(_ backend: CUDABackend, _ got: Tensor, _ expected: Tensor)
        -> SelfTestComparison
    {
        let (got, expected) = (backend.read(got), backend.read(expected))
        var comparison = SelfTestComparison()
        got.withElements(BFloat16.self) { got in
            expected.withElements(BFloat16.self) { expected in
                // A prime step visits every head, block and column of large tensors.
                for i in stride(from: 0, to: got.count, by: got.count > 10_000_000 ? 101 : 1) {
                    comparison.add(got[i].float, expected[i].float)
                }
            }
        }
        return comparison
    }
}

extension CUDABackend {
    fileprivate func plainOperand(_ shape: Shape, _ seed: UInt64) -> Tensor {
        attentionOperand(shape, .bf16, seed: seed).tensor
    }

    /// Rows whose mean changes every 256 rows: neighbouring query blocks want the same key blocks.
    fileprivate func smoothOperand(_ shape: Shape, _ seed: UInt64) -> Tensor {
        let noise = SelfTest.pattern(seed) { $0.normal() }
        let means = SelfTest.pattern(seed + 100) { $0.normal() }
        let columns = shape.tail.count
        let host = Tensor.host(shape, .bf16)
        host.withMutable(BFloat16.self) { out in
            for row in 0..<shape[0] {
                var i = row * columns % noise.count
                var j = row / 256 * columns % means.count
                for column in 0..<columns {
                    out[row * columns + column] = BFloat16(noise[i] + means[j])
                    i = i + 1 == noise.count ? 0 : i + 1
                    j = j + 1 == means.count ? 0 : j + 1
                }
            }
        }
        return place(host, as: .bf16)
    }
}
