/// Causal convolutions of every geometry that the autoencoder has, and of some that it lacks.

import CPU
import Glibc
import Tensors
import Testing

@Suite struct ConvolutionTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    struct Case: CustomTestStringConvertible {
        var frames = 3, height = 5, width = 7, inputs = 4, outputs = 6
        var kernel = (3, 3, 3)
        var history = 0, zeros = 2, timeStride = 1, spatialStride = 1
        var padding = SpatialPadding.same
        var upsample = false, residual = false, bias = true
        var testDescription: String {
            "\(frames)x\(height)x\(width)x\(inputs) to \(outputs), kernel \(kernel), "
                + "history \(history), zeros \(zeros), strides \(timeStride) \(spatialStride), "
                + "\(padding)\(upsample ? ", upsampled" : "")"
        }
    }

    static let cases = [
        Case(), Case(history: 2, zeros: 0, residual: true), Case(history: 1, zeros: 1, bias: false),
        Case(width: 45, inputs: 17, outputs: 35), Case(kernel: (1, 1, 1), zeros: 0),
        Case(kernel: (3, 1, 1), history: 1, zeros: 0, timeStride: 2),
        Case(
            height: 6, width: 8, kernel: (1, 3, 3), zeros: 0, spatialStride: 2,
            padding: .bottomRight),
        Case(kernel: (1, 3, 3), zeros: 0, spatialStride: 2, padding: .bottomRight),
        Case(kernel: (1, 3, 3), zeros: 0, upsample: true), Case(frames: 1, height: 1, width: 1),
        Case(frames: 5, timeStride: 2),
    ]

    /// The definition of definitions: seven loops in f64 over frames that are padded and doubled first.
    private func textbook(
        _ x: Tensor, _ history: Tensor?, _ weight: Tensor, _ bias: Tensor?, _ c: Case
    )
        -> [Float]
    {
        let frames = (history?.floats() ?? []) + x.floats()
        let count = frames.count / (c.height * c.width * c.inputs)
        let scale = c.upsample ? 2 : 1
        let w = weight.floats()
        let bias = bias?.floats()
        let (kt, kh, kw) = c.kernel
        let same = c.padding == .same
        let (before, after) = same ? ((kh - 1) / 2, (kh - 1) / 2) : (0, 1)
        let (left, right) = same ? ((kw - 1) / 2, (kw - 1) / 2) : (0, 1)
        func value(_ t: Int, _ h: Int, _ w: Int, _ channel: Int) -> Double {
            if t < 0 || h < 0 || w < 0 || h >= c.height * scale || w >= c.width * scale { return 0 }
            return Double(
                frames[((t * c.height + h / scale) * c.width + w / scale) * c.inputs + channel])
        }
        let times = (c.zeros + count - kt) / c.timeStride + 1
        let lines = (c.height * scale + before + after - kh) / c.spatialStride + 1
        let columns = (c.width * scale + left + right - kw) / c.spatialStride + 1
        var out: [Float] = []
        for t in 0..<times {
            for h in 0..<lines {
                for column in 0..<columns {
                    for output in 0..<c.outputs {
                        var sum = Double(bias?[output] ?? 0)
                        for a in 0..<kt {
                            for b in 0..<kh {
                                for d in 0..<kw {
                                    let start = (((output * kt + a) * kh + b) * kw + d) * c.inputs
                                    for channel in 0..<c.inputs {
                                        sum +=
                                            Double(w[start + channel])
                                            * value(
                                                t * c.timeStride + a - c.zeros,
                                                h * c.spatialStride + b - before,
                                                column * c.spatialStride + d - left, channel)
                                    }
                                }
                            }
                        }
                        out.append(Float(sum))
                    }
                }
            }
        }
        return out
    }

    private func run(_ c: Case, dtype: DType) -> (found: [Float], expected: [Float]) {
        var random = Random(16)
        let x = random.tensor([c.frames, c.height, c.width, c.inputs], dtype)
        let history =
            c.history == 0 ? nil : random.tensor([c.history, c.height, c.width, c.inputs], dtype)
        let (kt, kh, kw) = c.kernel
        let weight = random.tensor([c.outputs, kt, kh, kw, c.inputs], dtype)
        let bias = c.bias ? random.tensor([c.outputs]) : nil
        func convolve(_ residual: Tensor?) -> Tensor {
            device.convolution(
                x, history: history, leadingZeros: c.zeros, ConvolutionWeight(weight, bias: bias),
                timeStride: c.timeStride, spatialStride: c.spatialStride, padding: c.padding,
                upsample: c.upsample, residual: residual)
        }
        var y = convolve(nil)
        var expected = textbook(x, history, weight, bias, c)
        if c.residual {
            let residual = random.tensor(y.shape, dtype)
            y = convolve(residual)
            expected = zip(expected, residual.floats()).map { $0 + $1 }
        }
        return (y.floats(), expected)
    }

    @Test(arguments: cases) func agreesWithTheTextbook(_ c: Case) {
        let full = run(c, dtype: .f32)
        #expect(full.found.count == full.expected.count)
        #expect(relativeDifference(full.found, full.expected) < 1e-6)
        let half = run(c, dtype: .bf16)
        #expect(relativeDifference(half.found, half.expected) < 4e-3)
    }

    @Test func chunksWithHistoryAreTheWhole() {
        var random = Random(17)
        let x = random.tensor([6, 4, 5, 3])
        let weight = ConvolutionWeight(random.tensor([8, 3, 3, 3, 3]), bias: random.tensor([8]))
        func convolve(_ x: Tensor, _ history: Tensor?, _ zeros: Int) -> Tensor {
            device.convolution(
                x, history: history, leadingZeros: zeros, weight, timeStride: 1, spatialStride: 1,
                padding: .same, upsample: false, residual: nil)
        }
        let parts = [
            convolve(x.slice(0..<1), nil, 2), convolve(x.slice(1..<2), x.slice(0..<1), 1),
            convolve(x.slice(2..<6), x.slice(0..<2), 0),
        ]
        #expect(bits(device.concatenate(parts)) == bits(convolve(x, nil, 2)))
    }

    @Test func channelNormDividesByTheLength() {
        let x = tensor([3, 4, 0, 0, 0, 0], [1, 1, 2, 3])
        let gamma = tensor([1, 2, 3], [3])
        let root = Float(3).squareRoot()
        let y = device.channelNorm(x, gamma: gamma, silu: false)
        #expect(relativeDifference(y.floats(), [0.6 * root, 1.6 * root, 0, 0, 0, 0]) < 1e-6)
        let expected = y.floats().map { $0 / (1 + exp(-$0)) }
        #expect(
            relativeDifference(device.channelNorm(x, gamma: gamma, silu: true).floats(), expected)
                < 1e-6)
    }
}
