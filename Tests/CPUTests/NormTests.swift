/// Norms: rounding points, the fused forms, and the rotary embedding.

import CPU
import Tensors
import Testing

@Suite struct NormTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    @Test(arguments: [1, 7, 8, 31, 96, 128, 1536]) func layerNormAgreesWithTheTextbook(_ n: Int) {
        var random = Random(UInt64(n))
        let x = random.tensor([5, n], mean: 0.5)
        let y = device.layerNorm(
            x, weight: nil, bias: nil, epsilon: 1e-6, kind: .exact, format: .plain)
        let expected = (0..<5).flatMap { row -> [Float] in
            let values = x[row].floats().map(Double.init)
            let mean = values.reduce(0, +) / Double(n)
            let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(n)
            return values.map { Float(($0 - mean) / (variance + 1e-6).squareRoot()) }
        }
        #expect(relativeDifference(y.floats(), expected) < 1e-6)
    }

    @Test func theReferenceNormCountsSurplusLanes() {
        // Mean 3, no deviation: in x only the lanes from 5 up to 8 make a variance, 3 * 9 / 5.
        let x = tensor([3, 3, 3, 3, 3], [1, 5])
        let y = tensor([3, 3, 3, 3, 8], [1, 5])
        func norm(_ x: Tensor, _ kind: NormKind) -> [Float] {
            device.layerNorm(x, weight: nil, bias: nil, epsilon: 0, kind: kind, format: .plain)
                .floats()
        }
        #expect(norm(x, .reference) == [0, 0, 0, 0, 0])
        let deviation = ((4 + 16 + 3 * 16) / 5 as Float).squareRoot()
        #expect(
            relativeDifference(norm(y, .reference), [-1, -1, -1, -1, 4].map { $0 / deviation })
                < 1e-6)
        #expect(relativeDifference(norm(y, .exact), [-0.5, -0.5, -0.5, -0.5, 2]) < 1e-6)
    }

    @Test(arguments: [DType.f32, .bf16]) func modulationIsTheNormTimesScalePlusShift(_ dtype: DType)
    {
        var random = Random(6)
        let x = random.tensor([9, 100], dtype, mean: 1)
        let (shift, scale) = (random.tensor([100]), random.tensor([100]))
        let norm = device.layerNorm(
            x, weight: nil, bias: nil, epsilon: 1e-6, kind: .reference, format: .plain
        ).floats()
        let (s, b) = (scale.floats(), shift.floats())
        let expected = norm.indices.map { norm[$0] * (1 + s[$0 % 100]) + b[$0 % 100] }
        let y = device.modulatedLayerNorm(
            x, shift: shift, scale: scale, epsilon: 1e-6, kind: .reference, format: .plain,
            dtype: .f32)
        #expect(y.dtype == .f32)
        #expect(relativeDifference(y.floats(), expected) < 1e-6)
        let rounded = device.modulatedLayerNorm(
            x, shift: shift, scale: scale, epsilon: 1e-6, kind: .reference, format: .plain,
            dtype: nil)
        #expect(bits(rounded) == bits(y.converted(to: dtype)))
    }

    @Test func theTwoKindsOfRMSNormRoundAtDifferentPlaces() {
        let x = tensor([1, 1, 1, 1.5], [1, 4]).converted(to: .bf16)
        let weight = tensor([1.003, 1, 1, 1.003], [4])
        let scale = 1 / ((3 + 2.25) / 4 as Float).squareRoot()
        func norm(_ kind: NormKind) -> [Float] {
            device.rmsNorm(x, weight: weight, epsilon: 0, kind: kind, format: .plain).floats()
        }
        let values: [Float] = [1, 1, 1, 1.5]
        let exact = values.enumerated().map { index, x -> Float in
            let w = weight.floats()[index].roundedToBFloat16
            return ((x * scale).roundedToBFloat16 * w).roundedToBFloat16
        }
        let reference = values.enumerated().map { index, x -> Float in
            (x * scale * weight.floats()[index]).roundedToBFloat16
        }
        #expect(norm(.exact) == exact)
        #expect(norm(.reference) == reference)
        #expect(exact != reference)
    }

    @Test(arguments: [DType.f32, .bf16], [NormKind.exact, .reference])
    func rmsNormRopeIsTheNormThenARotation(_ dtype: DType, _ kind: NormKind) {
        var random = Random(7)
        let (tokens, heads, dim) = (6, 3, 10)
        let x = random.tensor([tokens, heads * dim], dtype)
        let weight = random.tensor([heads * dim], mean: 1, deviation: 0.1)
        let (cosine, sine) = (random.tensor([tokens, dim / 2]), random.tensor([tokens, dim / 2]))
        let norm = device.rmsNorm(x, weight: weight, epsilon: 1e-6, kind: kind, format: .plain)
        let (n, c, s) = (norm.floats(), cosine.floats(), sine.floats())
        var expected = n
        for i in stride(from: 0, to: n.count, by: 2) {
            let angle = i / (heads * dim) * (dim / 2) + i % dim / 2
            expected[i] = n[i] * c[angle] - n[i + 1] * s[angle]
            expected[i + 1] = n[i] * s[angle] + n[i + 1] * c[angle]
        }
        let y = device.rmsNormRope(
            x, weight: weight, epsilon: 1e-6, kind: kind,
            rope: RotaryTable(cosine: cosine, sine: sine), heads: heads)
        #expect(y.shape == [tokens, heads, dim] && y.dtype == dtype)
        let limit = dtype == .f32 ? 1e-6 : 3e-3
        #expect(relativeDifference(y.floats(), expected) < limit)
    }

    @Test func normsCanQuantizeTheirResult() {
        var random = Random(8)
        let x = random.tensor([130, 256], .bf16)
        let weight = random.tensor([256])
        let y = device.rmsNorm(
            x, weight: weight, epsilon: 1e-6, kind: .exact, format: .int8Blocks)
        let expected = device.quantize(
            device.rmsNorm(x, weight: weight, epsilon: 1e-6, kind: .exact, format: .plain),
            to: .int8Blocks)
        #expect(y.dtype == .i8 && bits(y) == bits(expected))
    }
}
