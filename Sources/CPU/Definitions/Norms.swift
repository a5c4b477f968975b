/// Layer norms, RMS norms, and what the original fuses with them.

import Tensors

extension Definitions {
    /// (x - mean) / sqrt(var + epsilon) of a row in place, f32.
    private func normalizeLayer(
        _ x: UnsafeMutablePointer<Float>, _ n: Int, _ epsilon: Float, _ kind: NormKind
    ) {
        let mean = Vector.sum(x, n) / Float(n)
        var squares = Vector.squaredDistance(x, n, from: mean)
        if kind == .reference {
            // The fast kernel sums over a power of two of lanes and does not mask the surplus ones.
            let lanes = 1 << (Int.bitWidth - (n - 1).leadingZeroBitCount)
            squares += Float(lanes - n) * mean * mean
        }
        let inverse = 1 / (squares / Float(n) + epsilon).squareRoot()
        Vector.map(x, n) { ($0 - mean) * inverse }
    }

    /// See `Backend.modulatedLayerNorm`. LN(x) is rounded to the dtype of x before the modulation.
    func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        let rows = Rows(x)
        let n = rows.columns
        let shift = vector(shift)
        let scale = vector(scale).map { 1 + $0 }
        let result = mapRows(x.shape, dtype ?? x.dtype) { row, out in
            rows.load(row, n, into: out)
            normalizeLayer(out, n, epsilon, kind)
            round(out, n, to: x.dtype)
            Vector.multiply(out, scale, n)
            Vector.add(out, shift, n)
        }
        return quantize(result, to: format)
    }

    /// See `Backend.layerNorm`.
    func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        let rows = Rows(x)
        let n = rows.columns
        let weight = weight.map { vector($0) }
        let bias = bias.map { vector($0) }
        let result = mapRows(x.shape, x.dtype) { row, out in
            rows.load(row, n, into: out)
            normalizeLayer(out, n, epsilon, kind)
            if let weight { Vector.multiply(out, weight, n) }
            if let bias { Vector.add(out, bias, n) }
        }
        return quantize(result, to: format)
    }

    /// A row times rsqrt(mean square + epsilon) times the weight, rounded as `kind` does.
    /// The weight is rounded to `dtype` already where `kind` asks for that.
    private func normalizeRMS(
        _ x: UnsafeMutablePointer<Float>, _ n: Int, _ weight: [Float], _ epsilon: Float,
        _ kind: NormKind, _ dtype: DType
    ) {
        let inverse = 1 / (Vector.sumOfSquares(x, n) / Float(n) + epsilon).squareRoot()
        Vector.scale(x, n, by: inverse)
        if kind == .exact { round(x, n, to: dtype) }
        Vector.multiply(x, weight, n)
    }

    /// See `Backend.rmsNorm`.
    func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        let rows = Rows(x)
        let n = rows.columns
        let weight = vector(weight, roundedTo: kind == .exact ? x.dtype : .f32)
        let result = mapRows(x.shape, x.dtype) { row, out in
            rows.load(row, n, into: out)
            normalizeRMS(out, n, weight, epsilon, kind, x.dtype)
        }
        return quantize(result, to: format)
    }

    /// See `Backend.rmsNormRope`.
    func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        let rows = Rows(x)
        let n = rows.columns
        let weight = vector(weight, roundedTo: kind == .exact ? x.dtype : .f32)
        let half = n / heads / 2
        let (cosine, sine) = (Rows(rope.cosine), Rows(rope.sine))
        let result = mapRows(x.shape, x.dtype) { row, out in
            rows.load(row, n, into: out)
            normalizeRMS(out, n, weight, epsilon, kind, x.dtype)
            round(out, n, to: x.dtype)
            let (c, s) = (cosine.floats(row), sine.floats(row))
            for head in 0..<heads {
                let pairs = out + head * 2 * half
                for i in 0..<half {
                    let (a, b) = (pairs[2 * i], pairs[2 * i + 1])
                    pairs[2 * i] = a * c[i] - b * s[i]
                    pairs[2 * i + 1] = a * s[i] + b * c[i]
                }
            }
        }
        return result.reshaped([rows.count, heads, 2 * half])
    }
}
