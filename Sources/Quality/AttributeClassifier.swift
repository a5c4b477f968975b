/// Recognises what a video shows: eight attributes, each with a few classes.

public import Checkpoints
public import Media
import Models
public import Tensors

/// A small convolutional network over every fourth frame at half size, in f32. It was trained on the procedural clips
/// that nano was trained on, and is wrong about 2 % of their attributes. To be used on the thread of its device only.
public struct AttributeClassifier {
    private let layers: [ClassifierLayer]
    private let reduction, hidden: Linear
    private let heads: [Linear]
    private let path: String
    private let device: any Backend
    /// The network sees only every fourth frame.
    static let frameStep = 4

    /// Reads the weights: convolutions `c1` … `c5` with norms `n.0` … `n.4`, `red`, `fc` and `heads.*`.
    /// - Throws: `CheckpointError`, or ``QualityError/classifier(path:reason:)``.
    public init(_ checkpoint: any Checkpoint, on device: any Backend) throws {
        let weights = Weights(checkpoint, on: device, activations: .f32)
        var channels = 3
        var layers: [ClassifierLayer] = []
        for (kernel, strides) in [
            (Extent(t: 1, h: 5, w: 5), (1, 2)), (Extent(t: 3, h: 3, w: 3), (1, 2)),
            (Extent(t: 3, h: 3, w: 3), (1, 2)), (Extent(t: 3, h: 3, w: 3), (2, 2)),
            (Extent(t: 3, h: 3, w: 3), (2, 1)),
        ] {
            let part = weights["c\(layers.count + 1)"]
            let outputs = part.shape("weight")?.first ?? 0
            guard outputs > 0, outputs % GroupNorm.groups == 0 else {
                throw QualityError.classifier(
                    path: checkpoint.path,
                    reason: "\(part.path) has \(outputs) outputs, expected a multiple of "
                        + "\(GroupNorm.groups)")
            }
            let convolution = device.place(
                convolution: try part.host(
                    "weight", [outputs, channels, kernel.t, kernel.h, kernel.w]),
                bias: try part.host("bias", [outputs]), as: .f32, in: nil)
            layers.append(
                ClassifierLayer(
                    convolution: convolution,
                    norm: try GroupNorm(weights["n"][layers.count], channels: outputs),
                    strides: strides))
            channels = outputs
        }
        self.layers = layers
        func linear(_ weights: Weights, from inputs: Int? = nil, to outputs: Int? = nil) throws
            -> Linear
        {
            let shape = weights.shape("weight") ?? []
            return try Linear(
                weights, from: inputs ?? shape.last ?? 0, to: outputs ?? shape.first ?? 0)
        }
        reduction = try linear(weights["red"], from: channels)
        let hidden = try linear(weights["fc"])
        self.hidden = hidden
        heads = try Attribute.allCases.map {
            try linear(
                weights["heads"][$0.rawValue], from: hidden.weight.outputs, to: $0.classes.count)
        }
        path = checkpoint.path
        self.device = device
    }

    /// Throws if the weights were made for videos of another size.
    public func check(frames: Int, width: Int, height: Int) throws {
        var shape = Self.inputShape(frames: frames, width: width, height: height)
        for layer in layers { shape = layer.output(shape) }
        let channels = shape[3]
        let positions = shape.count / channels
        let features = positions * reduction.weight.outputs + 2 * channels
        guard features == hidden.weight.inputs else {
            throw QualityError.classifier(
                path: path,
                reason: "it classifies videos of another size: \(frames) frames of "
                    + "\(width)x\(height) give \(features) features, it takes "
                    + "\(hidden.weight.inputs)")
        }
    }

    /// The scores of all classes, for each attribute in the order of `Attribute.allCases`. The video must have the size
    /// that `check` accepts.
    public func logits(_ video: Video) -> [[Float]] {
        var x = Self.input(video)
        for layer in layers { x = layer(x, on: device) }
        // [positions, channels]
        let rows = x.reshaped([x.shape.rows, x.shape.columns])
        let reduced = device.read(reduction(device.place(rows, as: .f32), on: device))
        let features =
            Self.columns(of: reduced).joined()
            + Self.columns(of: rows).map { column in
                column.reduce(0, +) / Float(column.count)
            } + Self.columns(of: rows).map { $0.max() ?? 0 }
        let input = device.place(Tensor(Array(features), [1, features.count]), as: .f32)
        let activations = device.read(hidden(input, on: device)).floats().map { max(0, $0) }
        let last = device.place(Tensor(activations, [1, activations.count]), as: .f32)
        return heads.map { device.read($0(last, on: device)).floats() }
    }

    /// The most likely class of each attribute.
    public func classes(_ video: Video) -> [Int] {
        logits(video).map { scores in scores.indices.max { scores[$0] < scores[$1] } ?? 0 }
    }

    /// For each attribute, whether the video shows what its caption asked for. The share of true ones is the video's
    /// score.
    public func agreement(of video: Video, with caption: Caption) -> [Bool] {
        zip(classes(video), caption.answers).map { $0 == $1 }
    }

    private static func inputShape(frames: Int, width: Int, height: Int) -> Shape {
        [(frames - 1) / frameStep + 1, height / 2, width / 2, 3]
    }

    /// Every fourth frame, with 2x2 pixels averaged, in -1 ... 1. → f32 [frames, height / 2, width / 2, 3] in host memory
    static func input(_ video: Video) -> Tensor {
        let shape = inputShape(frames: video.count, width: video.width, height: video.height)
        var values = [Float](repeating: 0, count: shape.count)
        let row = 3 * video.width
        video.pixels.withUnsafeBufferPointer { pixels in
            for line in 0..<shape[0] * shape[1] {
                let (frame, h) = (line / shape[1] * frameStep, line % shape[1])
                let upper = (frame * video.height + 2 * h) * row
                for w in 0..<shape[2] {
                    for channel in 0..<3 {
                        let corner = upper + 6 * w + channel
                        let sum =
                            Int(pixels[corner]) + Int(pixels[corner + 3])
                            + Int(pixels[corner + row]) + Int(pixels[corner + row + 3])
                        values[(line * shape[2] + w) * 3 + channel] =
                            Float(sum) / 4 / 127.5 - 1
                    }
                }
            }
        }
        return Tensor(values, shape)
    }

    /// The columns of a matrix in host memory.
    private static func columns(of matrix: Tensor) -> [[Float]] {
        let values = matrix.floats()
        let count = matrix.shape.columns
        return (0..<count).map { column in
            stride(from: column, to: values.count, by: count).map { values[$0] }
        }
    }
}

/// A convolution, group norm and ReLU.
private struct ClassifierLayer {
    let convolution: ConvolutionWeight
    let norm: GroupNorm
    /// Strides in time, and in height and width.
    let strides: (time: Int, space: Int)
    /// Frames of zeros before the first one and after the last one.
    private var padding: Int { (convolution.time - 1) / 2 }

    /// [T, H, W, in] → [T', H', W', out]
    func output(_ shape: Shape) -> Shape {
        ConvolutionGeometry(
            [shape[0] + padding, shape[1], shape[2], shape[3]], history: nil,
            leadingZeros: padding, convolution, timeStride: strides.time,
            spatialStride: strides.space, padding: .same, upsample: false
        ).output
    }

    /// x: f32 [T, H, W, in] → f32 [T', H', W', out], both in host memory
    func callAsFunction(_ x: Tensor, on device: any Backend) -> Tensor {
        let zeros = Tensor.zeros(Shape([padding] + x.shape.tail.dimensions), .f32)
        let frames = [x, zeros].prefix(padding > 0 ? 2 : 1).map { device.place($0, as: .f32) }
        let y = device.convolution(
            frames.count > 1 ? device.concatenate(frames) : frames[0], history: nil,
            leadingZeros: padding, convolution, timeStride: strides.time,
            spatialStride: strides.space, padding: .same, upsample: false, residual: nil)
        return norm(device.read(y))
    }
}
