/// SageSLA's vector kernels against their definition, to the last bit.

import Tensors
import Testing

@testable import CPU

@Suite struct SageTests {
    private let oracle = CPUBackend(threads: 2, engine: .definition)
    /// The processor's own kernels and those for AVX2, on numbers of threads that divide the work differently.
    private let subjects = [
        CPUBackend(threads: 1), CPUBackend(threads: 3), CPUBackend(threads: 2, engine: .avx2),
        CPUBackend(threads: 5, engine: .avx2),
    ]

    /// Compares the attention to the blocks in `indices` on all backends.
    private func expectSameBits(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention, _ indices: Tensor,
        location: SourceLocation = #_sourceLocation
    ) {
        guard case .sage(let architecture) = spec.arithmetic else { return }
        let definitions = oracle.definitions
        let operands = TileOperands(definitions, q, k, v, spec)
        let expected = definitions.sparseBranch(operands, indices, spec, as: .bf16)
        for backend in subjects {
            let found = backend.fast?.sageBranch(q, k, v, indices, spec, architecture)
            #expect(
                found.map { sameBits($0, expected) } == true,
                "\(backend.name), \(spec), \(q.shape)", sourceLocation: location)
        }
    }

    @Test(arguments: [
        (tokens: 1, heads: 1, dim: 64), (63, 2, 64), (97, 3, 32), (129, 1, 128), (333, 2, 128),
        (520, 2, 64), (391, 1, 256), (64, 1, 96),
    ])
    func `the attention of every card is that of its definition`(
        _ size: (tokens: Int, heads: Int, dim: Int)
    ) {
        var random = Random(UInt64(size.tokens))
        let shape: Shape = [size.tokens, size.heads, size.dim]
        for deviation: Float in [0.2, 1, 6] {
            let q = random.tensor(shape, .bf16, deviation: deviation)
            let k = random.tensor(shape, .bf16, mean: 1)
            let v = random.tensor(shape, .bf16, mean: 0.3, deviation: 3)
            for architecture in SageArchitecture.allCases {
                for topK in [0.1, 0.6, 1] {
                    let spec = SparseAttention(topK: topK, arithmetic: .sage(architecture))
                    expectSameBits(q, k, v, spec, oracle.blockMap(q, k, spec).indices)
                }
            }
        }
    }

    @Test(arguments: [(128, 64), (64, 128), (64, 64), (32, 192), (80, 256)])
    func `blocks may have other sizes, and lists other lengths`(_ query: Int, _ key: Int) {
        var random = Random(UInt64(query + key))
        let (tokens, heads, dim) = (1003, 2, 64)
        let shape: Shape = [tokens, heads, dim]
        let (q, k, v) = (
            random.tensor(shape, .bf16), random.tensor(shape, .bf16), random.tensor(shape, .bf16)
        )
        for architecture in SageArchitecture.allCases {
            let spec = SparseAttention(
                topK: 1, arithmetic: .sage(architecture), queryBlock: query, keyBlock: key)
            let (queries, keys, _) = spec.blocks(of: tokens)
            // The first block alone, the last one, which is not full, alone, some, and all of them.
            for list in [[0], [keys - 1], [0, 2, keys - 1], Array(0..<keys)] {
                let indices = (0..<heads * queries).flatMap { _ in list.map { Int32($0) } }
                expectSameBits(q, k, v, spec, Tensor(indices, [heads, queries, list.count]))
            }
        }
    }

    @Test(arguments: SageArchitecture.allCases)
    func `zeros, equal rows and one large number are no exceptions`(
        _ architecture: SageArchitecture
    ) {
        var random = Random(17)
        let shape: Shape = [150, 1, 64]
        let spec = SparseAttention(topK: 1, arithmetic: .sage(architecture))
        let zeros = Tensor.zeros(shape, .bf16)
        var values = random.tensor(shape).floats()
        for i in stride(from: 5, to: values.count, by: 64) { values[i] = 0 }
        values[9 * 64 + 7] = 3e4
        let x = Tensor(values, shape).converted(to: .bf16)
        let same = Tensor((0..<150).flatMap { _ in values[64..<128] }, shape).converted(to: .bf16)
        for (q, k, v) in [(zeros, zeros, zeros), (x, x, x), (same, same, x), (x, zeros, same)] {
            expectSameBits(q, k, v, spec, oracle.blockMap(q, k, spec).indices)
        }
    }

    @Test func `a head whose width the kernel does not take runs by its definition`() {
        var random = Random(18)
        let shape: Shape = [70, 2, 40]
        let (q, k, v) = (
            random.tensor(shape, .bf16), random.tensor(shape, .bf16), random.tensor(shape, .bf16)
        )
        let spec = SparseAttention(topK: 1, arithmetic: .sage(.sm90))
        let map = oracle.blockMap(q, k, spec)
        let projection = LinearWeight.dense(Tensor.zeros([40, 40], .bf16))
        let expected = oracle.sparseLinearAttention(
            q, k, v, projection: projection, bias: nil, spec)
        for backend in subjects {
            #expect(backend.fast?.sageBranch(q, k, v, map.indices, spec, .sm90) == nil)
            let found = backend.sparseLinearAttention(
                q, k, v, projection: projection, bias: nil, spec)
            #expect(sameBits(found, expected))
        }
    }
}
