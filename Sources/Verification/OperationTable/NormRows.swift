/// Rows of the table: norms and elementwise operations on tokens.

import Tensors

extension OperationTable.Rows {
    mutating func addNorms() {
        let right = [[1, 96], [7, 77], [33, 200], [130, 1536], [5, 5120]]
        let fast = [[32760, 1536], [75600, 5120]]
        for dtype in [DType.f32, .bf16] {
            for kind in [NormKind.exact, .reference] {
                addNorms(dtype, kind, .plain, right, dtype == .bf16 && kind == .exact ? fast : [])
            }
            for format in [LinearFormat.int8Blocks, .fp8Rows] {
                addNorms(dtype, .exact, format, right, dtype == .bf16 ? fast : [])
            }
            add("gatedAdd", "\(dtype)", tolerance(dtype), right: right, fast: [[32760, 1536]]) {
                o, size in
                let (x, y) = (o.rows(size, dtype), o.rows(size, dtype))
                let gate = o.normal([size[1]])
                return { o.device.gatedAdd(x, y, gate: gate) }
            }
            add("geluGate", "\(dtype)", tolerance(dtype), right: right, fast: [[512, 10240]]) {
                o, size in
                let (x, y) = (o.rows(size, dtype), o.rows(size, dtype))
                return { o.device.geluGate(x, y, format: .plain) }
            }
            // Pixels of a chunk of four frames at 480p. An autoencoder's pixels are narrower than a transformer's rows: the
            // kernels keep a pixel in the registers of a warp.
            add(
                "channelNorm", "\(dtype)", tolerance(dtype),
                right: right.filter { $0[1] <= 2048 } + [[77, 24], [9, 3]],
                fast: dtype == .bf16 ? [[4 * 480 * 832, 96], [4 * 240 * 416, 192]] : []
            ) { o, size in
                let x = o.rows(size, dtype)
                let gamma = o.normal([size[1]], offset: 1)
                return { o.device.channelNorm(x, gamma: gamma, silu: true) }
            }
            addRope(dtype)
        }
        // The normalised row is rounded to bf16: a different order of summation changes an element here and there.
        add(
            "modulatedLayerNorm", "bf16 to f32", Tolerance(relativeL2: 5e-4), right: right,
            fast: [[32760, 1536]]
        ) { o, size in
            let x = o.rows(size, .bf16, offset: 0.5)
            let (shift, scale) = (o.normal([size[1]]), o.normal([size[1]]))
            return {
                o.device.modulatedLayerNorm(
                    x, shift: shift, scale: scale, epsilon: 1e-6, kind: .exact, format: .plain,
                    dtype: .f32)
            }
        }
    }

    /// right, fast: [rows, columns]
    private mutating func addNorms(
        _ dtype: DType, _ kind: NormKind, _ format: LinearFormat, _ right: [[Int]],
        _ fast: [[Int]]
    ) {
        let variant = "\(dtype) \(format == .plain ? "\(kind)" : "to \(format)")"
        let limit = format == .plain ? tolerance(dtype) : half
        // The mean matters: the two kinds of norm differ by it.
        add("layerNorm", variant, limit, right: right) { o, size in
            let x = o.rows(size, dtype, offset: 0.5)
            let (weight, bias) = (o.normal([size[1]], offset: 1), o.normal([size[1]]))
            return {
                o.device.layerNorm(
                    x, weight: weight, bias: bias, epsilon: 1e-6, kind: kind, format: format)
            }
        }
        add("modulatedLayerNorm", variant, limit, right: right, fast: fast) { o, size in
            let x = o.rows(size, dtype, offset: 0.5)
            let (shift, scale) = (o.normal([size[1]]), o.normal([size[1]]))
            return {
                o.device.modulatedLayerNorm(
                    x, shift: shift, scale: scale, epsilon: 1e-6, kind: kind, format: format,
                    dtype: nil)
            }
        }
        for weightType in dtype == .f32 ? [dtype] : [.f32, dtype] {
            add("rmsNorm", "\(variant) by \(weightType)", limit, right: right, fast: fast) {
                o, size in
                let x = o.rows(size, dtype)
                let weight = o.normal([size[1]], weightType, offset: 1)
                return {
                    o.device.rmsNorm(
                        x, weight: weight, epsilon: 1e-6, kind: kind, format: format)
                }
            }
        }
    }

    /// Sizes: [tokens, heads, headDim]
    private mutating func addRope(_ dtype: DType) {
        for weightType in dtype == .f32 ? [dtype] : [.f32, dtype] {
            add(
                "rmsNormRope", "\(dtype) by \(weightType)", tolerance(dtype),
                right: [[15, 2, 64], [9, 3, 128], [130, 12, 128], [5, 40, 128], [7, 3, 12]],
                fast: dtype == .bf16 ? [[32760, 12, 128], [75600, 40, 128]] : []
            ) { o, size in
                let (tokens, heads) = (o.axis(0, size[0]), size[1])
                let x = o.normal([tokens, Axis(heads * size[2])], dtype)
                let weight = o.normal([heads * size[2]], weightType, offset: 1)
                let rope = RotaryTable(
                    cosine: o.normal([tokens, Axis(size[2] / 2)]),
                    sine: o.normal([tokens, Axis(size[2] / 2)]))
                return {
                    o.device.rmsNormRope(
                        x, weight: weight, epsilon: 1e-6, kind: .exact, rope: rope, heads: heads)
                }
            }
        }
    }
}

extension Operands {
    /// Rows that operations treat one by one (for 8-bit blocks, 128 together). size: [rows, columns]
    fileprivate func rows(_ size: [Int], _ dtype: DType, offset: Float = 0) -> Tensor {
        normal([axis(0, size[0]), Axis(size[1])], dtype, offset: offset)
    }
}
