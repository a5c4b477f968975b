/// Rows of the table: linear layers in every format, and quantising.

import Tensors

/// A different order of summation changes the rounding to bf16 here and there.
private let product = Tolerance(relativeL2: 1.5e-3)
/// GPUs sum 128 products of e4m3 at a time, in about 14 bits.
private let eighths = Tolerance(relativeL2: 3e-3)
/// A result in 8 bits: a coarser tanh changes a code here and there, or the largest of a block.
private let codes = Tolerance(relativeL2: 8e-3)

/// [rows, inputs, outputs] of the transformers: 1.3B and 14B at 480p, 14B at 720p.
private let tokensAndWidths = [(32760, 1536, 8960), (32760, 5120, 13824), (75600, 5120, 13824)]
private let projections = tokensAndWidths.map { [$0.0, $0.1, $0.1] }
private let up = tokensAndWidths.map { [$0.0, $0.1, $0.2] }
private let down = tokensAndWidths.map { [$0.0, $0.2, $0.1] }
/// [rows, inputs, outputs] of umT5-xxl, for a long prompt and a short one.
private let text = [
    [512, 4096, 4096], [512, 4096, 10240], [512, 10240, 4096], [64, 4096, 4096],
]

extension OperationTable.Rows {
    mutating func addLinearLayers() {
        let small = [[1, 64, 32], [77, 136, 200], [257, 384, 72]]
        // Inputs that are not a multiple of any vector's length.
        let odd = [[5, 30, 12], [33, 30, 12]]
        for activation in [Activation.none, .geluTanh, .silu] {
            addLinear("f32 \(activation)", .f32, .plain, activation, single, right: small + odd)
            // The last three use different tiles on Hopper.
            addLinear(
                "bf16 \(activation)", .bf16, .plain, activation, product,
                right: activation == .none
                    ? small + odd + [[513, 208, 1544], [1000, 208, 1544], [1100, 72, 3200]] : small,
                fast: activation == .none
                    ? projections + text : activation == .geluTanh ? up : [])
        }
        addLinear("bf16 to f32", .bf16, .plain, as: .f32, single, right: small)
        addLinear("f32 by bf16", .f32, .plain, weight: .bf16, single, right: small + odd)
        for gate in [true, false] {
            let suffix = gate ? " gate" : ""
            addLinearAdd("f32\(suffix)", .f32, .plain, gate: gate, single, right: small)
            addLinearAdd(
                "bf16\(suffix)", .bf16, .plain, gate: gate, product, right: small,
                fast: gate ? projections + down : [])
        }
        addLinearAdd("bf16 to f32", .bf16, .plain, to: .f32, gate: true, single, right: small)
        for format in [LinearFormat.int8Blocks, .fp8Rows] { addQuantized(format) }
    }

    private mutating func addQuantized(_ format: LinearFormat) {
        let isInt8 = format == .int8Blocks
        let bf16 = isInt8 ? product : eighths
        // Outputs that the copy engine of Hopper cannot address, and several tiles of each kind.
        let small = [
            [1, 128, 64], [77, 640, 202], [129, 256, 136], [300, 1152, 392], [513, 208, 1544],
            [1100, 144, 3200],
        ]
        for activation in [Activation.none, .geluTanh, .silu] {
            addLinear(
                "\(format) \(activation)", .bf16, format, activation, bf16, right: small,
                fast: activation == .none
                    ? projections + (isInt8 ? [] : down)
                    : activation == .geluTanh && !isInt8 ? up : [])
            addLinear(
                "\(format) \(activation) to f32", .bf16, format, activation, as: .f32,
                isInt8 ? Tolerance(relativeL2: activation == .none ? 1e-5 : 1e-4) : eighths,
                right: [[300, 1152, 392]])
        }
        addLinear(
            "\(format) gelu to \(format)", .bf16, format, .geluTanh, to: format, codes,
            right: [[300, 1152, 384], [129, 256, 136], [1100, 144, 3200]],
            fast: isInt8 ? up : [])
        for gate in [true, false] {
            addLinearAdd(
                "\(format)\(gate ? " gate" : "")", .bf16, format, gate: gate, bf16, right: small,
                fast: gate && isInt8 ? projections + down : [])
        }
        addLinearAdd(
            "\(format) to f32", .bf16, format, to: .f32, gate: true, isInt8 ? single : eighths,
            right: [[300, 1152, 392]])
        for dtype in [DType.bf16, .f32] {
            add(
                "quantize", "\(dtype) to \(format)", Tolerance(relativeL2: 1e-3),
                right: [[1, 128], [129, 77], [300, 392]],
                fast: dtype == .bf16 ? [[32760, 1536], [75600, 5120]] : []
            ) { o, size in
                let x = o.normal([o.axis(0, size[0]), Axis(size[1])], dtype)
                return { o.device.quantize(x, to: format) }
            }
        }
    }

    /// - Parameters:
    ///   - dtype: the type of x before it is quantised to `format`, and of the weight unless `weight` is given.
    ///   - right, fast: [rows, inputs, outputs]
    private mutating func addLinear(
        _ variant: String, _ dtype: DType, _ format: LinearFormat,
        _ activation: Activation = .none, weight: DType? = nil,
        to output: LinearFormat = .plain,
        as result: DType? = nil, _ tolerance: Tolerance, right: [[Int]], fast: [[Int]] = []
    ) {
        add(
            "linear", variant, tolerance, right: right, fast: fast,
            where: { $0.supports(format) }
        ) { o, size in
            let (x, w, bias, _) = o.linear(size, dtype, weight ?? dtype, format)
            return {
                o.device.linear(
                    x, w, bias: bias, activation: activation, format: output, dtype: result)
            }
        }
    }

    private mutating func addLinearAdd(
        _ variant: String, _ dtype: DType, _ format: LinearFormat, to result: DType? = nil,
        gate: Bool, _ tolerance: Tolerance, right: [[Int]], fast: [[Int]] = []
    ) {
        add(
            "linearAdd", variant, tolerance, right: right, fast: fast,
            where: { $0.supports(format) }
        ) { o, size in
            let (x, w, bias, shape) = o.linear(size, dtype, dtype, format)
            let residual = o.normal(shape, result ?? dtype)
            let factors = gate ? o.normal([shape[1]]) : nil
            return { o.device.linearAdd(x, w, bias: bias, to: residual, gate: factors) }
        }
    }
}

extension Operands {
    /// The operands of a linear layer and the axes of its result. size: [rows, inputs, outputs]
    fileprivate func linear(
        _ size: [Int], _ dtype: DType, _ weight: DType, _ format: LinearFormat
    ) -> (x: Tensor, w: LinearWeight, bias: Tensor, shape: [Axis]) {
        let shape = [axis(0, size[0]), axis(1, size[2])]
        let x = device.quantize(normal([shape[0], Axis(size[1])], dtype), to: format)
        // Results are about normal too: that is where activations are most curved.
        let w = normal([shape[1], Axis(size[1])], weight, scale: 1 / Float(size[1]).squareRoot())
        return (
            x,
            format == .plain
                ? device.place(.dense(w), as: weight, in: nil)
                : device.place(w, quantizedTo: format, in: nil),
            normal([shape[1]]), shape
        )
    }
}
