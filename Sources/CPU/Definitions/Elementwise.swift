/// Operations that go element by element.

import Tensors

extension Definitions {
    /// x + y * gate; see `Backend.gatedAdd`. Gate and product are rounded to the dtype of x.
    func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        let (xs, ys) = (Rows(x), Rows(y))
        let gate = gate.map { vector($0, roundedTo: x.dtype) }
        return mapRows(x.shape, x.dtype) { rows, out in
            let count = rows.count * xs.columns
            ys.load(rows, into: out)
            if y.dtype != x.dtype { round(out, count, to: x.dtype) }
            if let gate {
                Vector.mapRows(out, rows: rows.count, gate, xs.columns) { $0 * $1 }
                round(out, count, to: x.dtype)
            }
            scratch(count) { base in
                xs.load(rows, into: base)
                Vector.add(out, base, count)
            }
        }
    }

    /// gelu_tanh(gate) * up; see `Backend.geluGate`. The activation is rounded to the dtype of gate.
    func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        let (gates, ups) = (Rows(gate), Rows(up))
        let result = mapRows(gate.shape, gate.dtype) { rows, out in
            let count = rows.count * gates.columns
            gates.load(rows, into: out)
            Vector.apply(.geluTanh, out, count)
            round(out, count, to: gate.dtype)
            scratch(count) { factor in
                ups.load(rows, into: factor)
                Vector.multiply(out, factor, count)
            }
        }
        return quantize(result, to: format)
    }

    /// One rCM step in f64; see `Backend.rcmStep`.
    func rcmStep(_ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double) -> Tensor {
        let result = memory.tensor(x.shape, .f64)
        result.withMutable(Double.self) { out in
            x.withElements(Double.self) { x in
                velocity.withElements(Float.self) { v in
                    guard let noise else {
                        for i in out.indices { out[i] = x[i] - (t - next) * Double(v[i]) }
                        return
                    }
                    noise.withElements(Float.self) { noise in
                        for i in out.indices {
                            let clean = x[i] - t * Double(v[i])
                            out[i] = (1 - next) * clean + next * Double(noise[i])
                        }
                    }
                }
            }
        }
        return result
    }

    /// sum_i coefficients[i] * terms[i] in f64; see `Backend.combine`.
    func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        let count = terms[0].shape.count
        let sums = memory.tensor(terms[0].shape, .f64)
        sums.withMutable(Double.self) { sums in
            for (index, (term, coefficient)) in zip(terms, coefficients).enumerated() {
                func add(_ value: (Int) -> Double) {
                    for i in 0..<count {
                        sums[i] = (index == 0 ? 0 : sums[i]) + coefficient * value(i)
                    }
                }
                if term.dtype == .f64 {
                    term.withElements(Double.self) { x in add { x[$0] } }
                } else {
                    term.withElements(Float.self) { x in add { Double(x[$0]) } }
                }
            }
        }
        return converted(sums, to: dtype)
    }

    /// See `Backend.channelNorm`; one rounding, at the end.
    func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        let input = Rows(x)
        let n = input.columns
        let root = Float(n).squareRoot()
        let gamma = vector(gamma).map { $0 * root }
        return mapRows(x.shape, x.dtype) { rows, out in
            input.load(rows, into: out)
            for row in 0..<rows.count {
                let line = out + row * n
                let inverse = 1 / max(Vector.sumOfSquares(line, n).squareRoot(), 1e-12)
                Vector.map(line, gamma, n) { $0 * inverse * $1 }
            }
            if silu { Vector.apply(.silu, out, rows.count * n) }
        }
    }
}
