/// Element-wise operations, and the autoencoder's norm.

import Tensors

extension Definitions {
    func gatedAdd(_ o: Operation.GatedAdd) -> Tensor {
        let (xs, ys, dtype) = (Rows(o.x), Rows(o.y), o.x.dtype)
        let gate = o.gate.map { vector($0, roundedTo: dtype) }
        return mapRows(o.x.shape, dtype) { rows, out in
            let count = rows.count * xs.columns
            ys.load(rows, into: out)
            if o.y.dtype != dtype { round(out, count, to: dtype) }
            if let gate {
                Vector.mapRows(out, rows: rows.count, gate, xs.columns) { $0 * $1 }
                round(out, count, to: dtype)
            }
            scratch(count) { base in
                xs.load(rows, into: base)
                Vector.add(out, base, count)
            }
        }
    }

    func geluGate(_ o: Operation.GELUGate) -> Tensor {
        let (gates, ups, dtype) = (Rows(o.gate), Rows(o.up), o.gate.dtype)
        let result = mapRows(o.gate.shape, dtype) { rows, out in
            let count = rows.count * gates.columns
            gates.load(rows, into: out)
            Vector.apply(.geluTanh, out, count)
            round(out, count, to: dtype)
            scratch(count) { factor in
                ups.load(rows, into: factor)
                Vector.multiply(out, factor, count)
            }
        }
        return quantize(result, to: o.format)
    }

    func rcmStep(_ o: Operation.RCMStep) -> Tensor {
        let (t, next) = (o.t, o.next)
        let result = memory.tensor(o.x.shape, .f64)
        result.withMutable(Double.self) { out in
            o.x.withElements(Double.self) { x in
                o.velocity.withElements(Float.self) { v in
                    guard let noise = o.noise else {
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

    func combine(_ o: Operation.Combine) -> Tensor {
        let shape = o.terms[0].shape
        let count = shape.count
        let sums = memory.tensor(shape, .f64)
        sums.withMutable(Double.self) { sums in
            for (index, (term, coefficient)) in zip(o.terms, o.coefficients).enumerated() {
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
        return converted(sums, to: o.dtype)
    }

    func channelNorm(_ o: Operation.ChannelNorm) -> Tensor {
        let input = Rows(o.x)
        let n = input.columns
        let root = Float(n).squareRoot()
        let gamma = vector(o.gamma).map { $0 * root }
        return mapRows(o.x.shape, o.x.dtype) { rows, out in
            input.load(rows, into: out)
            for row in 0..<rows.count {
                let line = out + row * n
                let inverse = 1 / max(Vector.sumOfSquares(line, n).squareRoot(), 1e-12)
                Vector.map(line, gamma, n) { $0 * inverse * $1 }
            }
            if o.silu { Vector.apply(.silu, out, rows.count * n) }
        }
    }
}
