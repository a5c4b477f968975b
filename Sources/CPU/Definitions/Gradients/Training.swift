/// The operations of training: linear layers, element by element, latents, and what moves parameters.

import Glibc
import Ground
import Tensors

extension Definitions {
    func training(_ operation: Operation.Training) -> [Tensor] {
        switch operation {
        case .inputGradient(let o): [inputGradient(o)]
        case .weightGradient(let o): [weightGradient(o)]
        case .normGradient(let o): normGradient(o)
        case .normTangent(let o): [normTangent(o)]
        case .rotate(let o): [rotate(o)]
        case .activate(let o): [activate(o)]
        case .scaleColumns(let o): [scaleColumns(o)]
        case .columnSum(let o): [columnSum(o.x, times: o.other)]
        case .attentionGradient(let o): attentionGradient(o)
        case .attentionTangent(let o): [attentionTangent(o)]
        case .sparseAttentionGradient(let o): sparseAttentionGradient(o)
        case .sparseAttentionTangent(let o): [sparseAttentionTangent(o)]
        case .patchifyGradient(let o): [patchifyGradient(o)]
        case .unpatchifyGradient(let o): [unpatchifyGradient(o)]
        case .cast(let o): [converted(o.x, to: o.dtype)]
        case .dot(let o): [dot(o.a, o.b)]
        case .swapRows(let o): [swapRows(o)]
        case .padRows(let o): [padRows(o)]
        case .adamW(let o): adamW(o)
        case .adamWList: programmingError("adamWList is made of adamW, cast and combine")
        case .squareSum(let o): [squareSum(o)]
        }
    }

    // MARK: Linear layers

    private func inputGradient(_ o: Operation.InputGradient) -> Tensor {
        let result = product(matrix(o.cotangent), dequantized(o.weight))
        return converted(result.tensor, to: o.dtype).reshaped(
            o.cotangent.shape.replacingLast(o.weight.inputs))
    }

    private func weightGradient(_ o: Operation.WeightGradient) -> Tensor {
        product(transposed(matrix(o.cotangent)), matrix(o.x)).tensor
    }

    /// The numbers that a weight's codes stand for. → [out, in]
    private func dequantized(_ weight: LinearWeight) -> Matrix {
        let codes = matrix(weight.matrix)
        func scaled(_ scale: (_ row: Int, _ column: Int) -> Float) -> Matrix {
            matrix(codes.rows, codes.columns) { row, out in
                for column in 0..<codes.columns {
                    out[column] = codes.row(row)[column] * scale(row, column)
                }
            }
        }
        switch weight {
        case .dense: return codes
        case .int8Blocks(_, let scale):
            let (values, columns) = (vector(scale), scale.shape[1])
            return scaled { values[$0 / 128 * columns + $1 / 128] }
        case .fp8Rows(_, let scale):
            let values = vector(scale)
            return scaled { row, _ in values[row] }
        }
    }

    // MARK: Element by element

    private func activate(_ o: Operation.Activate) -> Tensor {
        let (xs, factors) = (Rows(o.x), o.factor.map { Rows($0) })
        return mapRows(o.x.shape, o.x.dtype) { rows, out in
            let count = rows.count * xs.columns
            xs.load(rows, into: out)
            guard let factors else { return Vector.apply(o.activation, out, count) }
            scratch(count) { factor in
                factors.load(rows, into: factor)
                switch o.activation {
                case .none: out.update(from: factor, count: count)
                case .geluTanh: Vector.map(out, factor, count) { geluTanhSlope($0) * $1 }
                case .silu: Vector.map(out, factor, count) { siluSlope($0) * $1 }
                }
            }
        }
    }

    private func scaleColumns(_ o: Operation.ScaleColumns) -> Tensor {
        let xs = Rows(o.x)
        let (factor, shift) = (vector(o.factor), o.shift.map { vector($0) })
        return mapRows(o.x.shape, o.x.dtype) { rows, out in
            xs.load(rows, into: out)
            if o.isOffset {
                Vector.mapRows(out, rows: rows.count, factor, xs.columns) { $0 * (1 + $1) }
            } else {
                Vector.mapRows(out, rows: rows.count, factor, xs.columns) { $0 * $1 }
            }
            if let shift { Vector.mapRows(out, rows: rows.count, shift, xs.columns) { $0 + $1 } }
        }
    }

    /// See `Operation.ColumnSum`.
    func columnSum(_ x: Tensor, times other: Tensor? = nil) -> Tensor {
        let (xs, others) = (Rows(x), other.map { Rows($0) })
        let n = xs.columns
        let sums = rowSums(xs.count, n) { rows, sums in
            scratch(2 * n) { line in
                for row in rows {
                    xs.load(row, n, into: line)
                    if let others {
                        others.load(row, n, into: line + n)
                        for i in 0..<n { sums[i] += Double(line[i]) * Double(line[n + i]) }
                    } else {
                        for i in 0..<n { sums[i] += Double(line[i]) }
                    }
                }
            }
        }
        return vector(of: sums[...])
    }

    // MARK: Latents

    private func patchifyGradient(_ o: Operation.PatchifyGradient) -> Tensor {
        let (size, p) = (o.size, o.patch)
        let channels = o.cotangent.shape[1] / (p * p)
        let tokens = matrix(o.cotangent)
        let result = memory.tensor([channels, size.t, size.h, size.w], .f32)
        let out = result.hostAddress.assumingMemoryBound(to: Float.self)
        let (lines, width) = (size.t * size.h, size.w)
        eachFeature(size, p) { token, row, column, k in
            let features = tokens.row(token)
            for channel in 0..<channels {
                out[(channel * lines + row) * width + column] = features[channel * p * p + k]
            }
        }
        return withExtendedLifetime(tokens) { result }
    }

    private func unpatchifyGradient(_ o: Operation.UnpatchifyGradient) -> Tensor {
        let (shape, p) = (o.cotangent.shape, o.patch)
        let (channels, size) = (shape[0], Extent(t: shape[1], h: shape[2], w: shape[3]))
        let latents = matrix(o.cotangent)
        let tokens = matrix(size.t * (size.h / p) * (size.w / p), p * p * channels)
        let (lines, width) = (size.t * size.h, size.w)
        eachFeature(size, p) { token, row, column, k in
            let features = tokens.row(token)
            for channel in 0..<channels {
                features[k * channels + channel] =
                    latents.base[(channel * lines + row) * width + column]
            }
        }
        return withExtendedLifetime(latents) { converted(tokens.tensor, to: o.dtype) }
    }

    /// Every latent's place: its token, its line among all frames' lines and its column, and its number in the patch.
    private func eachFeature(
        _ size: Extent, _ p: Int,
        _ body: (_ token: Int, _ row: Int, _ column: Int, _ k: Int) -> Void
    ) {
        threads.parallel(size.t * (size.h / p)) { range in
            for line in range {
                for across in 0..<size.w / p {
                    let token = line * (size.w / p) + across
                    for k in 0..<p * p { body(token, line * p + k / p, across * p + k % p, k) }
                }
            }
        }
    }

    // MARK: Parameters

    private func swapRows(_ o: Operation.SwapRows) -> Tensor {
        let (a, b) = (o.x.shape[0], o.x.shape[1])
        let result = memory.tensor(o.results[0].shape, o.x.dtype)
        let size = a * b > 0 ? o.x.byteCount / (a * b) : 0
        let (from, to) = (o.x.hostAddress, result.hostAddress)
        threads.parallel(b) { range in
            for j in range {
                for i in 0..<a {
                    (to + (j * a + i) * size).copyMemory(
                        from: from + (i * b + j) * size, byteCount: size)
                }
            }
        }
        return withExtendedLifetime(o.x) { result }
    }

    private func padRows(_ o: Operation.PadRows) -> Tensor {
        let result = memory.tensor(o.results[0].shape, o.x.dtype)
        let row = o.x.shape[0] > 0 ? o.x.byteCount / o.x.shape[0] : 0
        result.hostAddress.initializeMemory(as: UInt8.self, repeating: 0, count: result.byteCount)
        (result.hostAddress + o.before * row).copyMemory(
            from: o.x.hostAddress, byteCount: o.x.byteCount)
        return withExtendedLifetime(o.x) { result }
    }

    private func squareSum(_ o: Operation.SquareSum) -> Tensor {
        let result = memory.tensor([1], .f64)
        let sum = o.terms.reduce(0.0) { sum, term in
            sum + dot(term, term).withElements(Double.self) { $0[0] }
        }
        result.withMutable(Double.self) { $0[0] = sum }
        return result
    }

    private func dot(_ a: Tensor, _ b: Tensor) -> Tensor {
        let count = a.shape.count
        let (a, b) = (Line(a), Line(b))
        let part = 512
        let sum = rowSums(ceilDivide(count, part), 1) { rows, sum in
            scratch(2 * part) { line in
                for row in rows {
                    let n = min(part, count - row * part)
                    a.rows.load(0, from: row * part, n, into: line)
                    b.rows.load(0, from: row * part, n, into: line + part)
                    for i in 0..<n { sum[0] += Double(line[i]) * Double(line[part + i]) }
                }
            }
        }
        let result = memory.tensor([1], .f64)
        result.withMutable(Double.self) { $0[0] = sum[0] }
        return result
    }

    private func adamW(_ o: Operation.AdamW) -> [Tensor] {
        let s = o.settings
        let count = o.master.shape.count
        let old = [o.master, o.mean, o.square]
        let new = old.map { memory.tensor($0.shape, .f32) }
        let gradient = Line(o.gradient)
        func floats(_ x: Tensor) -> UnsafeMutablePointer<Float> {
            x.hostAddress.assumingMemoryBound(to: Float.self)
        }
        // The powers in f64 of the betas in f32.
        let corrections = (
            Float(1 - pow(Double(s.beta1), Double(s.step))),
            Float(1 - pow(Double(s.beta2), Double(s.step)))
        )
        threads.parallel(count, grain: 16_384) { range in
            scratch(range.count) { g in
                gradient.rows.load(0, from: range.lowerBound, range.count, into: g)
                let w = floats(old[0]), m = floats(old[1]), v = floats(old[2])
                let newW = floats(new[0]), newM = floats(new[1]), newV = floats(new[2])
                for i in range {
                    let g = g[i - range.lowerBound] * s.gradientScale
                    newM[i] = s.beta1 * m[i] + (1 - s.beta1) * g
                    newV[i] = s.beta2 * v[i] + (1 - s.beta2) * g * g
                    let root = (newV[i] / corrections.1).squareRoot() + s.epsilon
                    newW[i] =
                        w[i] - s.learningRate * (newM[i] / corrections.0 / root + s.decay * w[i])
                }
            }
        }
        return withExtendedLifetime(old) { new }
    }
}

/// d silu(x) / dx
@inline(__always)
private func siluSlope(_ x: Lanes) -> Lanes {
    let s = 1 / (1 + exp(-x))
    return s + x * s * (1 - s)
}

/// d geluTanh(x) / dx: gelu is x s with s = 1 / (1 + e^(-2u)).
@inline(__always)
private func geluTanhSlope(_ x: Lanes) -> Lanes {
    let root = Float(0.797_884_560_802_865_4)
    let u = (x * x * x * 0.044715 + x) * root
    let s = 1 / (1 + exp(u * -2))
    return s + x * s * (1 - s) * (x * x * (3 * 0.044715) + 1) * (2 * root)
}
