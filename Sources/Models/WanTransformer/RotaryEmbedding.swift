/// Rotary position embedding over time, height and width (RoPE, arXiv 2104.09864).

import Glibc
import Ground
package import Tensors

/// The pairs of features of a head are divided among the three axes. Pair i of an axis with `width` features is rotated
/// by position * theta^(-2i / width).
package enum RotaryEmbedding {
    static let theta = 10_000.0
    /// Number of positions on each axis for which the published models are made.
    static let longestAxis = 128

    /// The angles of all tokens, in the order (t, h, w) with w fastest.
    /// size: the grid of tokens → cosine, sine: f32 [t * h * w, headDim / 2]
    package static func table(
        _ size: Extent, headDim: Int, on device: any Backend
    ) -> RotaryTable {
        ensure(
            max(size.t, size.h, size.w) <= longestAxis,
            "RotaryEmbedding: grid \(size) exceeds \(longestAxis)")
        let spatial = headDim / 6
        let pairs = (t: headDim / 2 - 2 * spatial, h: spatial, w: spatial)
        let angles = (
            t: angles(size.t, pairs.t), h: angles(size.h, pairs.h), w: angles(size.w, pairs.w)
        )

        func table(_ function: (Double) -> Double) -> Tensor {
            let t = angles.t.map { Float(function(Double($0))) }
            let h = angles.h.map { Float(function(Double($0))) }
            let w = angles.w.map { Float(function(Double($0))) }
            let out = Tensor.host([size.t * size.h * size.w, headDim / 2], .f32)
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
                        for column in 0..<size.w {
                            append(t, frame, pairs.t)
                            append(h, line, pairs.h)
                            append(w, column, pairs.w)
                        }
                    }
                }
            }
            return device.place(out, as: .f32)
        }
        return RotaryTable(cosine: table(cos), sine: table(sin))
    }

    /// [positions * pairs]; the products are rounded to f32, as in the original.
    private static func angles(_ positions: Int, _ pairs: Int) -> [Float] {
        (0..<positions).flatMap { position in
            (0..<pairs).map { Float(position) * Float(pow(theta, -Double($0) / Double(pairs))) }
        }
    }
}
