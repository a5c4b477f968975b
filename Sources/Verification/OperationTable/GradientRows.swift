/// Rows of the table: derivatives in both modes by the operations' own rules, and what moves parameters.

import Ground
import Tensors

/// Sums over rows or keys in another order.
private let sums = Tolerance(relativeL2: 2e-5)

extension OperationTable.Rows {
    mutating func addGradients() {
        for dtype in [DType.f32, .bf16] {
            addProductGradients(dtype)
            addNormGradients(dtype)
            addElementwiseGradients(dtype)
            addAttentionGradients(dtype)
            addSparseGradients(
                dtype, queryBlock: 64, [[70, 1, 64], [198, 2, 64], [390, 1, 128]])
            // Of a block of 128 queries that is not full, tiles lie past the end.
            addSparseGradients(dtype, queryBlock: 128, [[180, 1, 64], [390, 2, 128]])
        }
        addParameters()
    }

    // MARK: Linear layers

    /// Sizes: [rows, inputs, outputs]
    private mutating func addProductGradients(_ dtype: DType) {
        let right = [[1, 64, 96], [77, 33, 50], [300, 128, 96], [130, 256, 264], [5, 8, 3]]
        let fast = dtype == .bf16 ? [[32760, 1536, 1536], [32760, 1536, 8960]] : []
        add("gradient", "of linear by x \(dtype)", tolerance(dtype), right: right, fast: fast) {
            o, size in
            let rows = o.axis(0, size[0])
            let x = o.normal([rows, Axis(size[1])], dtype)
            let weight = o.normal([size[2], size[1]], dtype)
            return o.reverse(x, [rows, Axis(size[2])]) { $0.linear(x, .dense(weight), bias: nil) }
        }
        // Of a large weight there is no part that could be computed alone.
        add("gradient", "of linear by W \(dtype)", sums, right: right, fast: fast) { o, size in
            let x = o.normal([size[0], size[1]], dtype)
            let weight = o.normal([size[2], size[1]], dtype)
            let g = o.normal([size[0], size[2]], dtype)
            o.substitute = Operands.Substitute(
                name: "f32 here", tolerance: Tolerance(relativeL2: 1e-4),
                launch: {
                    let full = [x, weight, g].map { o.device.cast($0, to: .f32) }
                    return o.reverse(full[1], by: full[2]) {
                        $0.linear(full[0], .dense(full[1]), bias: nil)
                    }()
                })
            return o.reverse(weight, by: g) { $0.linear(x, .dense(weight), bias: nil) }
        }
        add("gradient", "of linear by bias \(dtype)", sums, right: right) { o, size in
            let x = o.normal([size[0], size[1]], dtype)
            let weight = o.normal([size[2], size[1]], dtype)
            let bias = o.normal([size[2]])
            return o.reverse(bias, [Axis(size[0]), Axis(size[2])]) {
                $0.linear(x, .dense(weight), bias: bias)
            }
        }
        add("gradient", "of linear through gelu \(dtype)", tolerance(dtype), right: right) {
            o, size in
            let x = o.normal([size[0], size[1]], dtype)
            let weight = o.normal([size[2], size[1]], dtype, scale: 0.1)
            return o.reverse(x, [Axis(size[0]), Axis(size[2])]) {
                $0.linear(x, .dense(weight), bias: nil, activation: .geluTanh)
            }
        }
        for format in [LinearFormat.int8Blocks, .fp8Rows] where dtype == .bf16 {
            add(
                "gradient", "of linear by x of \(format)", half,
                right: [[77, 256, 128], [130, 64, 384]],
                where: { $0.supports(format) }
            ) { o, size in
                let x = o.normal([size[0], size[1]], dtype)
                let weight = o.device.place(
                    o.host([size[2], size[1]], .bf16), quantizedTo: format, in: nil)
                return o.reverse(x, [Axis(size[0]), Axis(size[2])]) {
                    $0.linear(x, weight, bias: nil)
                }
            }
        }
    }

    // MARK: Norms

    /// Sizes: [rows, columns]
    private mutating func addNormGradients(_ dtype: DType) {
        let right = [[1, 96], [7, 77], [33, 200], [530, 1536], [5, 5120]]
        let fast = dtype == .bf16 ? [[32760, 1536]] : []
        for isFirst in [true, false] {
            add(
                "gradient", "of modulatedLayerNorm by \(isFirst ? "x" : "scale") \(dtype)",
                isFirst ? tolerance(dtype) : sums, right: right, fast: isFirst ? fast : []
            ) { o, size in
                let rows = o.axis(0, size[0])
                let x = o.normal([rows, Axis(size[1])], dtype, offset: 0.5)
                let (shift, scale) = (o.normal([size[1]]), o.normal([size[1]]))
                return o.reverse(isFirst ? x : scale, [rows, Axis(size[1])]) {
                    $0.modulatedLayerNorm(
                        x, shift: shift, scale: scale, epsilon: 1e-6, kind: .exact, format: .plain,
                        dtype: nil)
                }
            }
            add(
                "gradient", "of rmsNorm by \(isFirst ? "x" : "weight") \(dtype)",
                isFirst ? tolerance(dtype) : sums, right: right, fast: isFirst ? fast : []
            ) { o, size in
                let rows = o.axis(0, size[0])
                let x = o.normal([rows, Axis(size[1])], dtype)
                let weight = o.normal([size[1]], offset: 1)
                return o.reverse(isFirst ? x : weight, [rows, Axis(size[1])]) {
                    $0.rmsNorm(x, weight: weight, epsilon: 1e-6, kind: .exact, format: .plain)
                }
            }
        }
        add("gradient", "of layerNorm by bias \(dtype)", sums, right: right) { o, size in
            let x = o.normal(size, dtype, offset: 0.5)
            let (weight, bias) = (o.normal([size[1]], offset: 1), o.normal([size[1]]))
            return o.reverse(bias, size.map { Axis($0) }) {
                $0.layerNorm(
                    x, weight: weight, bias: bias, epsilon: 1e-6, kind: .exact, format: .plain)
            }
        }
        add("tangent", "of layerNorm \(dtype)", tolerance(dtype), right: right, fast: fast) {
            o, size in
            let axes = [o.axis(0, size[0]), Axis(size[1])]
            let x = o.normal(axes, dtype, offset: 0.5)
            let weight = o.normal([size[1]], offset: 1)
            return o.forward([x], [axes]) {
                $0.layerNorm(
                    x, weight: weight, bias: nil, epsilon: 1e-6, kind: .exact, format: .plain)
            }
        }
        // [tokens, heads, headDim]
        let heads = [[15, 2, 64], [9, 3, 128], [7, 3, 12]]
        for isForward in [false, true] {
            add(
                isForward ? "tangent" : "gradient", "of rmsNormRope \(dtype)",
                dtype == .f32 ? single : Tolerance(relativeL2: 6e-3), right: heads
            ) { o, size in
                let x = o.normal([size[0], size[1] * size[2]], dtype)
                let weight = o.normal([size[1] * size[2]], offset: 1)
                let rope = RotaryTable(
                    cosine: o.normal([size[0], size[2] / 2]),
                    sine: o.normal([size[0], size[2] / 2])
                )
                func body(_ device: any Backend) -> Tensor {
                    device.rmsNormRope(
                        x, weight: weight, epsilon: 1e-6, kind: .exact, rope: rope, heads: size[1])
                }
                return isForward
                    ? o.forward([x], [[Axis(size[0]), Axis(size[1] * size[2])]], body)
                    : o.reverse(x, size.map { Axis($0) }, body)
            }
        }
    }

    // MARK: Element by element

    private mutating func addElementwiseGradients(_ dtype: DType) {
        let right = [[1, 96], [7, 77], [700, 200], [5, 5120]]
        for part in ["y", "gate"] {
            add(
                "gradient", "of gatedAdd by \(part) \(dtype)",
                part == "y" ? tolerance(dtype) : sums,
                right: right
            ) { o, size in
                let (x, y) = (o.normal(size, dtype), o.normal(size, dtype))
                let gate = o.normal([size[1]])
                return o.reverse(part == "y" ? y : gate, size.map { Axis($0) }) {
                    $0.gatedAdd(x, y, gate: gate)
                }
            }
        }
        for activation in [Activation.geluTanh, .silu] {
            add("gradient", "of \(activation) \(dtype)", tolerance(dtype), right: right) {
                o, size in
                let x = o.normal(size, dtype, scale: 2)
                return o.reverse(x, size.map { Axis($0) }) { $0.activate(x, activation) }
            }
        }
        // [C, T, H, W]
        add("gradient", "of patchify \(dtype)", Tolerance(relativeL2: 0), right: [[16, 2, 10, 14]])
        {
            o, size in
            let x = o.normal(size)
            let tokens = size[1] * size[2] * size[3] / 4
            return o.reverse(x, [Axis(tokens), Axis(4 * size[0])]) {
                $0.patchify([x], dtype: dtype)
            }
        }
        add(
            "gradient", "of unpatchify \(dtype)", Tolerance(relativeL2: 0),
            right: [[16, 2, 10, 14]]
        ) {
            o, size in
            let x = o.normal([size[1] * size[2] * size[3] / 4, 4 * size[0]], dtype)
            return o.reverse(x, size.map { Axis($0) }) {
                $0.unpatchify(x, size: Extent(t: size[1], h: size[2], w: size[3]))
            }
        }
    }

    // MARK: Attention

    /// Sizes: [queries, keys, heads, headDim]
    private mutating func addAttentionGradients(_ dtype: DType) {
        let right = [
            [77, 33, 3, 64], [300, 300, 2, 128], [77, 130, 2, 96], [77, 61, 2, 60],
            [200, 515, 1, 64], [40, 70, 1, 256],
        ]
        for last in [[], [480], [68, 384]] {
            let suffix = "\(dtype)" + (last.isEmpty ? "" : " last x\(last)")
            func attention(_ heads: [Tensor], _ size: [Int]) -> (any Backend) -> Tensor {
                {
                    $0.attention(
                        heads[0], heads[1], heads[2], scale: 1 / Float(size[3]).squareRoot(),
                        lastKeyCounts: last)
                }
            }
            for (index, name) in ["q", "k", "v"].enumerated() {
                add(
                    "gradient", "of attention by \(name) \(suffix)",
                    dtype == .f32 ? sums : Tolerance(relativeL2: 6e-3),
                    // Long enough for Hopper's larger tiles.
                    right: right + (dtype == .bf16 ? [[1090, 1030, 1, 128]] : []),
                    fast: dtype == .bf16 && last.isEmpty ? [[8192, 8192, 12, 128]] : []
                ) { o, size in
                    let heads = o.heads(size, dtype)
                    let g = o.normal([size[0], size[2], size[3]], dtype)
                    o.substitute = Operands.Substitute(
                        name: "f32 here", tolerance: Tolerance(relativeL2: 1e-2),
                        launch: {
                            let full = (heads + [g]).map { o.device.cast($0, to: .f32) }
                            return o.reverse(full[index], by: full[3], attention(full, size))()
                        })
                    return o.reverse(heads[index], by: g, attention(heads, size))
                }
            }
            add(
                "tangent", "of attention \(suffix)",
                dtype == .f32 ? sums : Tolerance(relativeL2: 6e-3),
                right: right
            ) { o, size in
                let heads = o.heads(size, dtype)
                // Cross attention's keys are constant.
                let moving = last.isEmpty ? heads : [heads[0]]
                return o.forward(
                    moving, moving.map { $0.shape.dimensions.map { Axis($0) } },
                    attention(heads, size))
            }
        }
    }

    /// Sizes: [tokens, heads, headDim]; a half of the keys' blocks, which have 64 keys.
    private mutating func addSparseGradients(_ dtype: DType, queryBlock: Int, _ sizes: [[Int]]) {
        let parts = ["q", "k", "v", "W", "bias"]
        let limit = Tolerance(relativeL2: dtype == .f32 ? 1e-4 : 8e-3)
        let spec = SparseAttention(
            topK: 0.5, arithmetic: dtype == .f32 ? .exact : .bf16, queryBlock: queryBlock,
            keyBlock: 64)
        for (index, name) in (parts + ["tangent"]).enumerated() {
            add(
                index == parts.count ? "tangent" : "gradient",
                "of sparseLinearAttention " + (index == parts.count ? "" : "by \(name) ")
                    + "\(dtype), blocks of \(queryBlock)x64", limit, right: sizes
            ) { o, size in
                let heads = [Float(0), 0.3, 0].map { o.normal(size, dtype, offset: $0) }
                let weight = o.normal([size[2], size[2]], dtype, scale: 0.1)
                let bias = o.normal([size[2]], scale: 0.1)
                func body(_ device: any Backend) -> Tensor {
                    device.sparseLinearAttention(
                        heads[0], heads[1], heads[2], projection: .dense(weight), bias: bias, spec,
                        format: .plain)
                }
                let axes = size.map { Axis($0) }
                return index == parts.count
                    ? o.forward(heads, [axes, axes, axes], body)
                    : o.reverse((heads + [weight, bias])[index], axes, body)
            }
        }
    }

    // MARK: Parameters

    private mutating func addParameters() {
        let right = [[1], [77], [5000], [300, 1536]]
        let fast = [[1536, 8960]]
        for (index, name) in ["master", "mean", "square"].enumerated() {
            for dtype in [DType.f32, .bf16] {
                add(
                    "adamW", "\(name) \(dtype)", Tolerance(relativeL2: 1e-6), right: right,
                    fast: index == 0 && dtype == .f32 ? fast : []
                ) { o, size in
                    let axes = size.map { Axis($0) }
                    let (master, mean) = (o.normal(axes), o.normal(axes, scale: 0.1))
                    let square = o.normal(axes, scale: 1e-3, offset: 1)
                    let gradient = o.normal(axes, dtype)
                    let settings = Operation.AdamW.Settings(
                        learningRate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01,
                        step: 3, gradientScale: 0.5)
                    return {
                        let moved = o.device.adamW(
                            master: master, mean: mean, square: square, gradient: gradient,
                            settings)
                        return [moved.master, moved.mean, moved.square][index]
                    }
                }
            }
        }
        for (index, name) in ["master", "mean", "square", "seen", "average"].enumerated() {
            add(
                "adamWList", name, Tolerance(relativeL2: name == "seen" ? 1e-4 : 1e-6),
                right: [[1], [77], [5000]], fast: index == 0 ? [[250_000]] : []
            ) { o, size in
                // More parameters than a launch takes, of several sizes.
                let shapes = (0..<40).map { [Axis(size[0] + 13 * ($0 % 3))] }
                func list(scale: Float = 1, offset: Float = 0) -> [Tensor] {
                    shapes.map { o.normal($0, scale: scale, offset: offset) }
                }
                let (masters, means, gradients) = (list(), list(scale: 0.1), list())
                let (squares, averages) = (list(scale: 1e-3, offset: 1), list())
                let settings = Operation.AdamW.Settings(
                    learningRate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01,
                    step: 3, gradientScale: 0.5)
                return {
                    let moved = o.device.adamW(
                        masters: masters, means: means, squares: squares, gradients: gradients,
                        averages: averages, averageWeight: 0.75, seenAs: .bf16, settings)
                    let lists = [
                        moved.masters, moved.means, moved.squares, moved.seen, moved.averages,
                    ]
                    return o.device.concatenate([lists[index][0], lists[index][38]])
                }
            }
        }
        add(
            "squareSum", "of 150 tensors", Tolerance(relativeL2: 1e-12),
            right: [[1], [77], [5000]],
            fast: [[75_000]]
        ) { o, size in
            let terms = (0..<150).map { o.normal([Axis(size[0] + $0)]) }
            return { o.device.squareSum(terms) }
        }
        for dtype in [DType.f32, .bf16] {
            add(
                "swapRows", "\(dtype)", Tolerance(relativeL2: 0),
                right: [[1, 1, 2], [3, 5, 7], [48, 6, 256], [300, 3, 64]].map { size in
                    dtype == .bf16 ? size.dropLast() + [size[2] * 2] : size
                }, fast: dtype == .bf16 ? [[48, 1296, 64]] : []
            ) { o, size in
                let x = o.normal(size, dtype)
                return { o.device.swapRows(x) }
            }
            add(
                "padRows", "\(dtype)", Tolerance(relativeL2: 0),
                right: [[1, 2], [5, 7], [33, 256]], fast: dtype == .f32 ? [[1296, 1024]] : []
            ) { o, size in
                let x = o.normal(size, dtype)
                return { o.device.padRows(x, before: size[0] - 1, after: size[1]) }
            }
            add(
                "modulateColumns", "\(dtype)", Tolerance(relativeL2: dtype == .f32 ? 1e-6 : 4e-3),
                right: [[3, 5], [77, 256]], fast: dtype == .bf16 ? [[1296, 12288]] : []
            ) { o, size in
                let x = o.normal(size, dtype)
                let (shift, scale) = (o.normal([size[1]], .f32), o.normal([size[1]], .f32))
                return { o.device.modulateColumns(x, shift: shift, scale: scale) }
            }
        }
        for dtype in [DType.f32, .bf16] {
            add(
                "dot", "\(dtype)", Tolerance(relativeL2: 1e-12), right: right, fast: [[8960, 5120]]
            ) {
                o, size in
                let x = o.normal(size, dtype)
                return { o.device.dot(x, x) }
            }
        }
    }
}

/// Remembers the last operation and its first result.
private final class Witness: ForwardingBackend {
    private(set) var last: (operation: Operation, result: Tensor)?

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        last = (operation, results[0])
        return results
    }
}

extension Operands {
    /// The rule in reverse mode of the operation that `body` asks for, d loss / d x, with a random cotangent.
    fileprivate func reverse(
        _ x: Tensor, _ cotangent: [Axis], _ body: (any Backend) -> Tensor
    ) -> () -> Tensor {
        let (operation, result) = witnessed(body)
        return reverse(x, normal(cotangent, result.dtype), operation, result)
    }

    /// The same with this cotangent.
    fileprivate func reverse(
        _ x: Tensor, by cotangent: Tensor, _ body: (any Backend) -> Tensor
    ) -> () -> Tensor {
        let (operation, result) = witnessed(body)
        return reverse(x, cotangent, operation, result)
    }

    private func reverse(
        _ x: Tensor, _ cotangent: Tensor, _ operation: Operation, _ result: Tensor
    ) -> () -> Tensor {
        { [device] in
            let gradients = Gradients(on: device) { $0.identity == x.identity }
            operation.differentiable!.reverse(
                cotangent, result: result, into: gradients, on: device)
            return gradients.take(x)!
        }
    }

    /// The rule in forward mode, along random tangents of these values.
    fileprivate func forward(
        _ moving: [Tensor], _ axes: [[Axis]], _ body: (any Backend) -> Tensor
    ) -> () -> Tensor {
        let (operation, result) = witnessed(body)
        let tangents = zip(moving, axes).map { ($0, normal($1, $0.dtype)) }
        return { [device] in
            operation.differentiable!.forward(
                { value in tangents.first { $0.0.identity == value.identity }?.1 },
                result: result, on: device)!
        }
    }

    private func witnessed(_ body: (any Backend) -> Tensor) -> (Operation, Tensor) {
        let witness = Witness(device)
        _ = body(witness)
        return (witness.last!.operation, witness.last!.result)
    }

    /// q, k, v. size: [queries, keys, heads, headDim]
    fileprivate func heads(_ size: [Int], _ dtype: DType) -> [Tensor] {
        [size[0], size[1], size[1]].map { normal([$0, size[2], size[3]], dtype) }
    }
}
