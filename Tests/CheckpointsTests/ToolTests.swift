// Quantise, merge, convert: against the original's bytes, its formula, and back again.

import Checkpoints
import FoundationEssentials
import Glibc
import Ground
import Tensors
import Testing

@Suite("Tools")
struct ToolTests {
    @Test(
        "int8 blocks equal the original's, byte for byte",
        arguments: ["q_133x384_edge", "q_1x256", "q_40x200_undefined"])
    func int8Blocks(name: String) throws {
        let file = try openCheckpoint(golden("int8_quant/\(name).safetensors"))
        let x = try #require(try file.tensor("in.x"))
        let (codes, scale) = Int8Blocks.quantize(x)
        #expect(try file.tensor("out.q")?.bytes == codes.bytes)
        #expect(try file.tensor("out.scale")?.bytes == scale.bytes)
    }

    @Test("a whole checkpoint equals the original's quantised one")
    func quantizedModel() throws {
        let plain = try openCheckpoint(golden("weights/wan21_d128h64.safetensors"))
        let expected = try openCheckpoint(golden("weights/wan21q_d128h64_sla_quant.pth"))
        let result = try quantized(plain, to: .int8Blocks)
        #expect(result.layers.count == 20 && result.skipped.isEmpty)
        for name in expected.names where !name.contains("proj_l") {
            #expect(result.checkpoint.info(name) == expected.info(name), "\(name)")
            let found = try #require(try result.checkpoint.tensor(name))
            #expect(try expected.tensor(name)?.bytes == found.bytes, "\(name)")
        }
        #expect(throws: CheckpointError.self) { try quantized(expected, to: .int8Blocks) }
    }

    @Test("centred text: padding is zero, keys and values are what they were")
    func centredText() throws {
        let model = WanTransformerArchitecture(
            dim: 128, layers: 2, feedForward: 256, heads: 1, textDim: 32)
        let plain = randomTransformer(model, .f32)
        let usual = try quantized(plain, to: .int8Blocks).checkpoint
        let centred = try quantized(plain, to: .int8Blocks, centresText: true).checkpoint
        let readers = (0..<2).flatMap { block in
            ["k", "v"].map { "blocks.\(block).cross_attn.\($0)" }
        }
        let changed = Set((["text_embedding.2"] + readers).map { $0 + ".bias" })
        #expect(Set(usual.names) == Set(centred.names))
        for name in usual.names {
            #expect(usual.info(name) == centred.info(name))
            let isEqual = try usual.tensor(name)?.bytes == centred.tensor(name)?.bytes
            #expect(isEqual != changed.contains(name), "\(name)")
        }

        /// weight x + bias
        func layer(_ name: String, of file: any Checkpoint, _ x: [Float]) throws -> [Float] {
            let weight = try #require(try plain.tensor(name + ".weight")).floats()
            let bias = try #require(try file.tensor(name + ".bias")).floats()
            return bias.indices.map { row in
                bias[row]
                    + zip(weight[row * x.count..<(row + 1) * x.count], x).reduce(0) {
                        $0 + $1.0 * $1.1
                    }
            }
        }
        func gelu(_ x: Float) -> Float {
            let y = 0.797_884_6 * (x + 0.044715 * x * x * x)
            return 0.5 * x * (1 + Float(1 - 2 / (exp(2 * Double(y)) + 1)))
        }
        var random = SplitMix64(seed: 3)
        let prompt = Tensor.random([32], .f32, using: &random).floats()
        for (row, isPadding) in [([Float](repeating: 0, count: 32), true), (prompt, false)] {
            let inner = try layer("text_embedding.0", of: plain, row).map(gelu)
            let before = try layer("text_embedding.2", of: plain, inner)
            let after = try layer("text_embedding.2", of: centred, inner)
            if isPadding { #expect(after.allSatisfy { $0.magnitude < 1e-4 }) }
            #expect(before.contains { $0.magnitude > 0.1 })
            for reader in readers {
                let expected = try layer(reader, of: plain, before)
                let found = try layer(reader, of: centred, after)
                for (a, b) in zip(expected, found) {
                    #expect((a - b).magnitude < 1e-3 * max(1, a.magnitude), "\(reader)")
                }
            }
        }
        #expect(throws: CheckpointError.self) {
            try quantized(usual, to: .int8Blocks, centresText: true)
        }
    }

    @Test(
        "only biases that are numbers can be moved",
        arguments: [DType.i32, .u8, .bool, .f8e5m2, .f8e4m3])
    func centredCodes(type: DType) {
        let model = WanTransformerArchitecture(
            dim: 128, layers: 1, feedForward: 128, heads: 1, textDim: 32)
        for name in ["text_embedding.2.bias", "blocks.0.cross_attn.v.bias"] {
            let base = randomTransformer(model, .f32).replacing(name, by: .zeros([128], type))
            #expect(
                throws: CheckpointError.dtype(
                    name, in: "memory", expected: "f64, f32, f16 or bf16", found: "\(type)")
            ) { try quantized(base, to: .int8Blocks, centresText: true) }
        }
    }

    @Test("codes without scales are not left among quantised layers", arguments: [DType.u8, .i8])
    func bareCodes(type: DType) {
        let model = WanTransformerArchitecture(
            dim: 128, layers: 1, feedForward: 256, heads: 1, textDim: 32)
        let base = randomTransformer(model).replacing(
            "blocks.0.ffn.0.weight", by: .zeros([256, 128], type))
        #expect {
            try quantized(base, to: .fp8Rows)
        } throws: {
            "\($0)" == "memory: 'blocks.0.ffn.0.weight' has \(type) codes without scales"
        }
    }

    @Test("a tensor whose type is not read is missed by no tool, if the model needs it")
    func unreadTensors() throws {
        let folder = try TemporaryFolder()
        let model = WanTransformerArchitecture(
            dim: 8, layers: 1, feedForward: 8, heads: 1, textDim: 8)
        func open(strange: String) throws -> (path: String, file: any Checkpoint) {
            var tensors = model.tensors().map { tensor in
                let values = [Float](repeating: 0, count: tensor.shape.reduce(1, *))
                let type = tensor.name == strange ? "U32" : "F32"
                return (tensor.name, type, tensor.shape, floatBytes(values))
            }
            tensors.append(("steps", "U64", [1], bytes(of: 7)))
            let path = try folder.file(
                "\(strange).safetensors",
                safetensorsFile(tensors))
            return (path, try openCheckpoint(path))
        }
        for name in ["blocks.0.ffn.0.weight", "head.head.bias"] {
            let (path, file) = try open(strange: name)
            let lora = LoRA(MemoryCheckpoint([("blocks.0.norm3.diff", .zeros([8], .f32))]))
            for tool: () throws -> Void in [
                { _ = try converted(file, Conversion()) },
                { _ = try quantized(try inOriginalNames(file), to: .fp8Rows) },
                { _ = try merged(base: file, target: file, diffBase: file) },
                { _ = try adapted(file, by: [lora]) },
            ] {
                #expect(
                    throws: CheckpointError.dtype(
                        name, in: path, expected: "numbers", found: "U32")
                ) { try tool() }
            }
        }
        // What the model does not need is left out.
        let whole = try converted(try open(strange: "none").file, Conversion())
        #expect(whole.names.count == model.tensors().count)
    }

    @Test("fp8 rows stay within half a step of the format")
    func fp8Rows() {
        var random = SplitMix64(seed: 5)
        let x = Tensor.random([37, 200], using: &random)
        let (codes, scale) = FP8Rows.quantize(x)
        #expect(codes.dtype == .f8e4m3 && scale.shape == [37])
        let back = FP8Rows.dequantize(codes, scale: scale).floats()
        let scales = scale.floats()
        for (index, (a, b)) in zip(x.floats(), back).enumerated() {
            // 3 mantissa bits, or steps of 2^-9 near zero
            let step = max(a.magnitude / 16, scales[index / 200] * 0x1p-10)
            #expect((a - b).magnitude <= step * 1.0001)
        }
    }

    @Test("layers whose width is not a multiple of 128 stay plain; weights must be numbers")
    func quantizingEdges() throws {
        let model = WanTransformerArchitecture(
            dim: 128, layers: 2, feedForward: 200, heads: 2, textDim: 32)
        let result = try quantized(randomTransformer(model), to: .int8Blocks)
        #expect(result.skipped == ["blocks.0.ffn.2", "blocks.1.ffn.2"])
        #expect(CheckpointSummary(result.checkpoint).isComplete)
        let tensors = model.tensors().map { expected -> (String, Tensor) in
            var values = [Float](repeating: 1, count: expected.shape.reduce(1, *))
            // One number that all others follow.
            if expected.name == "blocks.1.ffn.0.weight" { values[0] = .nan }
            return (expected.name, Tensor(values, Shape(expected.shape)))
        }
        let folder = try TemporaryFolder()
        #expect {
            try writeCheckpoint(
                try quantized(MemoryCheckpoint(tensors), to: .int8Blocks).checkpoint,
                to: folder.path + "/x.safetensors")
        } throws: {
            "\($0)".contains("'blocks.1.ffn.0.weight' holds infinities or NaNs")
        }
        #expect(folder.contents.isEmpty)
        // While loading, codes would hide numbers that are not finite.
        let weights = Weights(
            MemoryCheckpoint(tensors), on: NullBackend(), activations: .bf16,
            linearFormat: .int8Blocks)
        #expect(throws: CheckpointError.self) {
            try weights["blocks"][1]["ffn"][0].linear(from: 128, to: 200, quantizable: true)
        }
        // Tensors that are not quantised must be numbers as well.
        let norm = MemoryCheckpoint(
            tensors.map { name, tensor in
                (
                    name,
                    name == "blocks.0.norm3.bias"
                        ? Tensor([Float](repeating: .infinity, count: 128), [128])
                        : Tensor.zeros(tensor.shape, .f32)
                )
            })
        #expect(throws: CheckpointError.self) {
            try writeCheckpoint(
                try quantized(norm, to: .int8Blocks).checkpoint, to: folder.path + "/x.safetensors")
        }
        #expect(throws: CheckpointError.self) {
            try quantized(Outline(WanVAEArchitecture().tensors()), to: .int8Blocks)
        }
    }

    @Test(
        "a text encoder: its linear layers alone, read like a transformer's",
        arguments: [LinearFormat.int8Blocks, .fp8Rows])
    func quantizedTextEncoder(format: LinearFormat) throws {
        let model = UMT5Architecture(
            vocabulary: 40, dim: 128, attentionDim: 128, feedForward: 256, heads: 2, layers: 2)
        var random = SplitMix64(seed: 4)
        let plain = MemoryCheckpoint(
            model.tensors().map {
                ($0.name, Tensor.random(Shape($0.shape), .bf16, using: &random))
            })
        let result = try quantized(plain, to: format)
        #expect(result.layers.count == 14 && result.skipped.isEmpty)
        let opened = try modelFile(result.checkpoint, .umT5)
        #expect(opened.model == .umT5(model) && opened.unused.isEmpty)
        #expect(opened.linearFormats == [.plain, format])
        // Tables stay as they are.
        for name in ["token_embedding.weight", "blocks.1.pos_embedding.embedding.weight"] {
            #expect(try result.checkpoint.tensor(name)?.bytes == plain.tensor(name)?.bytes)
        }
        let weights = Weights(result.checkpoint, on: NullBackend(), activations: .bf16)
        let layer = try weights["blocks"][1]["ffn"]["gate"][0].linear(from: 128, to: 256)
        #expect(layer.weight.inputFormat == format)
        // Numbers up to 1: half a step of fp8, or the step that int8's largest number lacks.
        let back = try dequantized(result.checkpoint, to: .f32)
        let name = "blocks.0.attn.q.weight"
        let a = try #require(try plain.tensor(name)).floats()
        let b = try #require(try back.tensor(name)).floats()
        let step: Float = format == .fp8Rows ? 1 / 16 : 1 / 128
        #expect(zip(a, b).allSatisfy { ($0 - $1).magnitude <= step * 1.0001 })

        #expect(throws: CheckpointError.self) { try quantized(result.checkpoint, to: format) }
        #expect(throws: CheckpointError.self) {
            try quantized(plain, to: format, centresText: true)
        }
        // q, k and v read the same input.
        func belongs(_ name: String) -> Bool { name.hasPrefix("blocks.0.attn.q") }
        let tensors =
            try plain.names.filter { !belongs($0) }.map { ($0, try #require(try plain.tensor($0))) }
            + result.checkpoint.names.filter(belongs).map {
                ($0, try #require(try result.checkpoint.tensor($0)))
            }
        let mixed = MemoryCheckpoint(tensors)
        #expect(throws: CheckpointError.self) { try modelFile(mixed, .umT5) }
    }

    // MARK: Merging

    @Test("merging is base + w (target - diff base), rounded once")
    func merging() throws {
        var random = SplitMix64(seed: 11)
        let shape: Shape = [33, 47]
        let (x, y, z) = (
            Tensor.random(shape, .bf16, using: &random), Tensor.random(shape, using: &random),
            Tensor.random(shape, .f16, using: &random)
        )
        let only = Tensor.random([3], using: &random)
        let result = try merged(
            base: MemoryCheckpoint([("a", x), ("base", only)]),
            target: MemoryCheckpoint([("a", y), ("target", only)]),
            diffBase: MemoryCheckpoint([("a", z), ("diff", only)]), weight: 0.7)
        #expect(result.merged == 1)
        #expect(result.keptFromBase == ["base"] && result.takenFromTarget == ["target"])
        #expect(result.checkpoint.names == ["a", "base", "target"])
        let found = try #require(try result.checkpoint.tensor("a"))
        let expected = zip(x.floats(), zip(y.floats(), z.floats())).map { a, pair in
            BFloat16(a + 0.7 * (pair.0 - pair.1)).float
        }
        #expect(found.dtype == .bf16 && found.floats() == expected)
    }

    @Test("what cannot be merged is refused")
    func mergeErrors() {
        let a = MemoryCheckpoint([("a", .zeros([4], .f32))])
        let b = MemoryCheckpoint([("a", .zeros([5], .f32))])
        let c = MemoryCheckpoint([("a", .zeros([4], .i8))])
        let d = MemoryCheckpoint([("d", .zeros([4], .f32))])
        #expect(throws: CheckpointError.shape("a", in: "memory", expected: [4], found: [5])) {
            try merged(base: a, target: b, diffBase: a)
        }
        #expect(throws: CheckpointError.self) { try merged(base: a, target: a, diffBase: c) }
        #expect(throws: CheckpointError.self) { try merged(base: d, target: a, diffBase: a) }
        // Quantised layers, in whichever of the three: their norms alone would be merged.
        let norm = ("norm.weight", Tensor.zeros([2], .f32))
        let plain = MemoryCheckpoint([norm, ("b.weight", .zeros([2, 2], .f32))])
        let one = Tensor([1] as [Float], [1, 1])
        for layer: [(String, Tensor)] in [
            [("b.int8_weight", .zeros([2, 2], .i8)), ("b.scale", one)],
            [("b.weight", .zeros([2, 2], .f8e4m3)), ("b.weight_scale", one)],
            [("b.weight", .zeros([2, 2], .bf16)), ("b.weight_scale", one)],
        ] {
            for place in 0..<3 {
                var files = [plain, plain, plain]
                files[place] = MemoryCheckpoint([norm] + layer)
                #expect {
                    try merged(base: files[0], target: files[1], diffBase: files[2])
                } throws: {
                    "\($0)".contains("'\(layer[0].0)' is quantised")
                }
            }
        }
    }

    // MARK: Converting

    @Test("names are converted to every layout and back", arguments: KeyLayout.allCases)
    func layouts(layout: KeyLayout) throws {
        var transformer = WanTransformerArchitecture(
            dim: 64, layers: 11, feedForward: 96, heads: 2, inputChannels: 36, textDim: 32)
        transformer.hasSparseLinearAttention = true
        let models: [[ExpectedTensor]] = [
            transformer.tensors(), WanVAEArchitecture(dim: 4).tensors(),
            UMT5Architecture(
                vocabulary: 40, dim: 16, attentionDim: 16, feedForward: 24, heads: 2, layers: 11
            ).tensors(),
        ]
        for tensors in models {
            var random = SplitMix64(seed: 2)
            let base = MemoryCheckpoint(
                tensors.map { ($0.name, Tensor.random(Shape($0.shape), using: &random)) })
            var conversion = Conversion()
            conversion.layout = layout
            let there = try converted(base, conversion)
            #expect(there.names.count == base.names.count)
            let back = try inOriginalNames(there)
            #expect(try areEqual(base, back))
            let patch = there.info("patch_embedding.weight")?.shape
            if let patch {
                #expect(patch == (layout == .original ? [64, 144] : [64, 36, 1, 2, 2]))
            }
        }
    }

    @Test("names that other programs publish")
    func knownNames() throws {
        let cases: [(KeyLayout, [ExpectedTensor], [String])] = [
            (
                .diffusers, WanTransformerArchitecture.nano.tensors(),
                [
                    "condition_embedder.time_embedder.linear_1.weight",
                    "condition_embedder.text_embedder.linear_2.bias",
                    "condition_embedder.time_proj.weight", "scale_shift_table",
                    "proj_out.weight", "blocks.3.scale_shift_table",
                    "blocks.0.attn1.to_q.weight", "blocks.9.attn2.to_out.0.bias",
                    "blocks.0.attn1.norm_k.weight", "blocks.0.norm2.weight",
                    "blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.net.2.bias",
                ]
            ),
            (
                .diffusers, WanVAEArchitecture().tensors(),
                [
                    "encoder.conv_in.weight", "encoder.down_blocks.3.conv_shortcut.weight",
                    "encoder.down_blocks.5.resample.1.bias", "encoder.down_blocks.8.time_conv.bias",
                    "encoder.mid_block.resnets.1.conv2.weight", "quant_conv.bias",
                    "decoder.mid_block.attentions.0.to_qkv.weight", "decoder.norm_out.gamma",
                    "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
                    "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
                    "decoder.up_blocks.2.upsamplers.0.resample.1.weight",
                    "decoder.up_blocks.3.resnets.2.norm1.gamma", "post_quant_conv.weight",
                ]
            ),
            (
                .comfyui, UMT5Architecture.nano.tensors(),
                [
                    "shared.weight", "encoder.final_layer_norm.weight",
                    "encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight",
                    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                    "encoder.block.0.layer.1.layer_norm.weight",
                ]
            ),
        ]
        for (layout, tensors, names) in cases {
            let base = MemoryCheckpoint(
                tensors.map { ($0.name, Tensor.zeros(Shape($0.shape), .i8)) })
            var conversion = Conversion()
            conversion.layout = layout
            let there = Set(try converted(base, conversion).names)
            #expect(there.isSuperset(of: names), "\(names.filter { !there.contains($0) })")
        }
    }

    @Test("types change and proj_l is added where it is missing")
    func contents() throws {
        let model = WanTransformerArchitecture(
            dim: 128, layers: 2, feedForward: 128, heads: 2, textDim: 32)
        var conversion = Conversion()
        conversion.dtype = .f16
        conversion.addsSparseLinear = true
        conversion.heads = 2
        let result = try converted(randomTransformer(model), conversion)
        var expected = model
        expected.hasSparseLinearAttention = true
        let summary = CheckpointSummary(result)
        #expect(summary.model == .wanTransformer(expected) && summary.isComplete)
        #expect(result.names.allSatisfy { result.info($0)?.dtype == .f16 })
        let branch = try result.tensor("blocks.1.self_attn.attn_op.local_attn.proj_l.weight")
        #expect(branch?.shape == [64, 64] && branch?.floats().allSatisfy { $0 == 0 } == true)
        #expect(throws: CheckpointError.self) {
            try converted(MemoryCheckpoint([("a", .zeros([1], .f32))]), conversion)
        }
        let quantizedOnce = try quantized(randomTransformer(model), to: .int8Blocks).checkpoint
        conversion.addsSparseLinear = false
        let kept = try converted(quantizedOnce, conversion)
        #expect(kept.info("blocks.0.ffn.0.int8_weight")?.dtype == .i8)
        #expect(kept.info("blocks.0.ffn.0.scale")?.dtype == .f32)
        #expect(kept.info("blocks.0.ffn.0.bias")?.dtype == .f16)
        conversion.dequantizes = true
        let plain = try converted(quantizedOnce, conversion)
        #expect(Set(plain.names) == Set(model.tensors().map(\.name)))
        #expect(plain.info("blocks.0.ffn.0.weight")?.dtype == .f16)
    }

    @Test("a critic that lies beside a net is no part of it")
    func critic() throws {
        let one = Tensor([1] as [Float], [1])
        let file = MemoryCheckpoint([("net_fake_score.a", one), ("a", one), ("b", one)])
        #expect(try withoutCritic(file).names == ["a", "b"])
    }
}

@Suite("ComfyUI's scaled fp8")
struct ScaledFP8Tests {
    @Test("blocks keep their codes, other matrices become plain")
    func scaled() throws {
        let codes = Tensor([1, -2, 3, 4] as [Float], [2, 2]).converted(to: .f8e4m3)
        let base = MemoryCheckpoint([
            ("scaled_fp8", .zeros([0], .f8e4m3)),
            ("blocks.0.self_attn.q.weight", codes),
            ("blocks.0.self_attn.q.scale_weight", Tensor([0.5], [1])),
            ("blocks.0.self_attn.q.scale_input", Tensor([1] as [Float], [1])),
            ("head.head.weight", codes), ("head.head.scale_weight", Tensor([2] as [Float], [])),
        ])
        let own = try inOriginalNames(base)
        #expect(
            own.names == [
                "blocks.0.self_attn.q.fp8_weight", "blocks.0.self_attn.q.scale",
                "head.head.weight",
            ])
        #expect(try own.tensor("blocks.0.self_attn.q.fp8_weight")?.bytes == codes.bytes)
        #expect(try own.tensor("blocks.0.self_attn.q.scale")?.floats() == [0.5, 0.5])
        #expect(try own.tensor("head.head.weight")?.floats() == [2, -4, 6, 8])
        let plain = try dequantized(base, to: .f32)
        #expect(try plain.tensor("blocks.0.self_attn.q.weight")?.floats() == [0.5, -1, 1.5, 2])
    }
}

@Suite("Large checkpoints")
struct LargeCheckpointTests {
    @Test("28 GB open in no time", .timeLimit(.minutes(1)))
    func sparse() throws {
        let folder = try TemporaryFolder()
        let tensors = WanTransformerArchitecture.wan21T2V14B.tensors()
        var fields: [String] = []
        var offset = 0
        for tensor in tensors {
            let end = offset + 2 * tensor.shape.reduce(1, *)
            fields.append(
                "\"\(tensor.name)\":{\"dtype\":\"BF16\",\"shape\":\(tensor.shape),"
                    + "\"data_offsets\":[\(offset),\(end)]}")
            offset = end
        }
        let header = Array("{\(fields.joined(separator: ","))}".utf8)
        let length = withUnsafeBytes(of: UInt64(header.count).littleEndian) { Array($0) }
        let path = try folder.file("14B.safetensors", length + header)
        // The data are a hole in the file.
        try #require(truncate(path, off_t(8 + header.count + offset)) == 0)
        let before = peakMemory()
        var summary: CheckpointSummary?
        let time = try ContinuousClock().measure {
            summary = CheckpointSummary(try openCheckpoint(path))
        }
        #expect(summary?.model == .wanTransformer(.wan21T2V14B))
        #expect(summary?.isComplete == true && summary?.byteCount == 28_576_983_168)
        #expect(time < .milliseconds(500))
        #expect(peakMemory() - before < 64 << 20)
        let checkpoint = try openCheckpoint(path)
        let last = try #require(try checkpoint.tensor("blocks.39.ffn.2.weight"))
        #expect(last.slice(5119..<5120).floats().allSatisfy { $0 == 0 })
    }
}
