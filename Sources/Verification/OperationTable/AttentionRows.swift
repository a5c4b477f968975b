/// Rows of the table: dense attention, umT5's, and sparse-linear attention in every arithmetic.

import Ground
import Tensors

/// Probabilities and results rounded to bf16.
private let bf16 = Tolerance(relativeL2: 5e-3)
/// Results in 8 bits: different rounding changes a code here and there, or the largest of a block.
private let codes = Tolerance(relativeL2: 1.5e-2, looseRelativeL2: 4e-2)

extension OperationTable.Rows {
    mutating func addAttention() {
        for dtype in [DType.f32, .bf16] {
            let isHalf = dtype == .bf16
            // [queries, keys, heads, headDim]: the models' dimensions, some between them, wide ones, and some that are
            // not a multiple of any vector's length.
            addDense(
                dtype,
                right: [
                    [1, 1, 1, 64], [77, 33, 3, 64], [300, 300, 2, 128], [77, 130, 2, 96],
                    [77, 61, 2, 60], [77, 61, 2, 100], [1000, 515, 2, 64], [200, 515, 1, 384],
                    [77, 130, 1, 512], [77, 61, 1, 132],
                ],
                // Self and cross attention at 480p and 720p and the autoencoder's middle block; nano.
                fast: isHalf
                    ? [
                        [32760, 32760, 12, 128], [32760, 512, 12, 128], [32760, 32760, 12, 64],
                        [75600, 512, 40, 128], [6240, 6240, 1, 384], [14400, 14400, 1, 384],
                    ] : [[1296, 1296, 2, 128], [576, 576, 1, 96]])
            addDense(
                dtype, last: [480],
                right: [[1, 1, 1, 64], [77, 33, 3, 64], [77, 61, 2, 40], [77, 130, 1, 192]])
            addDense(
                dtype, last: [68, 384],
                right: [
                    [77, 33, 3, 64], [300, 61, 3, 128], [77, 130, 2, 96], [77, 130, 1, 384],
                ],
                fast: isHalf ? [[32760, 61, 12, 128]] : [])
            // For the next linear layer: fused with heads of 128 in bf16.
            for format in [LinearFormat.int8Blocks, .fp8Rows] {
                addDense(
                    dtype, last: [20], to: format,
                    right: [[300, 130, 3, 128], [128, 40, 1, 128], [77, 61, 2, 64]],
                    fast: isHalf && format == .int8Blocks ? [[32760, 512, 12, 128]] : [])
            }
            // [tokens, heads, headDim]
            add(
                "relativeAttention", "\(dtype)", dtype == .f32 ? single : bf16,
                right: [[1, 1, 64], [9, 4, 64], [300, 2, 128], [77, 2, 60], [77, 1, 100]],
                fast: [[512, 64, 64]]
            ) { o, size in
                let heads = o.axis(1, size[1], part: 1)
                let shape = [Axis(size[0]), heads, Axis(size[2])]
                let q = o.normal(shape, dtype, scale: 0.1)
                let (k, v) = (o.normal(shape, dtype), o.normal(shape, dtype))
                let table = o.normal([Axis(32), heads])
                return { o.device.relativeAttention(q, k, v, table: table) }
            }
        }
        addSparse("exact f32", .exact, .f32, Tolerance(relativeL2: 1e-4))
        addSparse("exact bf16", .exact, .bf16, bf16)
        addSparse("bf16", .bf16, .bf16, Tolerance(relativeL2: 6e-3))
        addSparse("bf16", .bf16, .bf16, to: .int8Blocks, codes)
        for card in SageArchitecture.allCases {
            addSparse(
                card.rawValue, .sage(card), .bf16,
                Tolerance(relativeL2: 8e-3, looseRelativeL2: 4e-2))
            addSparse(card.rawValue, .sage(card), .bf16, to: .int8Blocks, codes)
        }
        addBlockMap(SparseAttention(topK: 0.3, arithmetic: .bf16))
        addBlockMap(SparseAttention(topK: 0.3, arithmetic: .sage(.sm90)))
    }

    /// - Parameter last: how many times each of the last keys counts.
    private mutating func addDense(
        _ dtype: DType, last: [Int] = [], to format: LinearFormat = .plain, right: [[Int]],
        fast: [[Int]] = []
    ) {
        let suffix =
            (last.isEmpty ? "" : " last x\(last)") + (format == .plain ? "" : " to \(format)")
        add(
            "attention", "\(dtype)\(suffix)",
            format != .plain ? codes : dtype == .f32 ? single : bf16, right: right, fast: fast,
            where: { $0.supports(format) }
        ) { o, size in
            // In 8 bits the heads of a result are one axis, and 128 rows share a scale.
            let isPlain = format == .plain
            let heads = [isPlain ? o.axis(1, size[2], part: 1) : Axis(size[2]), Axis(size[3])]
            let q = o.normal([o.axis(0, size[0], part: isPlain ? 16 : 128)] + heads, dtype)
            let (k, v) = (
                o.normal([Axis(size[1])] + heads, dtype), o.normal([Axis(size[1])] + heads, dtype)
            )
            let scale = 1 / Float(size[3]).squareRoot()
            return {
                o.device.attention(
                    q, k, v, scale: scale, lastKeyCounts: last, format: format)
            }
        }
    }

    /// The size of a sequence, and whether neighbouring queries attend to the same keys.
    private struct Sparse: CustomStringConvertible {
        var tokens, heads, headDim: Int
        var topK: Double
        var isSmooth = false

        var description: String {
            "\(tokens)x\(heads)x\(headDim) top \(topK)" + (isSmooth ? " smooth" : "")
        }
    }

    private mutating func addSparse(
        _ variant: String, _ arithmetic: SparseAttention.Arithmetic, _ dtype: DType,
        to format: LinearFormat = .plain, _ tolerance: Tolerance
    ) {
        var fast: [Sparse] = []
        if arithmetic != .exact {
            fast.append(Sparse(tokens: 32760, heads: 12, headDim: 128, topK: 0.1))
        }
        if arithmetic == .sage(.sm90) {
            fast.append(Sparse(tokens: 32760, heads: 12, headDim: 128, topK: 0.1, isSmooth: true))
            for tokens in [32760, 75600] {
                for isSmooth in [false, true] {
                    fast.append(
                        Sparse(
                            tokens: tokens, heads: 40, headDim: 128, topK: 0.1, isSmooth: isSmooth))
                }
            }
        }
        add(
            "sparseLinearAttention", variant + (format == .plain ? "" : " to \(format)"), tolerance,
            right: format != .plain
                ? [Sparse(tokens: 520, heads: 2, headDim: 128, topK: 0.5)]
                : [
                    Sparse(tokens: 70, heads: 1, headDim: 64, topK: 1),
                    Sparse(tokens: 390, heads: 2, headDim: 64, topK: 0.5),
                    Sparse(tokens: 520, heads: 1, headDim: 128, topK: 0.25),
                    Sparse(tokens: 1035, heads: 2, headDim: 64, topK: 0.3),
                ], fast: format == .plain ? fast : [], where: { $0.supports(arithmetic) }
        ) { o, size in
            let shape = [o.axis(0, size.tokens), Axis(size.heads), Axis(size.headDim)]
            let q = o.tokens(shape, dtype, isSmooth: size.isSmooth)
            // An offset for the mean subtraction of keys to remove.
            let k = o.tokens(shape, dtype, offset: 0.3, isSmooth: size.isSmooth)
            let v = o.tokens(shape, dtype)
            let weight = o.normal([size.headDim, size.headDim], dtype, scale: 0.1)
            let projection = o.device.place(.dense(weight), as: dtype, in: nil)
            let bias = o.normal([size.headDim], scale: 0.1)
            func launch(_ spec: SparseAttention) -> Tensor {
                o.device.sparseLinearAttention(
                    q, k, v, projection: projection, bias: bias, spec, format: format)
            }
            let spec = SparseAttention(topK: size.topK, arithmetic: arithmetic)
            // The same blocks.
            var exact = spec
            exact.arithmetic = .exact
            o.substitute = Operands.Substitute(
                name: "exact arithmetic here",
                tolerance: Tolerance(relativeL2: arithmetic == .bf16 ? 1e-2 : 4e-2),
                launch: { [exact] in launch(exact) })
            return { launch(spec) }
        }
    }

    /// Sizes: [tokens, heads, headDim]
    private mutating func addBlockMap(_ spec: SparseAttention) {
        let blocks = "\(spec.queryBlock)x\(spec.keyBlock)"
        // Scores that differ in their last bit may swap two blocks at the cut.
        let results: [(String, Tolerance, (BlockMap) -> Tensor)] = [
            ("scores", Tolerance(relativeL2: 5e-3), { $0.scores }),
            ("indices", Tolerance(mismatches: 0.02), { $0.indices }),
        ]
        for (name, limit, result) in results {
            for dtype in [DType.bf16, .f32] {
                add(
                    "blockMap", "\(name) \(blocks) \(dtype)", limit,
                    // Two blocks at least: a single one less the mean of all keys is nothing.
                    right: [[170, 1, 64], [390, 2, 64], [520, 1, 128]],
                    fast: name == "scores" && dtype == .bf16 ? [[32760, 12, 128]] : []
                ) { o, size in
                    let q = o.normal(size, dtype)
                    let k = o.normal(size, dtype, offset: 0.3)
                    return { result(o.device.blockMap(q, k, spec)) }
                }
            }
        }
    }
}

extension Operands {
    /// Random tokens; smooth ones share a mean with 255 neighbours.
    /// shape: (tokens, heads, headDim)
    fileprivate func tokens(
        _ shape: [Axis], _ dtype: DType, offset: Float = 0, isSmooth: Bool = false
    ) -> Tensor {
        let x = normal(shape, dtype, offset: offset)
        guard isSmooth else { return x }
        let (rows, width) = (x.shape[0], x.shape.tail.count)
        let means = host([ceilDivide(rows, 256), width], dtype)
        let spread = device.embedding(
            (0..<rows).map { Int32($0 / 256) }, hostTable: means, as: dtype)
        return device.gatedAdd(x.reshaped([rows, width]), spread, gate: nil).reshaped(x.shape)
    }
}
