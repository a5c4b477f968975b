/// The fast operations against their definitions, on shapes that fill no block.

import Tensors
import Testing

@testable import CPU

@Suite struct FastOperationsTests {
    private let oracle = CPUBackend(threads: 2, engine: .definition)
    private let subject = CPUBackend(threads: 2)
    /// Once more the same where AVX2 is all there is.
    private let narrow = CPUBackend(threads: 2, engine: .avx2)

    // MARK: Linear layers

    @Test(arguments: [
        (rows: 1, inputs: 256, outputs: 1536), (7, 34, 5), (97, 258, 100), (130, 1100, 17),
        (300, 2560, 72), (1, 2, 1),
    ])
    func `dense linear layers agree with their definition`(
        _ size: (rows: Int, inputs: Int, outputs: Int)
    ) {
        for dtype in [DType.f32, .bf16] {
            var random = Uniform(seed: 1)
            let x = random.tensor([size.rows, size.inputs], dtype)
            let weight = LinearWeight.dense(random.tensor([size.outputs, size.inputs], dtype))
            let bias = random.tensor([size.outputs], .f32)
            let residual = random.tensor([size.rows, size.outputs], dtype)
            let gate = random.tensor([size.outputs], .f32)
            for activation in [Activation.none, .geluTanh, .silu] {
                expectClose(dtype) {
                    $0.linear(x, weight, bias: bias, activation: activation)
                }
            }
            expectClose(dtype) { $0.linear(x, weight, bias: nil) }
            expectClose(dtype) { $0.linearAdd(x, weight, bias: bias, to: residual, gate: gate) }
            expectClose(dtype) { $0.linearAdd(x, weight, bias: nil, to: residual, gate: nil) }
        }
    }

    @Test func `linear layers take operands of two types`() {
        var random = Uniform(seed: 2)
        let x = random.tensor([33, 96], .bf16)
        let wide = LinearWeight.dense(random.tensor([40, 96], .f32))
        let narrow = LinearWeight.dense(random.tensor([40, 96], .bf16))
        expectClose(.bf16) { $0.linear(x, wide, bias: nil) }
        expectClose(.f32) {
            $0.linear(
                x.converted(to: .f32), narrow, bias: nil, activation: .none, format: .plain,
                dtype: nil)
        }
        expectClose(.f32) {
            $0.linear(x, narrow, bias: nil, activation: .none, format: .plain, dtype: .f32)
        }
    }

    @Test(arguments: [
        (rows: 1, inputs: 128, outputs: 128), (130, 256, 200), (257, 384, 16), (128, 1024, 256),
    ])
    func `int8 linear layers are exact`(_ size: (rows: Int, inputs: Int, outputs: Int)) {
        var random = Uniform(seed: 3)
        let weight = oracle.place(
            random.tensor([size.outputs, size.inputs], .f32), quantizedTo: .int8Blocks, in: nil)
        let bias = random.tensor([size.outputs], .f32)
        for dtype in [DType.f32, .bf16] {
            let x = random.tensor([size.rows, size.inputs], dtype)
            let residual = random.tensor([size.rows, size.outputs], dtype)
            let gate = random.tensor([size.outputs], .f32)
            let codes = oracle.quantize(x, to: .int8Blocks)
            #expect(sameBits(codes, subject.quantize(x, to: .int8Blocks)))
            #expect(sameBits(codes, narrow.quantize(x, to: .int8Blocks)))
            for bias in [bias, nil] {
                let run = { (backend: CPUBackend) in
                    backend.linear(
                        codes, weight, bias: bias, activation: .none, format: .plain, dtype: dtype)
                }
                #expect(sameBits(run(oracle), run(subject)))
                #expect(sameBits(run(oracle), run(narrow)))
            }
            let added = { (backend: CPUBackend) in
                backend.linearAdd(x, weight, bias: bias, to: residual, gate: gate)
            }
            #expect(sameBits(added(oracle), added(subject)))
            #expect(sameBits(added(oracle), added(narrow)))
        }
    }

    @Test(arguments: [(rows: 1, inputs: 128, outputs: 72), (97, 258, 100), (300, 34, 24)])
    func `fp8 linear layers agree with their definition`(
        _ size: (rows: Int, inputs: Int, outputs: Int)
    ) {
        var random = Uniform(seed: 11)
        let weight = oracle.place(
            random.tensor([size.outputs, size.inputs], .f32), quantizedTo: .fp8Rows, in: nil)
        let bias = random.tensor([size.outputs], .f32)
        for dtype in [DType.f32, .bf16] {
            let x = random.tensor([size.rows, size.inputs], dtype)
            let codes = oracle.quantize(x, to: .fp8Rows)
            let residual = random.tensor([size.rows, size.outputs], dtype)
            let gate = random.tensor([size.outputs], .f32)
            for activation in [Activation.none, .geluTanh] {
                expectClose(dtype) { $0.linear(x, weight, bias: bias, activation: activation) }
            }
            expectClose(dtype) {
                $0.linear(
                    codes, weight, bias: nil, activation: .none, format: .plain, dtype: dtype)
            }
            expectClose(dtype) { $0.linearAdd(x, weight, bias: bias, to: residual, gate: gate) }
        }
    }

    @Test func `a result can be quantised at once`() {
        var random = Uniform(seed: 4)
        let x = random.tensor([140, 128], .bf16)
        let weight = LinearWeight.dense(random.tensor([256, 128], .bf16))
        for backend in [subject, narrow] {
            let codes = backend.linear(
                x, weight, bias: nil, activation: .geluTanh, format: .int8Blocks)
            let plain = backend.linear(x, weight, bias: nil, activation: .geluTanh)
            #expect(sameBits(codes, backend.quantize(plain, to: .int8Blocks)))
        }
    }

    // MARK: Convolutions

    @Test(arguments: [
        Convolution(x: [2, 9, 13, 24], kernel: [24, 3, 3, 3], history: 2),
        Convolution(x: [1, 9, 13, 24], kernel: [24, 3, 3, 3], zeros: 2),
        Convolution(x: [1, 18, 32, 96], kernel: [96, 3, 3, 3], history: 1, zeros: 1),
        Convolution(x: [4, 5, 7, 6], kernel: [3, 3, 3, 3], history: 2),
        Convolution(x: [3, 10, 15, 3], kernel: [24, 3, 3, 3], zeros: 2),
        Convolution(x: [2, 7, 5, 8], kernel: [40, 1, 1, 1]),
        Convolution(x: [2, 8, 10, 16], kernel: [192, 3, 1, 1], history: 2),
        Convolution(x: [5, 4, 6, 10], kernel: [10, 3, 1, 1], timeStride: 2),
        Convolution(x: [2, 9, 14, 32], kernel: [16, 1, 3, 3], upsample: true),
        Convolution(x: [1, 1, 2, 8], kernel: [5, 1, 3, 3], upsample: true),
        Convolution(x: [2, 10, 14, 24], kernel: [24, 1, 3, 3], stride: 2, padding: .bottomRight),
        Convolution(x: [1, 11, 13, 4], kernel: [18, 1, 3, 3], stride: 2),
        Convolution(x: [1, 1, 1, 4], kernel: [4, 3, 3, 3], zeros: 2),
        Convolution(x: [1, 6, 9, 7], kernel: [20, 1, 5, 5]),
    ])
    func `convolutions agree with their definition`(_ c: Convolution) {
        for dtype in [DType.f32, .bf16] {
            var random = Uniform(seed: 5)
            let x = random.tensor(c.x, dtype)
            let history =
                c.history > 0 ? random.tensor(Shape([c.history] + c.x.tail.dimensions), dtype) : nil
            let kernel = random.tensor(Shape(c.kernel.dimensions + [c.x[3]]), dtype)
            let weight = ConvolutionWeight(kernel, bias: random.tensor([c.kernel[0]], .f32))
            func run(_ backend: CPUBackend, _ residual: Tensor?) -> Tensor {
                backend.convolution(
                    x, history: history, leadingZeros: c.zeros, weight, timeStride: c.timeStride,
                    spatialStride: c.stride, padding: c.padding, upsample: c.upsample,
                    residual: residual)
            }
            let residual = random.tensor(run(oracle, nil).shape, dtype)
            expectClose(dtype) { run($0, nil) }
            expectClose(dtype) { run($0, residual) }
        }
    }

    // MARK: Attention

    @Test(arguments: [
        (queries: 33, keys: 77, heads: 2, dim: 64), (130, 513, 1, 128), (70, 700, 1, 96),
        (5, 1, 3, 8), (97, 64, 2, 20),
    ])
    func `attention agrees with its definition`(
        _ size: (queries: Int, keys: Int, heads: Int, dim: Int)
    ) {
        for dtype in [DType.f32, .bf16] {
            var random = Uniform(seed: 6)
            let q = random.tensor([size.queries, size.heads, size.dim], dtype)
            let k = random.tensor([size.keys, size.heads, size.dim], dtype)
            let v = random.tensor([size.keys, size.heads, size.dim], dtype)
            let scale = 2 / Float(size.dim).squareRoot()
            for counts in [[], [435], [28, 384]] where counts.count <= size.keys {
                expectClose(dtype, bf16: 6e-3) {
                    $0.attention(q, k, v, scale: scale, lastKeyCounts: counts)
                }
            }
            let table = random.tensor([32, size.heads], .f32)
            expectClose(dtype, bf16: 6e-3) { $0.relativeAttention(k, k, v, table: table) }
        }
    }

    @Test(arguments: [
        (tokens: 520, heads: 2, dim: 64, topK: 0.25), (390, 1, 128, 0.5), (64, 1, 64, 1.0),
        (1100, 1, 64, 0.1),
    ])
    func `sparse attention agrees with its definition`(
        _ size: (tokens: Int, heads: Int, dim: Int, topK: Double)
    ) {
        var random = Uniform(seed: 7)
        let shape: Shape = [size.tokens, size.heads, size.dim]
        let (q, k, v) = (
            random.tensor(shape, .f32), random.tensor(shape, .f32), random.tensor(shape, .f32)
        )
        let projection = LinearWeight.dense(random.tensor([size.dim, size.dim], .f32))
        let bias = random.tensor([size.dim], .f32)
        for arithmetic in [SparseAttention.Arithmetic.exact, .bf16, .sage(.sm90)] {
            for (queryBlock, keyBlock) in [(128, 64), (64, 128), (32, 16)] {
                let spec = SparseAttention(
                    topK: size.topK, arithmetic: arithmetic, queryBlock: queryBlock,
                    keyBlock: keyBlock)
                for bias in [bias, nil] {
                    expectClose(arithmetic == .exact ? .f32 : .bf16, bf16: 6e-3) {
                        $0.sparseLinearAttention(q, k, v, projection: projection, bias: bias, spec)
                    }
                }
            }
        }
    }

    // MARK: Norms

    @Test(arguments: [1, 3, 16, 24, 100, 384])
    func `the norm over channels agrees with its definition`(_ channels: Int) {
        for dtype in [DType.f32, .bf16] {
            var random = Uniform(seed: 9)
            let x = random.tensor([3, 5, 7, channels], dtype)
            let gamma = random.tensor([channels], .f32)
            for silu in [false, true] {
                expectClose(dtype) { $0.channelNorm(x, gamma: gamma, silu: silu) }
            }
            expectClose(dtype) { $0.channelNorm(.zeros(x.shape, dtype), gamma: gamma, silu: true) }
        }
    }

    // MARK: Ceilings

    @Test func `the ceilings are there, and no product exceeds them`() {
        let ceilings = CPUCeilings.measure(threads: 1)
        #expect(ceilings.copy > 0 && ceilings.bf16 > 0 && ceilings.int8 > 0)
        var random = Uniform(seed: 10)
        let backend = CPUBackend(threads: 1)
        let x = random.tensor([192, 256], .f32)
        let weight = LinearWeight.dense(random.tensor([256, 256], .f32))
        let best = (0..<20).map { _ in
            let clock = ContinuousClock()
            let time = clock.measure { _ = backend.linear(x, weight, bias: nil) }
            return 2 * 192 * 256 * 256 / (time / .seconds(1))
        }.max()!
        // One in ten for clocks that change. Whoever else computes here may have slowed the measurement down.
        var ceiling = ceilings.f32
        for _ in 0..<20 where best > 1.1 * ceiling {
            ceiling = max(ceiling, CPUCeilings.measure(threads: 1).f32)
        }
        #expect(best <= 1.1 * ceiling)
    }

    // MARK: Determinism

    @Test func `the number of threads does not change a bit`() {
        var random = Uniform(seed: 8)
        let x = random.tensor([201, 320], .f32)
        let weight = LinearWeight.dense(random.tensor([330, 320], .f32))
        let frames = random.tensor([3, 17, 29, 24], .bf16)
        let kernel = ConvolutionWeight(random.tensor([48, 3, 3, 3, 24], .bf16), bias: nil)
        let q = random.tensor([333, 2, 64], .bf16)
        let projection = LinearWeight.dense(random.tensor([64, 64], .bf16))
        for engine in [CPUBackend.Engine.automatic, .avx2] {
            let results = [1, 2, 3, 7].map { count in
                let backend = CPUBackend(threads: count, engine: engine)
                return [
                    backend.linear(x, weight, bias: nil),
                    backend.convolution(
                        frames, history: nil, leadingZeros: 2, kernel, timeStride: 1,
                        spatialStride: 1,
                        padding: .same, upsample: false, residual: nil),
                    backend.attention(q, q, q, scale: 0.125),
                    backend.sparseLinearAttention(
                        q, q, q, projection: projection, bias: nil,
                        SparseAttention(topK: 0.3, arithmetic: .bf16)),
                    backend.sparseLinearAttention(
                        q, q, q, projection: projection, bias: nil,
                        SparseAttention(topK: 0.3, arithmetic: .sage(.sm90))),
                ]
            }
            for result in results.dropFirst() {
                for (a, b) in zip(results[0], result) { #expect(sameBits(a, b)) }
            }
        }
    }

    /// Runs an operation on all backends: relative L2 distance at most 2e-6 in f32; in bf16 that of a
    /// rounding or two.
    private func expectClose(
        _ dtype: DType, bf16: Double = 2.5e-3, location: SourceLocation = #_sourceLocation,
        _ operation: (CPUBackend) -> Tensor
    ) {
        let expected = operation(oracle)
        for backend in [subject, narrow] {
            let got = operation(backend)
            #expect(
                expected.shape == got.shape && expected.dtype == got.dtype,
                sourceLocation: location)
            let distance = relativeDistance(got, expected)
            #expect(
                distance <= (dtype == .f32 ? 2e-6 : bf16), "\(backend.name)",
                sourceLocation: location)
        }
    }
}

/// The sizes of one convolution. kernel: [out, kernelTime, kernelHeight, kernelWidth]
struct Convolution: Sendable {
    let x, kernel: Shape
    var history = 0
    var zeros = 0
    var timeStride = 1
    var stride = 1
    var padding = SpatialPadding.same
    var upsample = false
}

/// Numbers between -1 and 1, the same for the same seed.
struct Uniform {
    private var state: UInt64
    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

    mutating func next() -> Float {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Float(state >> 40) * 0x1p-23 - 1
    }

    mutating func tensor(_ shape: Shape, _ dtype: DType) -> Tensor {
        Tensor((0..<shape.count).map { _ in next() }, shape).converted(to: dtype)
    }
}

/// ||a - b|| / ||b||
func relativeDistance(_ a: Tensor, _ b: Tensor) -> Double {
    var difference = 0.0
    var square = 0.0
    for (x, y) in zip(a.floats(), b.floats()) {
        let (x, y) = (Double(x), Double(y))
        difference += (x - y) * (x - y)
        square += y * y
    }
    return (difference / max(square, 1e-300)).squareRoot()
}

func sameBits(_ a: Tensor, _ b: Tensor) -> Bool {
    let scales = zip(bytes(a.scales), bytes(b.scales)).allSatisfy { $0 == $1 }
    return a.shape == b.shape && a.dtype == b.dtype && scales
        && UnsafeRawBufferPointer(start: a.hostAddress, count: a.byteCount).elementsEqual(
            UnsafeRawBufferPointer(start: b.hostAddress, count: b.byteCount))
}

private func bytes(_ storage: Storage?) -> UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(start: storage?.hostPointer, count: storage?.byteCount ?? 0)
}
