/// Layer norms, RMS norms, and what is fused with them.

import Tensors

extension Definitions {
    /// Replaces each row by (x - mean) / sqrt(var + epsilon), in f32. x: [rows, n]
    private func normalizeLayer(
        _ x: UnsafeMutablePointer<Float>, rows: Int, _ n: Int, _ epsilon: Float, _ kind: NormKind
    ) {
        // The original's fast kernel pads rows with zeros to a power of two and does not mask the padding.
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

    func modulatedLayerNorm(_ o: Operation.ModulatedLayerNorm) -> Tensor {
        let input = Rows(o.x)
        let n = input.columns
        let shift = vector(o.shift)
        let scale = vector(o.scale).map { 1 + $0 }
        let result = mapRows(o.x.shape, o.resultType) { rows, out in
            input.load(rows, into: out)
            normalizeLayer(out, rows: rows.count, n, o.epsilon, o.kind)
            round(out, rows.count * n, to: o.x.dtype)
            Vector.mapRows(out, rows: rows.count, scale, n) { $0 * $1 }
            Vector.mapRows(out, rows: rows.count, shift, n) { $0 + $1 }
        }
        return quantize(result, to: o.format)
    }

    func layerNorm(_ o: Operation.LayerNorm) -> Tensor {
        let input = Rows(o.x)
        let n = input.columns
        let weight = o.weight.map { vector($0) }
        let bias = o.bias.map { vector($0) }
        let result = mapRows(o.x.shape, o.x.dtype) { rows, out in
            input.load(rows, into: out)
            normalizeLayer(out, rows: rows.count, n, o.epsilon, o.kind)
            if let weight { Vector.mapRows(out, rows: rows.count, weight, n) { $0 * $1 } }
            if let bias { Vector.mapRows(out, rows: rows.count, bias, n) { $0 + $1 } }
        }
        return quantize(result, to: o.format)
    }

    /// Multiplies each row by rsqrt(mean square + epsilon) and by the weight, rounded as `kind` says. x: [rows, n]
    /// The caller has rounded the weight to `dtype` if `kind` requires that.
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

    func rmsNorm(_ o: Operation.RMSNorm) -> Tensor {
        let (input, dtype) = (Rows(o.x), o.x.dtype)
        let weight = vector(o.weight, roundedTo: o.kind == .exact ? dtype : .f32)
        let result = mapRows(o.x.shape, dtype) { rows, out in
            input.load(rows, into: out)
            normalizeRMS(out, rows: rows.count, input.columns, weight, o.epsilon, o.kind, dtype)
        }
        return quantize(result, to: o.format)
    }

    func rmsNormRope(_ o: Operation.RMSNormRope) -> Tensor {
        let (input, dtype, heads) = (Rows(o.x), o.x.dtype, o.heads)
        let n = input.columns
        let weight = vector(o.weight, roundedTo: o.kind == .exact ? dtype : .f32)
        let half = n / heads / 2
        let (cosine, sine) = (Rows(o.rope.cosine), Rows(o.rope.sine))
        let result = mapRows(o.x.shape, dtype) { rows, out in
            input.load(rows, into: out)
            normalizeRMS(out, rows: rows.count, n, weight, o.epsilon, o.kind, dtype)
            round(out, rows.count * n, to: dtype)
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
