/// Results must not depend on the number of threads, down to the last bit.

import CPU
import Tensors
import Testing

@Suite struct ThreadsTests {
    /// Runs `body` on backends of one, two and five threads and compares the bits.
    private func expectSameBits(_ name: String, _ body: (CPUBackend) -> [Tensor]) {
        let expected = body(CPUBackend(threads: 1, engine: .definition)).map(bits)
        for threads in [2, 5] {
            let found = body(CPUBackend(threads: threads, engine: .definition)).map(bits)
            let isSame = found == expected
            #expect(isSame, "\(name) on \(threads) threads")
        }
    }

    @Test func nothingDependsOnTheNumberOfThreads() {
        var random = Random(1)
        let x = random.tensor([333, 200])
        let weight = random.tensor([150, 200])
        let vector = random.tensor([200])
        expectSameBits("linear") { device in
            [LinearFormat.plain, .int8Blocks, .fp8Rows].map {
                let weight = device.place(weight, quantizedTo: $0, in: nil)
                return device.linear(x, weight, bias: nil, activation: .silu)
            }
        }
        expectSameBits("norms") { device in
            [
                device.layerNorm(
                    x, weight: vector, bias: vector, epsilon: 1e-6, kind: .reference,
                    format: .plain),
                device.rmsNorm(x, weight: vector, epsilon: 1e-6, kind: .exact, format: .int8Blocks),
                device.channelNorm(x, gamma: vector, silu: true),
            ]
        }
        let q = random.tensor([333, 3, 64])
        let k = random.tensor([333, 3, 64])
        let v = random.tensor([333, 3, 64])
        let table = random.tensor([32, 3])
        let projection = random.tensor([64, 64], deviation: 0.1)
        expectSameBits("attention") { device in
            [
                device.attention(q, k, v, scale: 0.125),
                device.relativeAttention(q, k, v, table: table),
            ]
        }
        let arithmetics =
            [SparseAttention.Arithmetic.exact, .bf16] + SageArchitecture.allCases.map { .sage($0) }
        expectSameBits("sparse attention") { device in
            arithmetics.map {
                device.sparseLinearAttention(
                    q, k, v, projection: .dense(projection), bias: nil,
                    SparseAttention(topK: 0.5, arithmetic: $0))
            }
        }
        let frames = random.tensor([3, 7, 50, 20])
        let kernel = ConvolutionWeight(random.tensor([33, 3, 3, 3, 20]), bias: nil)
        expectSameBits("convolution") { device in
            [
                device.convolution(
                    frames, history: nil, leadingZeros: 2, kernel, timeStride: 1, spatialStride: 1,
                    padding: .same, upsample: true, residual: nil)
            ]
        }
        expectSameBits("noise") { device in
            var generator = PhiloxNoise(seed: 5)
            return [device.noise([70_001], generator: &generator)]
        }
    }
}
