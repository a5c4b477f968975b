/// Layer norms, RMS norms, and what the original fuses with them.

import Tensors

extension Definitions {
    /// (x - mean) / sqrt(var + epsilon) of each row in place, f32. x: [rows, n]
    private func normalizeLayer(
        _ x: UnsafeMutablePointer<Float>, rows: Int, _ n: Int, _ epsilon: Float, _ kind: NormKind
    ) {
        // The fast kernel sums over a power of two of lanes and does not mask the surplus ones.
        let lanes = 1 << (Int.bitWidth - (n - 1).leadingZeroBitCount)
        let surplus = kind == .reference ? Float(lanes - n) : 0
        for row in 0..<rows {
            let line = x + row * n
            let mean = Vector.sum(line, n) / Float(n)
            let squares = Vector.squaredDistance(line, n, from: mean) + surplus * mean * mean
            let inverse = 1 / (squares / Float(n) + epsilon).squareRoot()
            Vector.map(line, n) { ($0 - mean) * inverse }
        }
    }

    /// See `Backend.modulatedLayerNorm`. LN(x) is rounded to the dtype of x before the modulation.
    func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        let input = Rows(x)
        let n = input.columns
        let shift = vector(shift)
        let scale = vector(scale).map { 1 + $0 }
        let result = mapRows(x.shape, dtype ?? x.dtype) { rows, out in
            input.load(rows, into: out)
            normalizeLayer(out, rows: rows.count, n, epsilon, kind)
            round(out, rows.count * n, to: x.dtype)
            Vector.mapRows(out, rows: rows.count, scale, n) { $0 * $1 }
            Vector.mapRows(out, rows: rows.count, shift, n) { $0 + $1 }
        }
        return quantize(result, to: format)
    }

    /// See `Backend.layerNorm`.
    func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        let input = Rows(x)
        let n = input.columns
        let weight = weight.map { vector($0) }
        let bias = bias.map { vector($0) }
        let result = mapRows(x.shape, x.dtype) { rows, out in
            input.load(rows, into: out)
            normalizeLayer(out, rows: rows.count, n, epsilon, kind)
            if let weight { Vector.mapRows(out, rows: rows.count, weight, n) { $0 * $1 } }
            if let bias { Vector.mapRows(out, rows: rows.count, bias, n) { $0 + $1 } }
        }
        return quantize(result, to: format)
    }

    /// Each row times rsqrt(mean square + epsilon) times the weight, rounded as `kind` does. x: [rows, n]
    /// The weight is rounded to `dtype` already where `kind` asks for that.
    private func normalizeRMS(
        _ x: UnsafeMutablePointer<Float>, rows: Int, _ n: Int, _ weight: [Float], _ epsilon: Float,
        _ kind: NormKind, _ dtype: DType
    ) {
        for row in 0..<rows {
            let line = x + row * n
            let inverse = 1 / (Vector.sumOfSquares(line, n) / Float(n) + epsilon).squareRoot()
            Vector.scale(line, n, by: inverse)
        }
        if kind == .exact { round(x, rows * n, to: dtype) }
        Vector.mapRows(x, rows: rows, weight, n) { $0 * $1 }
    }

    /// See `Backend.rmsNorm`.
    func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        let input = Rows(x)
        let weight = vector(weight, roundedTo: kind == .exact ? x.dtype : .f32)
        let result = mapRows(x.shape, x.dtype) { rows, out in
            input.load(rows, into: out)
            normalizeRMS(out, rows: rows.count, input.columns, weight, epsilon, kind, x.dtype)
        }
        return quantize(result, to: format)
    }

    /// See `Backend.rmsNormRope`.
    func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        let input = Rows(x)
        let n = input.columns
        let weight = vector(weight, roundedTo: kind == .exact ? x.dtype : .f32)
        let half = n / heads / 2
        let (cosine, sine) = (Rows(rope.cosine), Rows(rope.sine))
        let result = mapRows(x.shape, x.dtype) { rows, out in
            input.load(rows, into: out)
            normalizeRMS(out, rows: rows.count, n, weight, epsilon, kind, x.dtype)
            round(out, rows.count * n, to: x.dtype)
            for (index, row) in rows.enumerated() {
                let (c, s) = (cosine.floats(row), sine.floats(row))
                for head in 0..<heads {
                    let pairs = out + index * n + head * 2 * half
                    for i in 0..<half {
                        let (a, b) = (pairs[2 * i], pairs[2 * i + 1])
                        pairs[2 * i] = a * c[i] - b * s[i]
                        pairs[2 * i + 1] = a * s[i] + b * c[i]
                    }
                }
            }
        }
        return result.reshaped([input.count, heads, 2 * half])
    }
}
