/// Group norm followed by ReLU, in host memory.

import Checkpoints
import Tensors

/// Normalises each group of channels over the whole video, scales and shifts each channel, and replaces negative numbers
/// by zero (group norm, arXiv 1803.08494, and ReLU).
struct GroupNorm {
    static let groups = 8
    private static let epsilon = 1e-5
    private let weight, bias: [Float]

    /// weights: has `weight` and `bias`, [channels]
    init(_ weights: Weights, channels: Int) throws(CheckpointError) {
        weight = try weights.host("weight", [channels]).floats()
        bias = try weights.host("bias", [channels]).floats()
    }

    /// x: f32 [..., channels] → f32 of that shape
    func callAsFunction(_ x: Tensor) -> Tensor {
        let channels = weight.count
        let positions = x.shape.count / channels
        var sums = [Double](repeating: 0, count: channels)
        var squares = sums
        x.withElements(Float.self) { values in
            for position in 0..<positions {
                for channel in 0..<channels {
                    let value = Double(values[position * channels + channel])
                    sums[channel] += value
                    squares[channel] += value * value
                }
            }
        }
        let width = channels / Self.groups
        let count = Double(width * positions)
        var (scale, shift) = (weight, bias)
        for group in 0..<Self.groups {
            let members = group * width..<(group + 1) * width
            let mean = sums[members].reduce(0, +) / count
            let variance = squares[members].reduce(0, +) / count - mean * mean
            let factor = 1 / (variance + Self.epsilon).squareRoot()
            for channel in members {
                scale[channel] = weight[channel] * Float(factor)
                shift[channel] = bias[channel] - Float(mean * factor) * weight[channel]
            }
        }
        let y = Tensor.host(x.shape, .f32)
        x.withElements(Float.self) { values in
            y.withMutable(Float.self) { result in
                for position in 0..<positions {
                    for channel in 0..<channels {
                        let index = position * channels + channel
                        result[index] = max(0, values[index] * scale[channel] + shift[channel])
                    }
                }
            }
        }
        return y
    }
}
