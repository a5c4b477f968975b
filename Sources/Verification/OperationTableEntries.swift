/// The rows of the table of operations.

import Tensors

/// Element-wise work in f32 differs by the order of sums and by the last bits of exp and tanh.
private let single = Tolerance(relativeL2: 1e-5)
/// One rounding to bf16 may fall on the other side.
private let half = Tolerance(relativeL2: 4e-3)
private func tolerance(_ dtype: DType) -> Tolerance { dtype == .f32 ? single : half }

extension OperationTable.Builder {
    mutating func addLinearLayers() {
        for (rows, inputs, outputs) in [(1, 64, 32), (77, 136, 200), (257, 384, 72)] {
            for dtype in [DType.f32, .bf16] {
                let x = random.normal([rows, inputs], as: dtype)
                let w = random.normal([outputs, inputs], as: dtype, scale: 0.1)
                let bias = random.normal([outputs])
                for activation in [Activation.none, .geluTanh, .silu] {
                    add(
                        "linear", "\(dtype) \(rows)x\(inputs)x\(outputs) \(activation)",
                        tolerance(dtype)
                    ) { device in
                        [
                            device.linear(
                                device.place(x, as: dtype),
                                device.place(.dense(w), as: dtype, in: nil),
                                bias: device.place(bias, as: .f32), activation: activation)
                        ]
                    }
                }
                addLinearAdd(x, w, bias, dtype, outputs)
            }
        }
        for (rows, inputs, outputs) in [(1, 128, 64), (129, 256, 136), (300, 512, 384)] {
            let x = random.normal([rows, inputs], as: .bf16)
            let w = random.normal([outputs, inputs], as: .bf16, scale: 0.1)
            let bias = random.normal([outputs])
            addQuantized(x, w, bias)
        }
    }

    private mutating func addLinearAdd(
        _ x: Tensor, _ w: Tensor, _ bias: Tensor, _ dtype: DType, _ outputs: Int
    ) {
        let residual = random.normal([x.shape[0], outputs], as: dtype)
        let gate = random.normal([outputs])
        for hasGate in [false, true] {
            add(
                "linearAdd",
                "\(dtype) \(x.shape[0])x\(x.shape[1])x\(outputs)\(hasGate ? " gate" : "")",
                tolerance(dtype)
            ) { device in
                [
                    device.linearAdd(
                        device.place(x, as: dtype), device.place(.dense(w), as: dtype, in: nil),
                        bias: device.place(bias, as: .f32),
                        to: device.place(residual, as: dtype),
                        gate: hasGate ? device.place(gate, as: .f32) : nil)
                ]
            }
        }
    }

    private mutating func addQuantized(_ x: Tensor, _ w: Tensor, _ bias: Tensor) {
        let size = "\(x.shape[0])x\(x.shape[1])x\(w.shape[0])"
        let shift = random.normal([x.shape[1]], scale: 0.2)
        let scale = random.normal([x.shape[1]], scale: 0.2)
        for format in [ActivationFormat.int8Blocks, .fp8Rows] {
            add(
                "quantize", "\(format) \(x.shape[0])x\(x.shape[1])",
                Tolerance(maximum: format == .fp8Rows ? 32 : 1, mismatches: 1e-3)
            ) { [$0.quantize($0.place(x, as: .bf16), to: format)].map { $0.withoutScales } }
            for activation in [Activation.none, .geluTanh] {
                add(
                    "linear", "\(format) \(size) \(activation)", half,
                    where: { $0.supports(format) }
                ) { device in
                    let weight = device.place(w, quantizedTo: format, in: nil)
                    return [
                        device.linear(
                            device.quantize(device.place(x, as: .bf16), to: format), weight,
                            bias: device.place(bias, as: .f32), activation: activation)
                    ]
                }
            }
            // A norm that quantises, then two layers of which the first quantises: a wrong scale shows.
            add(
                "linear", "\(format) \(size) after norm", Tolerance(relativeL2: 2e-2),
                where: { $0.supports(format) }
            ) { device in
                let first = device.place(w, quantizedTo: format, in: nil)
                let y = device.modulatedLayerNorm(
                    device.place(x, as: .bf16), shift: device.place(shift, as: .f32),
                    scale: device.place(scale, as: .f32), epsilon: 1e-6, kind: .exact,
                    format: format, dtype: nil)
                return [device.linear(y, first, bias: nil, activation: .geluTanh)]
            }
            add(
                "linearAdd", "\(format) \(size) gate", half, where: { $0.supports(format) }
            ) { device in
                let weight = device.place(w, quantizedTo: format, in: nil)
                let residual = Tensor(
                    [Float](repeating: 1, count: x.shape[0] * w.shape[0]),
                    [x.shape[0], w.shape[0]])
                return [
                    device.linearAdd(
                        device.quantize(device.place(x, as: .bf16), to: format), weight,
                        bias: nil, to: device.place(residual, as: .bf16),
                        gate: device.place(bias, as: .f32))
                ]
            }
        }
    }

    mutating func addNorms() {
        for (rows, columns) in [(1, 96), (33, 200), (70, 1536)] {
            for dtype in [DType.f32, .bf16] {
                // The mean matters: it decides the difference between the two kinds.
                let x = random.normal([rows, columns], as: dtype, offset: 0.5)
                let y = random.normal([rows, columns], as: dtype)
                let weight = random.normal([columns], offset: 1)
                let bias = random.normal([columns])
                let size = "\(dtype) \(rows)x\(columns)"
                for kind in [NormKind.exact, .reference] {
                    add("layerNorm", "\(size) \(kind)", tolerance(dtype)) {
                        [
                            $0.layerNorm(
                                $0.place(x, as: dtype), weight: $0.place(weight, as: .f32),
                                bias: $0.place(bias, as: .f32), epsilon: 1e-6, kind: kind,
                                format: .plain)
                        ]
                    }
                    add("modulatedLayerNorm", "\(size) \(kind)", tolerance(dtype)) {
                        [
                            $0.modulatedLayerNorm(
                                $0.place(x, as: dtype), shift: $0.place(bias, as: .f32),
                                scale: $0.place(weight, as: .f32), epsilon: 1e-6, kind: kind,
                                format: .plain, dtype: nil)
                        ]
                    }
                    add("rmsNorm", "\(size) \(kind)", tolerance(dtype)) {
                        [
                            $0.rmsNorm(
                                $0.place(x, as: dtype), weight: $0.place(weight, as: .f32),
                                epsilon: 1e-6, kind: kind, format: .plain)
                        ]
                    }
                }
                add("gatedAdd", size, tolerance(dtype)) {
                    [
                        $0.gatedAdd(
                            $0.place(x, as: dtype), $0.place(y, as: dtype),
                            gate: $0.place(weight, as: .f32))
                    ]
                }
                add("geluGate", size, tolerance(dtype)) {
                    [$0.geluGate($0.place(x, as: dtype), $0.place(y, as: dtype), format: .plain)]
                }
                add("channelNorm", size, tolerance(dtype)) {
                    [
                        $0.channelNorm(
                            $0.place(x, as: dtype), gamma: $0.place(weight, as: .f32), silu: true)
                    ]
                }
            }
        }
        for (tokens, heads, headDim) in [(15, 2, 64), (70, 3, 128)] {
            for dtype in [DType.f32, .bf16] {
                let x = random.normal([tokens, heads * headDim], as: dtype)
                let weight = random.normal([heads * headDim], offset: 1)
                let cosine = random.normal([tokens, headDim / 2])
                let sine = random.normal([tokens, headDim / 2])
                add("rmsNormRope", "\(dtype) \(tokens)x\(heads)x\(headDim)", tolerance(dtype)) {
                    let rope = RotaryTable(
                        cosine: $0.place(cosine, as: .f32), sine: $0.place(sine, as: .f32))
                    return [
                        $0.rmsNormRope(
                            $0.place(x, as: dtype), weight: $0.place(weight, as: .f32),
                            epsilon: 1e-6, kind: .exact, rope: rope, heads: heads)
                    ]
                }
            }
        }
    }

    mutating func addAttention() {
        for (queries, keys, heads, headDim) in [(1, 1, 1, 64), (77, 33, 3, 64), (300, 300, 2, 128)]
        {
            for dtype in [DType.f32, .bf16] {
                let q = random.normal([queries, heads, headDim], as: dtype)
                let k = random.normal([keys, heads, headDim], as: dtype)
                let v = random.normal([keys, heads, headDim], as: dtype)
                let scale = 1 / Float(headDim).squareRoot()
                let size = "\(dtype) \(queries)x\(keys)x\(heads)x\(headDim)"
                for counts in keys == 1 ? [[], [480]] : [[], [480], [20, 384]] {
                    add(
                        "attention", "\(size) last keys x\(counts)",
                        dtype == .f32 ? single : Tolerance(relativeL2: 1e-2)
                    ) {
                        [
                            $0.attention(
                                $0.place(q, as: dtype), $0.place(k, as: dtype),
                                $0.place(v, as: dtype), scale: scale, lastKeyCounts: counts)
                        ]
                    }
                }
                guard queries == keys else { continue }
                let table = random.normal([32, heads])
                add(
                    "relativeAttention", size,
                    dtype == .f32 ? single : Tolerance(relativeL2: 1e-2)
                ) {
                    [
                        $0.relativeAttention(
                            $0.place(q, as: dtype), $0.place(k, as: dtype),
                            $0.place(v, as: dtype), table: $0.place(table, as: .f32))
                    ]
                }
            }
        }
        for (length, heads, headDim, topK) in [
            (70, 1, 64, 1.0), (390, 2, 64, 0.5), (520, 1, 128, 0.25),
        ] {
            addSparse(length, heads, headDim, topK)
        }
    }

    private mutating func addSparse(_ length: Int, _ heads: Int, _ headDim: Int, _ topK: Double) {
        let q = random.normal([length, heads, headDim], as: .bf16)
        // An offset for the mean subtraction of keys to remove.
        let k = random.normal([length, heads, headDim], as: .bf16, offset: 0.3)
        let v = random.normal([length, heads, headDim], as: .bf16)
        let weight = random.normal([headDim, headDim], as: .bf16, scale: 0.1)
        let bias = random.normal([headDim], scale: 0.1)
        let size = "\(length)x\(heads)x\(headDim) top \(brief(topK))"
        var choices: [(String, SparseAttention.Arithmetic, DType, Tolerance)] = [
            ("exact", .exact, .f32, Tolerance(relativeL2: 1e-4)),
            ("bf16", .bf16, .bf16, Tolerance(relativeL2: 6e-3)),
        ]
        for architecture in SageArchitecture.allCases {
            choices.append(
                (
                    architecture.rawValue, .sage(architecture), .bf16,
                    Tolerance(relativeL2: 8e-3, looseRelativeL2: 4e-2)
                ))
        }
        for (name, arithmetic, dtype, tolerance) in choices {
            let spec = SparseAttention(topK: topK, arithmetic: arithmetic)
            add(
                "sparseLinearAttention", "\(name) \(size)", tolerance,
                where: { $0.supports(arithmetic) }
            ) {
                [
                    $0.sparseLinearAttention(
                        $0.place(q, as: dtype), $0.place(k, as: dtype), $0.place(v, as: dtype),
                        projection: $0.place(.dense(weight), as: dtype, in: nil),
                        bias: $0.place(bias, as: .f32), spec)
                ]
            }
        }
        for arithmetic in [SparseAttention.Arithmetic.bf16, .sage(.sm90)] {
            let spec = SparseAttention(topK: topK, arithmetic: arithmetic)
            let shape = "\(spec.queryBlock)x\(spec.keyBlock) \(size)"
            add("blockMap", "scores \(shape)", Tolerance(relativeL2: 5e-3)) {
                [$0.blockMap($0.place(q, as: .bf16), $0.place(k, as: .bf16), spec).scores]
            }
            // Scores that differ in their last bit may swap two blocks at the cut.
            add("blockMap", "indices \(shape)", Tolerance(mismatches: 0.02)) {
                [$0.blockMap($0.place(q, as: .bf16), $0.place(k, as: .bf16), spec).indices]
            }
        }
    }

    mutating func addTokens() {
        for dtype in [DType.f32, .bf16] {
            let table = random.normal([300, 40], as: dtype)
            let ids = random.integers(37, below: 300)
            add("embedding", "\(dtype)", .exact) {
                [$0.embedding(ids, hostTable: table, as: dtype)]
            }
            let latents = random.normal([16, 3, 6, 10])
            let conditioning = random.normal([20, 3, 6, 10])
            add("patchify", "\(dtype)", .exact) {
                [
                    $0.patchify(
                        [$0.place(latents, as: .f32), $0.place(conditioning, as: .f32)],
                        dtype: dtype)
                ]
            }
            let parts = [3, 1, 4].map { random.normal([$0, 5, 7], as: dtype) }
            add("concatenate", "\(dtype)", .exact) { device in
                [device.concatenate(parts.map { device.place($0, as: dtype) })]
            }
            let frames = random.normal([3, 5, 7, 24], as: dtype)
            add("interleaveTime", "\(dtype)", .exact) {
                [$0.interleaveTime($0.place(frames, as: dtype))]
            }
            let pixels = random.normal([2, 9, 11, 3], as: dtype, scale: 0.7)
            add("rgb8", "\(dtype)", Tolerance(maximum: 1, mismatches: 1e-3)) {
                [$0.rgb8($0.place(pixels, as: dtype))]
            }
            for shape: Shape in [[2, 10, 14, 3], [3, 6, 24, 3]] {
                let frames = random.normal(shape, as: dtype, scale: 0.7)
                add("nv12", "\(dtype) \(shape)", Tolerance(maximum: 1, mismatches: 1e-3)) {
                    [$0.nv12($0.place(frames, as: dtype))]
                }
            }
            let scale = random.normal([16]).floats()
            let shift = random.normal([16]).floats()
            add("channelsLast", "\(dtype)", tolerance(dtype)) {
                [
                    $0.channelsLast(
                        $0.place(latents, as: .f32), scale: scale, shift: shift, dtype: dtype)
                ]
            }
            let last = random.normal([3, 6, 10, 16], as: dtype)
            add("channelsFirst", "\(dtype)", single) {
                [$0.channelsFirst($0.place(last, as: dtype), scale: scale, shift: shift)]
            }
        }
        let head = random.normal([3 * 3 * 5, 64])
        add("unpatchify", "f32", .exact) {
            [$0.unpatchify($0.place(head, as: .f32), size: (t: 3, h: 6, w: 10))]
        }
        let state = random.normal([2, 16, 3, 6, 10], as: .f64)
        let velocity = random.normal([2, 16, 3, 6, 10])
        let noise = random.normal([2, 16, 3, 6, 10])
        for sde in [true, false] {
            add("rcmStep", sde ? "sde" : "ode", Tolerance(relativeL2: 1e-14)) {
                [
                    $0.rcmStep(
                        $0.place(state, as: .f64), velocity: $0.place(velocity, as: .f32),
                        noise: sde ? $0.place(noise, as: .f32) : nil, t: 0.9, next: 0.7)
                ]
            }
        }
        for dtype in [DType.f32, .f64] {
            add("combine", "\(dtype)", Tolerance(relativeL2: dtype == .f32 ? 1e-7 : 1e-14)) {
                [
                    $0.combine(
                        [$0.place(velocity, as: .f32), $0.place(noise, as: .f32)], [-2.5, 3.5],
                        as: dtype)
                ]
            }
        }
        for shape in [[17], [16, 3, 8, 8], [2, 16, 9, 40, 70]] {
            add("noise", "\(shape)", Tolerance(maximum: 5e-6)) { device in
                var generator = PhiloxNoise(seed: 42)
                return [
                    device.noise(Shape(shape), generator: &generator),
                    device.noise(Shape(shape), generator: &generator),
                ]
            }
        }
    }

    mutating func addConvolutions() {
        /// A convolution of the video autoencoder.
        struct Layer {
            var name: String
            var time, height, width, inputs, outputs: Int
            var kernel: (Int, Int, Int)
            var history = 0
            var zeros = 0
            var timeStride = 1
            var stride = 1
            var padding = SpatialPadding.same
            var upsample = false
            var hasResidual = false
        }
        let layers = [
            Layer(
                name: "causal, first chunk", time: 1, height: 6, width: 8, inputs: 16,
                outputs: 24, kernel: (3, 3, 3), zeros: 2),
            Layer(
                name: "causal, history", time: 4, height: 5, width: 7, inputs: 24, outputs: 24,
                kernel: (3, 3, 3), history: 2, hasResidual: true),
            Layer(
                name: "causal, short history", time: 2, height: 9, width: 5, inputs: 48,
                outputs: 96, kernel: (3, 3, 3), history: 1, zeros: 1),
            Layer(
                name: "pointwise", time: 3, height: 5, width: 7, inputs: 40, outputs: 16,
                kernel: (1, 1, 1)),
            Layer(
                name: "upsample", time: 2, height: 5, width: 6, inputs: 48, outputs: 24,
                kernel: (1, 3, 3), upsample: true),
            Layer(
                name: "downsample", time: 2, height: 10, width: 12, inputs: 24, outputs: 24,
                kernel: (1, 3, 3), stride: 2, padding: .bottomRight),
            Layer(
                name: "time downsample", time: 4, height: 5, width: 6, inputs: 24, outputs: 24,
                kernel: (3, 1, 1), history: 1, timeStride: 2),
            Layer(
                name: "time upsample", time: 1, height: 5, width: 6, inputs: 24, outputs: 48,
                kernel: (3, 1, 1), zeros: 2),
            Layer(
                name: "to pixels", time: 4, height: 9, width: 11, inputs: 24, outputs: 3,
                kernel: (3, 3, 3), history: 2),
            Layer(
                name: "from pixels", time: 4, height: 9, width: 11, inputs: 3, outputs: 24,
                kernel: (3, 3, 3), history: 2),
        ]
        for layer in layers {
            for dtype in [DType.f32, .bf16] {
                let x = random.normal(
                    [layer.time, layer.height, layer.width, layer.inputs], as: dtype)
                let past = random.normal(
                    [max(layer.history, 1), layer.height, layer.width, layer.inputs], as: dtype)
                let (kt, kh, kw) = layer.kernel
                let weight = random.normal(
                    [layer.outputs, kt, kh, kw, layer.inputs], as: dtype, scale: 0.1)
                let bias = random.normal([layer.outputs])
                let residual = random.normal(
                    [layer.time, layer.height, layer.width, layer.outputs], as: dtype)
                add("convolution", "\(dtype) \(layer.name)", tolerance(dtype)) { device in
                    [
                        device.convolution(
                            device.place(x, as: dtype),
                            history: layer.history > 0 ? device.place(past, as: dtype) : nil,
                            leadingZeros: layer.zeros,
                            ConvolutionWeight(
                                device.place(weight, as: dtype), bias: device.place(bias, as: .f32)),
                            timeStride: layer.timeStride, spatialStride: layer.stride,
                            padding: layer.padding, upsample: layer.upsample,
                            residual: layer.hasResidual ? device.place(residual, as: dtype) : nil)
                    ]
                }
            }
        }
    }
}

extension Tensor {
    fileprivate var withoutScales: Tensor {
        Tensor(shape, dtype, storage: storage, byteOffset: byteOffset)
    }
}
