/// Rotary position embedding over time, height and width (RoPE, arXiv 2104.09864).

import Glibc
import Ground
package import Tensors

/// Where a device's tokens stand in the video.
package struct Positions {
    /// Of own tokens, in the order of the sequence.
    package let rope: RotaryTable
    /// Of the whole sequence.
    package let tokens: Int
    /// Videos of a batch: their tokens take turns.
    package var samples = 1
}

/// The pairs of features of a head are divided among the three axes. Pair i of an axis with `width` features is rotated
/// by position * theta^(-2i / width).
package enum RotaryEmbedding {
    static let theta = 10_000.0
    /// Number of positions on each axis for which the published models are made.
    static let longestAxis = 128

    /// The angles of this device's tokens; all are in the order (t, h, w), row-major with w fastest.
    /// size: the grid of tokens → cosine, sine: f32 [own of t * h * w * samples, headDim / 2]
    package static func positions(
        _ size: Extent, headDim: Int, samples: Int = 1, on device: any Backend
    ) -> Positions {
        ensure(
            max(size.t, size.h, size.w) <= longestAxis,
            "RotaryEmbedding: grid \(size) exceeds \(longestAxis)")
        let tokens = size.t * size.h * size.w * samples
        let own = device.membership.sequence(tokens)[device.membership.index]
        let spatial = headDim / 6
        let pairs = (t: headDim / 2 - 2 * spatial, h: spatial, w: spatial)
        let shape: Shape = [own.count, headDim / 2]
        let rope = RotaryTable(
            cosine: device.place(shape, as: .f32) { table(size, pairs, samples, cos).slice(own) },
            sine: device.place(shape, as: .f32) { table(size, pairs, samples, sin).slice(own) })
        return Positions(rope: rope, tokens: tokens, samples: samples)
    }

    /// A function of the angles of all tokens. → f32 [t * h * w * samples, pairs of all axes]
    private static func table(
        _ size: Extent, _ pairs: (t: Int, h: Int, w: Int), _ samples: Int,
        _ function: (Double) -> Double
    ) -> Tensor {
        func values(_ positions: Int, _ pairs: Int) -> [Float] {
            angles(positions, pairs).map { Float(function(Double($0))) }
        }
        let (t, h, w) = (values(size.t, pairs.t), values(size.h, pairs.h), values(size.w, pairs.w))
        let out = Tensor.host(
            [size.t * size.h * size.w * samples, pairs.t + pairs.h + pairs.w], .f32)
        out.withMutable(Float.self) { rows in
            guard var row = rows.baseAddress else { return }
            func append(_ values: [Float], _ position: Int, _ count: Int) {
                values.withUnsafeBufferPointer {
                    row.update(from: $0.baseAddress! + position * count, count: count)
                }
                row += count
            }
            for frame in 0..<size.t {
                for line in 0..<size.h {
                    for column in 0..<size.w * samples {
                        append(t, frame, pairs.t)
                        append(h, line, pairs.h)
                        append(w, column / samples, pairs.w)
                    }
                }
            }
        }
        return out
    }

    /// [positions * pairs]; the products are rounded to f32, as in the original.
    private static func angles(_ positions: Int, _ pairs: Int) -> [Float] {
        (0..<positions).flatMap { position in
            (0..<pairs).map { Float(position) * Float(pow(theta, -Double($0) / Double(pairs))) }
        }
    }
}
