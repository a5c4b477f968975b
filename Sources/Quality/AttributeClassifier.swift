/// Looks at a video and says what is in it: eight attributes, each one of a few classes.

import Checkpoints
public import Media
import Pipelines
import Tensors

/// A small convolutional network over every fourth frame at half size. Trained on the procedural clips that nano
/// was trained on, it is wrong in 2 % of their attributes.
public struct AttributeClassifier: Sendable {
    private struct Layer: Sendable {
        let convolution: VolumeConvolution
        let norm: VolumeGroupNorm
    }

    private let layers: [Layer]
    private let reduction: VolumeConvolution
    private let hidden: VectorLinear
    private let heads: [VectorLinear]
    private let path: String
    /// Only every fourth frame is looked at.
    static let frameStep = 4

    /// Reads the weights: convolutions `c1` … `c5` with norms `n.0` … `n.4`, `red`, `fc` and `heads.*`.
    public init(path: String) throws {
        try self.init(try openCheckpoint(path))
    }

    init(_ checkpoint: any Checkpoint) throws {
        // Nothing is placed on a device: the layers keep their weights themselves.
        let weights = Weights(checkpoint, on: NullBackend(), activations: .f32)
        path = checkpoint.path
        let shapes: [(kernel: Extent, stride: Extent, padding: Extent)] = [
            (Extent(1, 5, 5), Extent(1, 2, 2), Extent(0, 2, 2)),
            (Extent(3, 3, 3), Extent(1, 2, 2), Extent(1, 1, 1)),
            (Extent(3, 3, 3), Extent(1, 2, 2), Extent(1, 1, 1)),
            (Extent(3, 3, 3), Extent(2, 2, 2), Extent(1, 1, 1)),
            (Extent(3, 3, 3), Extent(2, 1, 1), Extent(1, 1, 1)),
        ]
        var channels = 3
        var layers: [Layer] = []
        for (index, shape) in shapes.enumerated() {
            let convolution = try VolumeConvolution(
                weights["c\(index + 1)"], from: channels, kernel: shape.kernel,
                stride: shape.stride, padding: shape.padding)
            channels = convolution.outputs
            guard channels % VolumeGroupNorm.groups == 0 else {
                throw RequestError(
                    "\(path): c\(index + 1) has \(channels) outputs, expected a multiple of "
                        + "\(VolumeGroupNorm.groups)")
            }
            layers.append(
                Layer(
                    convolution: convolution,
                    norm: try VolumeGroupNorm(weights["n"][index], channels: channels)))
        }
        self.layers = layers
        reduction = try VolumeConvolution(
            weights["red"], from: channels, kernel: Extent(1, 1, 1), stride: Extent(1, 1, 1),
            padding: Extent(0, 0, 0))
        let width = weights["fc"].shape("weight") ?? [0, 0]
        hidden = try VectorLinear(weights["fc"], from: width.last ?? 0, to: width.first ?? 0)
        var heads: [VectorLinear] = []
        for attribute in Attribute.allCases {
            heads.append(
                try VectorLinear(
                    weights["heads"][attribute.rawValue], from: width.first ?? 0,
                    to: attribute.classes.count))
        }
        self.heads = heads
    }

    /// Throws where the weights were made for videos of another size.
    public func check(frames: Int, width: Int, height: Int) throws {
        var size = Extent((frames - 1) / Self.frameStep + 1, height / 2, width / 2)
        for layer in layers { size = layer.convolution.size(of: size) }
        let features = size.count * reduction.outputs + 2 * reduction.inputs
        guard features == hidden.inputs else {
            throw RequestError(
                "\(path) classifies videos of another size: \(frames) frames of \(width)x\(height) "
                    + "give \(features) features, it takes \(hidden.inputs)")
        }
    }

    /// Scores of all classes, for each attribute in the order of `Attribute.allCases`.
    public func logits(_ video: Video) -> [[Float]] {
        var x = Self.input(video)
        for layer in layers {
            x = layer.convolution(x)
            layer.norm(&x)
        }
        let features = reduction(x).channelsFirst + Self.means(x) + Self.maxima(x)
        let activations = hidden(features).map { max(0, $0) }
        return heads.map { $0(activations) }
    }

    /// The most likely class of each attribute.
    public func classes(_ video: Video) -> [Int] {
        logits(video).map { scores in scores.indices.max { scores[$0] < scores[$1] } ?? 0 }
    }

    /// Every fourth frame, averages of 2x2 pixels, in -1 ... 1. → [frames, height / 2, width / 2, 3]
    static func input(_ video: Video) -> Volume {
        let size = Extent(
            (video.count - 1) / frameStep + 1, video.height / 2, video.width / 2)
        var values = [Float](repeating: 0, count: size.count * 3)
        let row = 3 * video.width
        video.pixels.withUnsafeBufferPointer { pixels in
            for line in 0..<size.t * size.h {
                let (frame, h) = (line / size.h * frameStep, line % size.h)
                let upper = (frame * video.height + 2 * h) * row
                for w in 0..<size.w {
                    for channel in 0..<3 {
                        let corner = upper + 6 * w + channel
                        let sum =
                            Int(pixels[corner]) + Int(pixels[corner + 3])
                            + Int(pixels[corner + row]) + Int(pixels[corner + row + 3])
                        values[(line * size.w + w) * 3 + channel] =
                            Float(sum) / 4 / 127.5 - 1
                    }
                }
            }
        }
        return Volume(size: size, channels: 3, values: values)
    }

    private static func means(_ x: Volume) -> [Float] {
        folded(x, from: 0, +).map { $0 / Float(x.size.count) }
    }

    private static func maxima(_ x: Volume) -> [Float] { folded(x, from: -.infinity, max) }

    /// Each channel over time and space.
    private static func folded(
        _ x: Volume, from start: Float, _ combine: (Float, Float) -> Float
    ) -> [Float] {
        var result = [Float](repeating: start, count: x.channels)
        for (index, value) in x.values.enumerated() {
            result[index % x.channels] = combine(result[index % x.channels], value)
        }
        return result
    }
}
