/// Rows of the table: the convolutions of the video autoencoder.

import Tensors

/// A different order of summation changes the rounding to bf16 here and there.
private let product = Tolerance(relativeL2: 1.5e-3)

/// The shape of one convolution.
struct ConvolutionLayer: CustomStringConvertible {
    var frames, height, width, inputs, outputs: Int
    var kernel: (Int, Int, Int)
    /// Frames before those of x: kept from before, and zeros before these.
    var history, zeros: Int
    var timeStride, stride: Int
    var upsample, adds: Bool
    /// Rows of x that are another device's.
    var above, below: Int

    /// - Parameter outputs: output channels, as `inputs` are the input channels.
    init(
        _ frames: Int, _ height: Int, _ width: Int, _ inputs: Int, to outputs: Int,
        kernel: (Int, Int, Int) = (3, 3, 3), history: Int = 0, zeros: Int = 0, timeStride: Int = 1,
        stride: Int = 1, upsample: Bool = false, adds: Bool = false, above: Int = 0,
        below: Int = 0
    ) {
        (self.frames, self.height, self.width) = (frames, height, width)
        (self.inputs, self.outputs, self.kernel) = (inputs, outputs, kernel)
        (self.history, self.zeros, self.timeStride) = (history, zeros, timeStride)
        (self.stride, self.upsample, self.adds) = (stride, upsample, adds)
        (self.above, self.below) = (above, below)
    }

    var padding: SpatialPadding { stride == 1 ? .same : .bottomRight }

    /// "2+4x480x832 96->96 333 add"
    var description: String {
        "\(history)+\(frames)x\(height)x\(width) \(inputs)->\(outputs) "
            + "\(kernel.0)\(kernel.1)\(kernel.2)"
            + (zeros > 0 ? " zeros \(zeros)" : "") + (timeStride > 1 ? " time/2" : "")
            + (stride > 1 ? " space/2" : "") + (upsample ? " up" : "") + (adds ? " add" : "")
            + (above + below > 0 ? " halo \(above) \(below)" : "")
    }

    func extent(_ size: Int, kernel: Int) -> Int {
        stride > 1 ? (size + 1 - kernel) / stride + 1 : upsample ? 2 * size : size
    }
}

/// Shapes for each kernel, with channels that fill its tiles and channels that do not.
private let awkward: [ConvolutionLayer] = [
    .init(1, 6, 8, 16, to: 24, zeros: 2),
    .init(4, 5, 7, 24, to: 24, history: 2, adds: true),
    .init(2, 9, 13, 48, to: 24, history: 1, zeros: 1),
    .init(3, 20, 36, 96, to: 96, history: 2, adds: true),
    .init(3, 10, 18, 192, to: 192, zeros: 2),
    .init(2, 5, 18, 384, to: 384, history: 2, adds: true),
    .init(1, 10, 18, 96, to: 200, history: 2),
    .init(2, 10, 18, 16, to: 384, history: 2),
    .init(2, 9, 13, 24, to: 20, history: 1, adds: true),
    // To pixels and from them.
    .init(3, 20, 36, 96, to: 3, history: 2),
    .init(4, 9, 11, 24, to: 3, history: 2),
    .init(3, 20, 36, 3, to: 96, history: 2),
    // One pixel.
    .init(3, 5, 7, 40, to: 16, kernel: (1, 1, 1)),
    .init(3, 10, 18, 192, to: 384, kernel: (1, 1, 1), adds: true),
    .init(3, 10, 18, 96, to: 8, kernel: (1, 1, 1)),
    .init(3, 10, 18, 96, to: 200, kernel: (1, 1, 1)),
    // Twice as large, and half as large.
    .init(2, 5, 6, 48, to: 24, kernel: (1, 3, 3), upsample: true),
    .init(
        3, 11, 17, 192, to: 96, kernel: (1, 3, 3),
        upsample: true),
    .init(
        1, 10, 18, 384, to: 192, kernel: (1, 3, 3),
        upsample: true),
    .init(3, 20, 36, 96, to: 96, kernel: (1, 3, 3), stride: 2),
    .init(2, 21, 35, 48, to: 48, kernel: (1, 3, 3), stride: 2),
    .init(2, 21, 35, 192, to: 192, kernel: (1, 3, 3), stride: 2),
    // A device's rows of a picture, with those of its neighbours.
    .init(3, 21, 36, 96, to: 96, history: 2, adds: true, above: 1),
    .init(2, 12, 18, 192, to: 192, history: 2, above: 1, below: 1),
    .init(2, 7, 13, 24, to: 20, history: 1, adds: true, below: 1),
    .init(3, 12, 17, 192, to: 96, kernel: (1, 3, 3), upsample: true, above: 1, below: 1),
    .init(2, 6, 7, 48, to: 24, kernel: (1, 3, 3), upsample: true, above: 1),
    .init(2, 21, 35, 192, to: 192, kernel: (1, 3, 3), stride: 2, below: 1),
    // In time.
    .init(
        4, 10, 18, 192, to: 192, kernel: (3, 1, 1), history: 1,
        timeStride: 2),
    .init(1, 5, 6, 24, to: 48, kernel: (3, 1, 1), zeros: 2),
    .init(3, 10, 18, 192, to: 384, kernel: (3, 1, 1), history: 2),
]

/// The autoencoder at 480p: four frames per chunk.
private let published: [ConvolutionLayer] = [
    .init(4, 480, 832, 96, to: 96, history: 2),
    .init(4, 480, 832, 96, to: 96, history: 2, adds: true),
    .init(4, 240, 416, 192, to: 192, history: 2),
    .init(2, 120, 208, 384, to: 384, history: 2),
    .init(1, 60, 104, 384, to: 384, history: 2),
    .init(
        4, 240, 416, 192, to: 96, kernel: (1, 3, 3),
        upsample: true),
    .init(4, 480, 832, 96, to: 3, history: 2),
    .init(4, 480, 832, 96, to: 96, kernel: (1, 3, 3), stride: 2),
]

extension OperationTable.Rows {
    mutating func addConvolutions() {
        for dtype in [DType.f32, .bf16] {
            add(
                "convolution", "\(dtype)", dtype == .f32 ? single : product, right: awkward,
                fast: dtype == .bf16 ? published : []
            ) { $0.convolution($1, dtype) }
        }
    }
}

extension Operands {
    func convolution(_ layer: ConvolutionLayer, _ dtype: DType) -> () -> Tensor {
        let (kt, kh, kw) = layer.kernel
        let rows = window(
            1, layer.height, to: layer.extent(layer.height - layer.above - layer.below, kernel: kh))
        let columns = window(2, layer.width, to: layer.extent(layer.width, kernel: kw))
        let (inputs, outputs) = (
            Axis(layer.inputs), axis(3, layer.outputs, part: 8)
        )
        func frames(_ count: Int) -> Tensor {
            normal([Axis(count), rows.input, columns.input, inputs], dtype)
        }
        let x = frames(layer.frames)
        let history = layer.history > 0 ? frames(layer.history) : nil
        let taps = kt * kh * kw * layer.inputs
        let kernel = normal(
            [outputs, inputs, Axis(kt), Axis(kh), Axis(kw)], dtype,
            scale: 1 / Float(taps).squareRoot())
        let weight = device.place(
            convolution: kernel, bias: normal([outputs]), as: dtype, in: nil)
        let times =
            (layer.zeros + layer.history + layer.frames - kt) / layer.timeStride + 1
        let residual =
            layer.adds
            ? normal([Axis(times), rows.output, columns.output, outputs], dtype) : nil
        return { [device] in
            device.convolution(
                HaloedFrames(x, above: layer.above, below: layer.below), history: history,
                leadingZeros: layer.zeros, weight,
                timeStride: layer.timeStride, spatialStride: layer.stride,
                padding: layer.padding, upsample: layer.upsample, residual: residual)
        }
    }
}
