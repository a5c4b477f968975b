/// The operations of the machine that computes nothing: shapes in, shapes out, and what it would
/// take.

import Ground

extension NullBackend {
    // MARK: Linear layers and norms

    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        let plain = isPlain(x)
        checkLinear("linear", x, weight, bias)
        return noting(
            "linear", [x],
            result(
                x.shape.replacingLast(weight.outputs), dtype ?? (plain ? x.dtype : .bf16), format),
            weightBytes: weight.byteCount,
            flops: 2 * x.shape.rows * weight.inputs * weight.outputs)
    }

    public func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        checkLinear("linearAdd", x, weight, bias)
        check(
            residual.shape.rows == x.shape.rows && residual.shape.columns == weight.outputs,
            "linearAdd", residual.shape, x.shape, weight.shape)
        checkVector("linearAdd", gate, weight.outputs)
        return noting(
            "linearAdd", [x, residual], result(residual.shape, residual.dtype),
            weightBytes: weight.byteCount,
            flops: 2 * x.shape.rows * weight.inputs * weight.outputs)
    }

    public func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor {
        check(isPlain(x), "quantize: plain activations expected", x.shape)
        if format == .plain { return x }
        return noting("quantize", [x], result(x.shape, x.dtype, format))
    }

    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        checkVector("modulatedLayerNorm", shift, x.shape.columns)
        checkVector("modulatedLayerNorm", scale, x.shape.columns)
        return noting("modulatedLayerNorm", [x], result(x.shape, dtype ?? x.dtype, format))
    }

    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        checkVector("layerNorm", weight, x.shape.columns)
        checkVector("layerNorm", bias, x.shape.columns)
        return noting("layerNorm", [x], result(x.shape, x.dtype, format))
    }

    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        checkVector("rmsNorm", weight, x.shape.columns)
        return noting("rmsNorm", [x], result(x.shape, x.dtype, format))
    }

    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        let (tokens, dim) = (x.shape.rows, x.shape.columns)
        checkVector("rmsNormRope", weight, dim)
        check(
            x.shape.rank == 2 && dim % heads == 0
                && rope.cosine.shape == [tokens, dim / heads / 2]
                && rope.sine.shape == rope.cosine.shape,
            "rmsNormRope with \(heads) heads", x.shape, rope.cosine.shape)
        return noting(
            "rmsNormRope", [x, rope.cosine, rope.sine],
            result([tokens, heads, dim / heads], x.dtype))
    }

    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        check(x.shape == y.shape, "gatedAdd", x.shape, y.shape)
        checkVector("gatedAdd", gate, x.shape.columns)
        return noting("gatedAdd", [x, y], result(x.shape, x.dtype))
    }

    public func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        check(gate.shape == up.shape, "geluGate", gate.shape, up.shape)
        return noting("geluGate", [gate, up], result(up.shape, up.dtype, format))
    }

    // MARK: Attention

    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int]
    ) -> Tensor {
        check(
            q.shape.rank == 3 && k.shape == v.shape && k.shape.tail == q.shape.tail
                && lastKeyCounts.count <= min(2, k.shape[0])
                && lastKeyCounts.allSatisfy { $0 >= 1 },
            "attention", q.shape, k.shape, v.shape)
        return noting(
            "attention", [q, k, v], result(q.shape, q.dtype),
            flops: 4 * q.shape.count * k.shape[0])
    }

    public func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        check(
            q.shape.rank == 3 && q.shape == k.shape && k.shape == v.shape
                && table.shape == [32, q.shape[1]],
            "relativeAttention", q.shape, k.shape, v.shape, table.shape)
        return noting(
            "relativeAttention", [q, k, v], result(q.shape, q.dtype),
            flops: 4 * q.shape.count * k.shape[0])
    }

    public func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        check(q.shape.rank == 3 && q.shape == k.shape, "blockMap", q.shape, k.shape)
        let blocks = Blocks(q.shape[0], spec)
        let map = BlockMap(
            scores: result([q.shape[1], blocks.queries, blocks.keys], q.dtype),
            indices: result([q.shape[1], blocks.queries, blocks.selected], .i32))
        note(
            "blockMap", [q, k], [map.scores, map.indices],
            flops: 2 * map.scores.shape.count * q.shape[2])
        return map
    }

    public func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor {
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        check(
            q.shape.rank == 3 && q.shape == k.shape && k.shape == v.shape
                && projection.shape == [dim, dim],
            "sparseLinearAttention", q.shape, k.shape, v.shape, projection.shape)
        checkVector("sparseLinearAttention", bias, dim)
        let blocks = Blocks(tokens, spec)
        let visited = blocks.queries * blocks.selected * spec.queryBlock * spec.keyBlock
        // Scores of pooled blocks, the visited blocks, then k^T v, q (k^T v) and the projection.
        let flops =
            2 * blocks.queries * blocks.keys * dim + 4 * visited * dim + 6 * tokens * dim * dim
        return noting(
            "sparseLinearAttention", [q, k, v], result(q.shape, q.dtype),
            weightBytes: projection.byteCount, flops: heads * flops)
    }

    /// Blocks of a sequence, and how many of them each query block attends to.
    private struct Blocks {
        let queries, keys, selected: Int

        init(_ tokens: Int, _ spec: SparseAttention) {
            queries = (tokens + spec.queryBlock - 1) / spec.queryBlock
            keys = (tokens + spec.keyBlock - 1) / spec.keyBlock
            selected = spec.selected(of: keys)
        }
    }

    // MARK: Tokens and latents

    public func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        check(table.shape.rank == 2, "embedding", table.shape)
        let out = result([ids.count, table.shape[1]], table.dtype)
        return noting("embedding", [out], out)
    }

    public func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        check(table.shape.rank == 2, "embedding", table.shape)
        return noting("embedding", [], result([ids.count, table.shape[1]], dtype))
    }

    public func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        let size = parts[0].shape
        for part in parts {
            check(
                part.shape.rank == 4 && part.shape.tail == size.tail && size[2] % 2 == 0
                    && size[3] % 2 == 0, "patchify", part.shape, size)
        }
        let channels = parts.reduce(0) { $0 + $1.shape[0] }
        return noting(
            "patchify", parts, result([size[1] * size[2] * size[3] / 4, 4 * channels], dtype))
    }

    public func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        check(
            x.shape.rank == 2 && x.shape[0] * 4 == size.t * size.h * size.w
                && x.shape[1] % 4 == 0, "unpatchify to \(size)", x.shape)
        return noting(
            "unpatchify", [x], result([x.shape[1] / 4, size.t, size.h, size.w], .f32))
    }

    public func rcmStep(
        _ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double
    ) -> Tensor {
        check(
            x.shape == velocity.shape && noise.map { $0.shape == x.shape } ?? true, "rcmStep",
            x.shape, velocity.shape)
        return noting(
            "rcmStep", [x, velocity] + (noise.map { [$0] } ?? []), result(x.shape, .f64))
    }

    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        check(
            !terms.isEmpty && terms.count <= 5 && terms.count == coefficients.count
                && terms.allSatisfy { $0.shape == terms[0].shape },
            "combine with \(coefficients.count) coefficients", terms[0].shape)
        return noting("combine", terms, result(terms[0].shape, dtype))
    }

    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        _ = generator.draw(shape.count)
        return noting("noise", [], result(shape, .f32))
    }

    // MARK: Video autoencoder

    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        let s = x.shape
        check(
            s.rank == 4 && scale.count == s[0] && shift.count == s[0],
            "channelsLast with \(scale.count) scales", s)
        return noting("channelsLast", [x], result([s[1], s[2], s[3], s[0]], dtype))
    }

    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        let s = x.shape
        check(
            s.rank == 4 && scale.count == s[3] && shift.count == s[3],
            "channelsFirst with \(scale.count) scales", s)
        return noting("channelsFirst", [x], result([s[3], s[0], s[1], s[2]], .f32))
    }

    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        check(
            x.shape.rank == 4 && x.shape[3] == weight.inputs && leadingZeros >= 0
                && history.map { $0.shape.rank == 4 && $0.shape.tail == x.shape.tail } ?? true,
            "convolution", x.shape, weight.tensor.shape, history?.shape ?? x.shape)
        checkVector("convolution", weight.bias, weight.outputs)
        let frames = leadingZeros + (history?.shape[0] ?? 0) + x.shape[0]
        func extent(_ size: Int, _ kernel: Int) -> Int {
            let padded = (upsample ? 2 * size : size) + (padding == .same ? kernel - 1 : 1)
            return (padded - kernel) / spatialStride + 1
        }
        let shape: Shape = [
            (frames - weight.time) / timeStride + 1, extent(x.shape[1], weight.height),
            extent(x.shape[2], weight.width), weight.outputs,
        ]
        check(
            frames >= weight.time && residual.map { $0.shape == shape } ?? true, "convolution",
            x.shape, weight.tensor.shape, residual?.shape ?? shape)
        // Frames of zeros take no arithmetic.
        let frameTaps = (0..<shape[0]).reduce(0) { sum, frame in
            sum + weight.time - min(weight.time, max(0, leadingZeros - frame * timeStride))
        }
        let products = frameTaps * weight.height * weight.width * weight.inputs
        return noting(
            "convolution", [x] + [history, residual].compactMap { $0 }, result(shape, x.dtype),
            weightBytes: weight.tensor.byteCount, flops: 2 * shape.tail.count * products)
    }

    public func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor {
        checkVector("channelNorm", gamma, x.shape.columns)
        return noting("channelNorm", [x], result(x.shape, x.dtype))
    }

    public func interleaveTime(_ x: Tensor) -> Tensor {
        let s = x.shape
        check(s.rank == 4 && s[3] % 2 == 0, "interleaveTime", s)
        return noting("interleaveTime", [x], result([2 * s[0], s[1], s[2], s[3] / 2], x.dtype))
    }

    public func concatenate(_ parts: [Tensor]) -> Tensor {
        let first = parts[0]
        for part in parts {
            check(
                part.shape.tail == first.shape.tail && part.dtype == first.dtype, "concatenate",
                part.shape, first.shape)
        }
        let count = parts.reduce(0) { $0 + $1.shape[0] }
        return noting(
            "concatenate", parts,
            result(Shape([count] + first.shape.tail.dimensions), first.dtype))
    }

    public func rgb8(_ x: Tensor) -> Tensor {
        check(x.shape.rank == 4 && x.shape[3] == 3, "rgb8", x.shape)
        return noting("rgb8", [x], result(x.shape, .u8))
    }

    public func nv12(_ x: Tensor) -> Tensor {
        let s = x.shape
        check(s.rank == 4 && s[1] % 2 == 0 && s[2] % 2 == 0 && s[3] == 3, "nv12", s)
        return noting("nv12", [x], result([s[0], s[1] / 2 * 3, s[2]], .u8))
    }

    // MARK: Checks

    private func noting(
        _ name: String, _ inputs: [Tensor], _ output: Tensor, weightBytes: Int = 0, flops: Int = 0
    ) -> Tensor {
        note(name, inputs, [output], weightBytes: weightBytes, flops: flops)
        return output
    }

    private func isPlain(_ x: Tensor) -> Bool { x.scales == nil }

    private func check(
        _ condition: Bool, _ operation: @autoclosure () -> String, _ shapes: Shape...
    ) {
        ensure(
            condition,
            "\(operation()): \(shapes.map(\.description).joined(separator: ", "))")
    }

    private func checkVector(_ operation: String, _ vector: Tensor?, _ count: Int) {
        guard let vector else { return }
        check(vector.shape.count == count, "\(operation): \(count) values expected", vector.shape)
    }

    private func checkLinear(
        _ operation: String, _ x: Tensor, _ weight: LinearWeight, _ bias: Tensor?
    ) {
        check(x.shape.columns == weight.inputs, operation, x.shape, weight.shape)
        check(
            isPlain(x) || format(of: x) == weight.inputFormat,
            "\(operation): input is \(x.dtype), the weight wants \(weight.inputFormat)", x.shape)
        checkVector(operation, bias, weight.outputs)
    }

    private func format(of x: Tensor) -> ActivationFormat {
        switch x.dtype {
        case .i8: .int8Blocks
        case .f8e4m3: .fp8Rows
        default: .plain
        }
    }
}
