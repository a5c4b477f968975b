// Cases of the convolutions: awkward geometries against a direct sum, and the autoencoder's layers.

internal import Tensors

/// One convolution, in numbers.
private struct ConvolutionCase {
    var frames = 3, history = 2, zeros = 0
    var height, width, inputs, outputs: Int
    var kernel = (3, 3, 3)
    var timeStride = 1, spatialStride = 1
    var padding = SpatialPadding.same
    var upsample = false
    var adds = false
    var dtype = DType.bf16
    var timed = false

    var name: String {
        "conv \(dtype) \(history)+\(frames)x\(height)x\(width) \(inputs)->\(outputs) "
            + "\(kernel.0)\(kernel.1)\(kernel.2)"
            + (zeros > 0 ? " zeros \(zeros)" : "") + (timeStride > 1 ? " time/2" : "")
            + (spatialStride > 1 ? " space/2" : "") + (padding == .same ? "" : " corner")
            + (upsample ? " up" : "") + (adds ? " add" : "")
    }
}

extension SelfTest {
    static var convolutionCases: [SelfTestCase] {
        let small: [ConvolutionCase] = [
            .init(height: 20, width: 36, inputs: 96, outputs: 96, adds: true),
            .init(history: 0, zeros: 2, height: 20, width: 36, inputs: 192, outputs: 192),
            .init(frames: 2, history: 1, zeros: 1, height: 9, width: 13, inputs: 48, outputs: 24),
            .init(height: 10, width: 18, inputs: 384, outputs: 384, adds: true),
            .init(
                history: 0, height: 10, width: 18, inputs: 384, outputs: 192, kernel: (1, 3, 3),
                upsample: true),
            .init(
                history: 0, height: 11, width: 17, inputs: 192, outputs: 96, kernel: (1, 3, 3),
                upsample: true),
            .init(height: 10, width: 18, inputs: 192, outputs: 384, kernel: (3, 1, 1)),
            .init(
                frames: 4, history: 1, height: 10, width: 18, inputs: 192, outputs: 192,
                kernel: (3, 1, 1), timeStride: 2),
            .init(
                history: 0, height: 20, width: 36, inputs: 96, outputs: 96, kernel: (1, 3, 3),
                spatialStride: 2, padding: .bottomRight),
            .init(
                history: 0, height: 21, width: 35, inputs: 48, outputs: 48, kernel: (1, 3, 3),
                spatialStride: 2, padding: .bottomRight),
            .init(height: 20, width: 36, inputs: 96, outputs: 3),
            .init(height: 10, width: 18, inputs: 16, outputs: 384),
            .init(history: 0, height: 10, width: 18, inputs: 16, outputs: 16, kernel: (1, 1, 1)),
            .init(
                history: 0, height: 10, width: 18, inputs: 192, outputs: 384, kernel: (1, 1, 1),
                adds: true),
            .init(height: 20, width: 36, inputs: 3, outputs: 96),
            .init(height: 20, width: 36, inputs: 3, outputs: 96, dtype: .f32),
            .init(height: 9, width: 13, inputs: 24, outputs: 20, adds: true, dtype: .f32),
        ]
        // 480p, four frames a chunk.
        let real: [ConvolutionCase] = [
            .init(frames: 4, height: 480, width: 832, inputs: 96, outputs: 96, timed: true),
            .init(
                frames: 4, height: 480, width: 832, inputs: 96, outputs: 96, adds: true,
                timed: true),
            .init(frames: 4, height: 240, width: 416, inputs: 192, outputs: 192, timed: true),
            .init(frames: 2, height: 120, width: 208, inputs: 384, outputs: 384, timed: true),
            .init(frames: 1, height: 60, width: 104, inputs: 384, outputs: 384, timed: true),
            .init(
                frames: 4, history: 0, height: 240, width: 416, inputs: 192, outputs: 96,
                kernel: (1, 3, 3), upsample: true, timed: true),
            .init(frames: 4, height: 480, width: 832, inputs: 96, outputs: 3, timed: true),
            .init(
                frames: 4, history: 0, height: 480, width: 832, inputs: 96, outputs: 96,
                kernel: (1, 3, 3), spatialStride: 2, padding: .bottomRight, timed: true),
        ]
        return (small + real).flatMap { test in
            ConvolutionPlan.all(test.arguments, test.dtype, .hopper).map { run(test, $0) }
        }
    }

    private static func run(_ test: ConvolutionCase, _ plan: ConvolutionPlan) -> SelfTestCase {
        SelfTestCase("\(test.name) \(plan.label)") { context in
            if plan != .mma, plan != .simt, context.properties.architecture != .hopper {
                return .notOnThisCard
            }
            var arguments = test.arguments
            let isHalf = test.dtype == .bf16
            func array(_ seed: UInt64, _ count: Int, _ scale: Float) -> SelfTestArray {
                let values = pattern(seed) { scale * $0.normal() }
                return isHalf
                    ? context.repeating(
                        values, count: count, encode: { BFloat16($0) }, decode: { $0.float })
                    : context.repeating(values, count: count, encode: { $0 }, decode: { $0 })
            }
            let frame = test.height * test.width * test.inputs
            let depth = test.kernel.0 * test.kernel.1 * test.kernel.2 * test.inputs
            let x = array(1, test.frames * frame, 1)
            let history = array(2, max(test.history, 1) * frame, 1)
            let w = array(3, test.outputs * depth, 1 / Float(depth).squareRoot())
            let bias = context.repeating(
                pattern(4) { $0.uniform() }, count: test.outputs, encode: { $0 }, decode: { $0 })
            let count = arguments.output.count
            let residual = array(5, count, 1)
            let size = isHalf ? 2 : 4
            let out = context.buffer(byteCount: count * size)
            context.stream.fill(out.pointer, with: 0xFF, byteCount: count * size)
            arguments.x = x.pointer
            arguments.history = test.history > 0 ? history.pointer : .null
            arguments.w = w.pointer
            arguments.bias = bias.pointer
            arguments.residual = test.adds ? residual.pointer : .null
            arguments.out = out.pointer
            let launch = { Convolution.launch(arguments, test.dtype, plan, context) }
            launch()
            try context.synchronize()

            var comparison = SelfTestComparison()
            let pixels = arguments.pixels
            let step = test.timed ? max(1, pixels / 60) : 1
            let outputs =
                test.timed
                ? Array(0..<test.outputs) : Set([0, test.outputs / 2, test.outputs - 1]).sorted()
            for pixel in stride(from: 0, to: pixels, by: step) {
                let at = pixel * test.outputs
                let got: [Float] =
                    isHalf
                    ? context.download(BFloat16.self, test.outputs, from: out.pointer + at * 2)
                        .map(\.float)
                    : context.download(Float.self, test.outputs, from: out.pointer + at * 4)
                for output in outputs {
                    var y = test.sum(arguments, x, history, w, pixel, output) + bias[output]
                    if isHalf { y = y.roundedToBFloat16 }
                    if test.adds { y += residual[at + output] }
                    comparison.add(got[output], isHalf ? y.roundedToBFloat16 : y)
                }
                if let wrong = got.first(where: { !($0.magnitude < 1e6) }) {
                    comparison.add(wrong, 0)
                }
            }
            let time = test.timed ? try context.medianMicroseconds(repeats: 5, launch) : nil
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: isHalf ? 1.5e-3 : 1e-5, microseconds: time,
                operations: arguments.operations)
        }
    }
}

extension ConvolutionPlan {
    fileprivate var label: String {
        switch self {
        case .hopper(let widthLog2, let outputs, let slice):
            "\(1 << widthLog2)x\(256 >> widthLog2)x\(outputs)x\(slice)"
        case .taps(let outputs, let slice): "taps x\(outputs)x\(slice)"
        case .mma: "mma"
        case .simt: "simt"
        }
    }
}

extension ConvolutionCase {
    /// The geometry, without addresses.
    fileprivate var arguments: ConvolutionArguments {
        let frame = [height, width, inputs]
        return ConvolutionArguments(
            ConvolutionGeometry(
                Shape([frames] + frame), history: history > 0 ? Shape([history] + frame) : nil,
                leadingZeros: zeros,
                ConvolutionWeight(
                    Tensor(
                        [outputs, kernel.0, kernel.1, kernel.2, inputs], dtype,
                        storage: Storage(byteCount: .max)), bias: nil),
                timeStride: timeStride, spatialStride: spatialStride, padding: padding,
                upsample: upsample))
    }

    /// The products of one output pixel and channel, added up directly.
    fileprivate func sum(
        _ a: ConvolutionArguments, _ x: SelfTestArray, _ history: SelfTestArray,
        _ w: SelfTestArray, _ pixel: Int, _ output: Int
    ) -> Float {
        let (outWidth, outHeight) = (Int(a.outWidth), Int(a.outHeight))
        let left = pixel % outWidth * spatialStride - Int(a.padLeft)
        let top = pixel / outWidth % outHeight * spatialStride - Int(a.padTop)
        let start = pixel / outWidth / outHeight * timeStride - zeros
        let scale = upsample ? 2 : 1
        var sum = 0.0
        for kt in 0..<kernel.0 where start + kt >= 0 {
            for kh in 0..<kernel.1 where (0..<height * scale).contains(top + kh) {
                for kw in 0..<kernel.2 where (0..<width * scale).contains(left + kw) {
                    let time = start + kt
                    let (source, frame) =
                        time < self.history ? (history, time) : (x, time - self.history)
                    let at =
                        ((frame * height + (top + kh) / scale) * width + (left + kw) / scale)
                        * inputs
                    let tap = (kt * kernel.1 + kh) * kernel.2 + kw
                    let weight =
                        (output * kernel.0 * kernel.1 * kernel.2 + tap) * inputs
                    sum += source.dot(at, w, weight, count: inputs)
                }
            }
        }
        return Float(sum)
    }
}
