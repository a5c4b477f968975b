/// Derivatives of layer and RMS norms, and rotation alone.

import Ground
import Tensors

extension Definitions {
    /// Row by row: h, the normalised row, in place of x; its scale s is returned. x: [n]
    private static func normalize(
        _ x: UnsafeMutablePointer<Float>, _ n: Int, _ epsilon: Float,
        _ normalization: Operation.Normalization
    ) -> Float {
        var mean: Float = 0
        let squares: Float
        switch normalization {
        case .layer:
            mean = Vector.sum(x, n) / Float(n)
            squares = Vector.squaredDistance(x, n, from: mean)
        case .rms: squares = Vector.sumOfSquares(x, n)
        }
        let scale = 1 / (squares / Float(n) + epsilon).squareRoot()
        let center = mean
        Vector.map(x, n) { ($0 - center) * scale }
        return scale
    }

    /// u <- s (u - mean(u) - h mean(h u)), without mean(u) for an RMS norm.
    private static func applyJacobian(
        _ u: UnsafeMutablePointer<Float>, _ h: UnsafePointer<Float>, _ n: Int, scale: Float,
        _ normalization: Operation.Normalization
    ) {
        let mean = normalization == .layer ? Vector.sum(u, n) / Float(n) : 0
        let along = Vector.dot(h, u, n) / Float(n)
        Vector.map(u, h, n) { ($0 - mean - $1 * along) * scale }
    }

    private func gain(_ gain: Tensor?, isOffset: Bool) -> [Float]? {
        gain.map { vector($0).map { isOffset ? 1 + $0 : $0 } }
    }

    func normGradient(_ o: Operation.NormGradient) -> [Tensor] {
        let (xs, gs, n) = (Rows(o.x), Rows(o.cotangent), o.x.shape.columns)
        let gain = gain(o.gain, isOffset: o.isOffset)
        let result = memory.tensor(o.x.shape, o.x.dtype)
        let out = Rows(result)
        let sums = rowSums(xs.count, 2 * n) { rows, sums in
            scratch(2 * n) { h in
                let u = h + n
                for row in rows {
                    xs.load(row, n, into: h)
                    gs.load(row, n, into: u)
                    let scale = Self.normalize(h, n, o.epsilon, o.normalization)
                    for i in 0..<n {
                        sums[i] += Double(u[i]) * Double(h[i])
                        sums[n + i] += Double(u[i])
                    }
                    if let gain { Vector.map(u, gain, n) { $0 * $1 } }
                    Self.applyJacobian(u, h, n, scale: scale, o.normalization)
                    out.store(row, n, u)
                }
            }
        }
        return [result, vector(of: sums[..<n]), vector(of: sums[n...])]
    }

    func normTangent(_ o: Operation.NormTangent) -> Tensor {
        let (xs, ts, n) = (Rows(o.x), Rows(o.tangent), o.x.shape.columns)
        let gain = gain(o.gain, isOffset: o.isOffset)
        return mapRows(o.x.shape, o.dtype) { rows, out in
            ts.load(rows, into: out)
            scratch(n) { h in
                for (index, row) in rows.enumerated() {
                    xs.load(row, n, into: h)
                    let scale = Self.normalize(h, n, o.epsilon, o.normalization)
                    let u = out + index * n
                    Self.applyJacobian(u, h, n, scale: scale, o.normalization)
                    if let gain { Vector.map(u, gain, n) { $0 * $1 } }
                }
            }
        }
    }

    func rotate(_ o: Operation.Rotate) -> Tensor {
        let (input, half, heads) = (Rows(o.x), o.x.shape[2] / 2, o.x.shape[1])
        let (cosine, sine) = (Rows(o.rope.cosine), Rows(o.rope.sine))
        let sign: Float = o.isBackwards ? -1 : 1
        return mapRows(o.x.shape, o.x.dtype) { rows, out in
            input.load(rows, into: out)
            for (index, row) in rows.enumerated() {
                let (c, s) = (cosine.floats(row / heads), sine.floats(row / heads))
                let pairs = out + index * 2 * half
                for i in 0..<half {
                    let (a, b) = (pairs[2 * i], pairs[2 * i + 1])
                    pairs[2 * i] = a * c[i] - sign * b * s[i]
                    pairs[2 * i + 1] = sign * a * s[i] + b * c[i]
                }
            }
        }
    }
}
