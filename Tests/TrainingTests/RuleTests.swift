/// The rules of operations against each other and against differences.

import CPU
import Tensors
import Testing
import Training

/// An operation as a function of some tensors.
private struct Case: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let shapes: [Shape]
    let body: @Sendable (any Backend, [Tensor]) -> Tensor

    init(
        _ name: String, _ shapes: [Shape],
        _ body: @escaping @Sendable (any Backend, [Tensor]) -> Tensor
    ) {
        testDescription = name
        self.shapes = shapes
        self.body = body
    }
}

private let cases: [Case] = [
    Case("linear", [[5, 7], [3, 7], [3]]) { $0.linear($1[0], .dense($1[1]), bias: $1[2]) },
    Case("linear gelu", [[5, 7], [3, 7], [3]]) {
        $0.linear($1[0], .dense($1[1]), bias: $1[2], activation: .geluTanh)
    },
    Case("linear silu", [[1, 7], [9, 7], [9]]) {
        $0.linear($1[0], .dense($1[1]), bias: $1[2], activation: .silu)
    },
    Case("linearAdd", [[5, 7], [3, 7], [3], [5, 3], [3]]) {
        $0.linearAdd($1[0], .dense($1[1]), bias: $1[2], to: $1[3], gate: $1[4])
    },
    Case("gatedAdd", [[5, 6], [5, 6], [6]]) { $0.gatedAdd($1[0], $1[1], gate: $1[2]) },
    Case("combine", [[4, 3], [4, 3]]) { $0.combine([$1[0], $1[1]], [0.5, -3], as: .f32) },
    Case("layerNorm", [[5, 12], [12], [12]]) {
        $0.layerNorm(
            $1[0], weight: $1[1], bias: $1[2], epsilon: 1e-6, kind: .exact, format: .plain)
    },
    Case("modulatedLayerNorm", [[5, 12], [12], [12]]) {
        $0.modulatedLayerNorm(
            $1[0], shift: $1[1], scale: $1[2], epsilon: 1e-6, kind: .exact, format: .plain,
            dtype: nil)
    },
    Case("rmsNorm", [[5, 12], [12]]) {
        $0.rmsNorm($1[0], weight: $1[1], epsilon: 1e-6, kind: .exact, format: .plain)
    },
    Case("rmsNormRope", [[6, 16], [16]]) { device, x in
        var random = Random(3)
        let angles = random.tensor([6, 4], scale: 3).floats()
        func table(_ f: (Float) -> Float) -> Tensor {
            device.place(Tensor(angles.map(f), [6, 4]), as: .f32)
        }
        // cos and sin of angles, by half-angle rational forms: any rotation will do.
        let rope = RotaryTable(
            cosine: table { (1 - $0 * $0) / (1 + $0 * $0) }, sine: table { 2 * $0 / (1 + $0 * $0) })
        return device.rmsNormRope(
            x[0], weight: x[1], epsilon: 1e-6, kind: .exact, rope: rope, heads: 2)
    },
    Case("attention", [[7, 2, 4], [90, 2, 4], [90, 2, 4]]) {
        $0.attention($1[0], $1[1], $1[2], scale: 0.7)
    },
    Case("attention with counted keys", [[70, 1, 4], [9, 1, 4], [9, 1, 4]]) {
        $0.attention($1[0], $1[1], $1[2], scale: 0.5, lastKeyCounts: [3, 40])
    },
    Case("sparse-linear attention", [[37, 2, 8], [37, 2, 8], [37, 2, 8], [8, 8], [8]]) {
        $0.sparseLinearAttention(
            $1[0], $1[1], $1[2], projection: .dense($1[3]), bias: $1[4], sparse(0.4))
    },
    Case("slice", [[5, 3]]) { $0.slice($1[0], 1..<4) },
    Case("concatenate", [[2, 3], [1, 3]]) { $0.concatenate([$1[0], $1[1]]) },
    Case("patchify", [[2, 3, 4, 6], [1, 3, 4, 6]]) { $0.patchify([$1[0], $1[1]], dtype: .f32) },
    Case("unpatchify", [[18, 8]]) { $0.unpatchify($1[0], size: Extent(t: 3, h: 4, w: 6)) },
]

@Suite struct RuleTests {
    private let device = CPUBackend(engine: .definition)

    /// Arguments, directions and a cotangent. The block map must not turn over on the way.
    private func inputs(_ one: Case, seed: UInt64) -> (x: [Tensor], t: [Tensor]) {
        var random = Random(seed)
        return (one.shapes.map { random.tensor($0) }, one.shapes.map { random.tensor($0) })
    }

    /// Weights carry no tangents: only what flows through the model does.
    private func mayMove(_ one: Case, _ index: Int) -> Bool {
        let constants: [String: Set<Int>] = [
            "linear": [1, 2], "linear gelu": [1, 2], "linear silu": [1, 2], "linearAdd": [1, 2],
            "layerNorm": [1, 2], "rmsNorm": [1], "rmsNormRope": [1],
            "sparse-linear attention": [3, 4],
        ]
        return !(constants[one.testDescription]?.contains(index) ?? false)
    }

    @Test("the tangent is what differences say", arguments: cases)
    private func forward(_ one: Case) {
        let (x, t) = inputs(one, seed: 11)
        let tangents = Tangents(device)
        for index in x.indices where mayMove(one, index) {
            tangents.move(x[index], along: t[index])
        }
        let result = one.body(tangents, x)
        let tangent = tangents.tangent(of: result)!
        let h: Float = 1.0 / 512
        func at(_ h: Float) -> [Double] {
            let y = x.indices.map { mayMove(one, $0) ? moved(x[$0], h, t[$0]) : x[$0] }
            return one.body(device, y).floats().map { Double($0) }
        }
        // Two central differences: the error of the fourth order is left.
        let (near, far) = (zip(at(h), at(-h)).map(-), zip(at(2 * h), at(-2 * h)).map(-))
        let slope = zip(near, far).map { (8 * $0 - $1) / (12 * Double(h)) }
        let error = zip(slope, tangent.floats()).reduce(0) {
            $0 + ($1.0 - Double($1.1)) * ($1.0 - Double($1.1))
        }
        let norm = slope.reduce(0) { $0 + $1 * $1 }
        #expect(norm > 0)
        #expect((error / norm).squareRoot() < 3e-4)
    }

    @Test("both modes are one linear map: <g, J t> = <J^T g, t>", arguments: cases)
    private func adjoint(_ one: Case) {
        let (x, t) = inputs(one, seed: 29)
        let tangents = Tangents(device)
        for index in x.indices where mayMove(one, index) {
            tangents.move(x[index], along: t[index])
        }
        let result = one.body(tangents, x)
        var random = Random(5)
        let g = random.tensor(result.shape)
        let recorder = Recorder(device)
        for tensor in x { recorder.watch(tensor) }
        let again = one.body(recorder, x)
        let gradients = recorder.backward([(again, g)])
        let forward = inner(g, tangents.tangent(of: result)!)
        var backward = 0.0
        for index in x.indices {
            let gradient = gradients.take(x[index])!
            if mayMove(one, index) { backward += inner(gradient, t[index]) }
        }
        let scale = inner(g, g).squareRoot()
        #expect(abs(forward - backward) < 2e-5 * max(abs(forward), scale))
    }

    @Test("weights too: the gradient is what differences say", arguments: cases)
    private func weights(_ one: Case) {
        let (x, t) = inputs(one, seed: 17)
        let recorder = Recorder(device)
        for tensor in x { recorder.watch(tensor) }
        let result = one.body(recorder, x)
        var random = Random(8)
        let g = random.tensor(result.shape)
        let gradients = recorder.backward([(result, g)])
        for index in x.indices where !mayMove(one, index) {
            let gradient = gradients.take(x[index])!
            let h: Float = 1.0 / 64
            func at(_ h: Float) -> Double {
                var y = x
                y[index] = moved(x[index], h, t[index])
                return inner(one.body(device, y), g)
            }
            let slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * Double(h))
            let found = inner(gradient, t[index])
            #expect(abs(slope - found) < 2e-4 * max(1, abs(slope)))
        }
    }

    @Test("the number of threads changes no bit")
    func threads() {
        func gradients(_ device: CPUBackend) -> [Tensor] {
            let one = cases.first { $0.testDescription == "sparse-linear attention" }!
            let (x, t) = inputs(one, seed: 4)
            let recorder = Recorder(device)
            for tensor in x { recorder.watch(tensor) }
            let found = recorder.backward([(one.body(recorder, x), t[0])])
            return x.map { found.take($0)! }
        }
        let one = gradients(CPUBackend(threads: 1))
        let three = gradients(CPUBackend(threads: 3))
        for (a, b) in zip(one, three) { #expect(device.equalBits(a, b)) }
    }
}
