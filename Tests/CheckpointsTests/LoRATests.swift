// Adaptations in every layout give the same weights; those of other models are named.

import Checkpoints
import Ground
import Tensors
import Testing

@Suite("LoRA")
struct LoRATests {
    static let model = WanTransformerArchitecture(
        dim: 128, layers: 2, feedForward: 256, heads: 1, textDim: 32)

    /// Two adapted layers: name, its other names, up, down.
    struct Layer {
        let name, diffusers: String
        let up, down: Tensor
    }

    static func layers(rank: Int = 4) -> [Layer] {
        var random = SplitMix64(seed: 21)
        return [
            Layer(
                name: "blocks.1.self_attn.o", diffusers: "blocks.1.attn1.to_out.0",
                up: .random([128, rank], .bf16, using: &random),
                down: .random([rank, 128], .bf16, using: &random)),
            Layer(
                name: "blocks.0.ffn.2", diffusers: "blocks.0.ffn.net.2",
                up: .random([128, rank], using: &random),
                down: .random([rank, 256], using: &random)),
        ]
    }

    static func flat(_ name: String) -> String { String(name.map { $0 == "." ? "_" : $0 }) }

    @Test("all layouts", arguments: 0..<5)
    func layouts(layout: Int) throws {
        var tensors: [(String, Tensor)] = []
        let alpha: Float = layout == 0 || layout == 4 ? 2 : 4
        for layer in Self.layers() {
            switch layout {
            case 0:
                tensors += [
                    ("lora_unet_\(Self.flat(layer.name)).lora_up.weight", layer.up),
                    ("lora_unet_\(Self.flat(layer.name)).lora_down.weight", layer.down),
                    ("lora_unet_\(Self.flat(layer.name)).alpha", Tensor([alpha], [])),
                ]
            case 1:
                tensors += [
                    ("diffusion_model.\(layer.name).lora_A.weight", layer.down),
                    ("diffusion_model.\(layer.name).lora_B.weight", layer.up),
                ]
            case 2:
                tensors += [
                    ("transformer.\(layer.diffusers).lora_A.weight", layer.down),
                    ("transformer.\(layer.diffusers).lora_B.weight", layer.up),
                ]
            case 3:
                tensors += [
                    ("base_model.model.\(layer.diffusers).lora_A.default.weight", layer.down),
                    ("base_model.model.\(layer.diffusers).lora_B.default.weight", layer.up),
                ]
            default:
                tensors += [
                    ("lora_unet_\(Self.flat(layer.diffusers)).lora_up.weight", layer.up),
                    ("lora_unet_\(Self.flat(layer.diffusers)).lora_down.weight", layer.down),
                    ("lora_unet_\(Self.flat(layer.diffusers)).alpha", Tensor([alpha], [])),
                ]
            }
        }
        let base = randomTransformer(Self.model)
        let result = try adapted(
            base, by: [LoRA(MemoryCheckpoint(tensors), strength: 0.5)])
        #expect(result.unmatched.isEmpty)
        #expect(result.changed == Self.layers().map { $0.name + ".weight" }.sorted())
        for name in base.names {
            let found = try #require(try result.checkpoint.tensor(name))
            let original = try #require(try base.tensor(name))
            guard let layer = Self.layers().first(where: { $0.name + ".weight" == name }) else {
                #expect(found.bytes == original.bytes)
                continue
            }
            let expected = product(layer.up, layer.down, 0.5 * Double(alpha) / 4, original)
            #expect(relative(found.floats(), expected) < 0.002, "\(name)")
        }
    }

    /// weight + scale · up · down in double precision
    private func product(
        _ up: Tensor, _ down: Tensor, _ scale: Double, _ weight: Tensor
    ) -> [Double] {
        let (rows, rank, columns) = (up.shape[0], up.shape[1], down.shape[1])
        let (u, d, w) = (up.floats(), down.floats(), weight.floats())
        return (0..<rows * columns).map { index in
            let (row, column) = (index / columns, index % columns)
            let sum = (0..<rank).reduce(0.0) {
                $0 + Double(u[row * rank + $1]) * Double(d[$1 * columns + column])
            }
            return Double(w[index]) + scale * sum
        }
    }

    private func relative(_ found: [Float], _ expected: [Double]) -> Double {
        let error = zip(found, expected).reduce(0) {
            $0 + (Double($1.0) - $1.1) * (Double($1.0) - $1.1)
        }
        return (error / expected.reduce(0) { $0 + $1 * $1 }).squareRoot()
    }

    @Test("full differences of weights, biases and modulations")
    func differences() throws {
        var random = SplitMix64(seed: 4)
        let weight = Tensor.random([128, 128], using: &random)
        let bias = Tensor.random([128], using: &random)
        let modulation = Tensor.random([1, 6, 128], using: &random)
        let base = randomTransformer(Self.model, .f32)
        let result = try adapted(
            base,
            by: [
                LoRA(
                    MemoryCheckpoint([
                        ("diffusion_model.blocks.0.cross_attn.v.diff", weight),
                        ("diffusion_model.blocks.0.cross_attn.v.diff_b", bias),
                        ("diffusion_model.blocks.1.diff_m", modulation),
                        ("diffusion_model.blocks.7.cross_attn.v.diff_b", bias),
                        ("diffusion_model.audio_proj.diff_b", bias),
                    ]), strength: 2)
            ])
        #expect(result.unmatched.count == 2)
        for (name, change) in [
            ("blocks.0.cross_attn.v.weight", weight), ("blocks.0.cross_attn.v.bias", bias),
            ("blocks.1.modulation", modulation),
        ] {
            let before = try #require(try base.tensor(name)).floats()
            let after = try #require(try result.checkpoint.tensor(name)).floats()
            #expect(after == zip(before, change.floats()).map { $0 + 2 * $1 })
        }
    }

    @Test(
        "quantised layers are changed and quantised again",
        arguments: [LinearFormat.int8Blocks, .fp8Rows])
    func quantizedBase(format: LinearFormat) throws {
        let base = randomTransformer(Self.model)
        let lora = MemoryCheckpoint(
            Self.layers().flatMap {
                [("\($0.name).lora_up.weight", $0.up), ("\($0.name).lora_down.weight", $0.down)]
            })
        let small = try quantized(base, to: format).checkpoint
        let result = try adapted(small, by: [LoRA(lora, strength: 0.1)]).checkpoint
        #expect(CheckpointSummary(result).isComplete)
        let plain = try adapted(base, by: [LoRA(lora, strength: 0.1)]).checkpoint
        for layer in Self.layers() {
            let codes = try #require(try result.tensor("\(layer.name).\(format.rawValue)_weight"))
            let scale = try #require(try result.tensor(layer.name + ".scale"))
            let found =
                format == .int8Blocks
                ? Int8Blocks.dequantize(codes, scale: scale)
                : FP8Rows.dequantize(codes, scale: scale)
            let expected = try #require(try plain.tensor(layer.name + ".weight"))
            #expect(relative(found.floats(), expected.floats().map(Double.init)) < 0.05)
        }
    }

    @Test("adaptations of other models are refused and named")
    func foreign() {
        let base = randomTransformer(Self.model)
        let wide = MemoryCheckpoint([
            ("blocks.0.self_attn.q.lora_A.weight", .zeros([2, 5120], .f32)),
            ("blocks.0.self_attn.q.lora_B.weight", .zeros([5120, 2], .f32)),
        ])
        #expect {
            try adapted(base, by: [LoRA(wide)])
        } throws: {
            "\($0)" == "memory: made for a transformer of width 5120, memory has 128"
        }
        let strange = MemoryCheckpoint([
            ("lora_te_text_model.lora_up.weight", .zeros([2, 2], .f32))
        ])
        #expect {
            try adapted(base, by: [LoRA(strange)])
        } throws: {
            "\($0)".contains("none of its 1 keys belongs to a layer")
        }
        let torn = MemoryCheckpoint([
            ("blocks.0.self_attn.q.lora_A.weight", .zeros([3, 128], .f32)),
            ("blocks.0.self_attn.q.lora_B.weight", .zeros([128, 2], .f32)),
        ])
        #expect(throws: CheckpointError.self) { try adapted(base, by: [LoRA(torn)]) }
    }
}
