// Every part of an adapter is used, or its module is refused by name.

import Checkpoints
import FoundationEssentials
import Ground
import Tensors
import Testing

/// A matrix in double precision.
private struct Numbers {
    var rows, columns: Int
    var values: [Double]

    init(_ rows: Int, _ columns: Int, _ values: [Double]) {
        (self.rows, self.columns, self.values) = (rows, columns, values)
    }

    init(_ tensor: Tensor) {
        let shape = tensor.shape.dimensions
        self.init(shape[0], tensor.shape.count / shape[0], tensor.floats().map(Double.init))
    }

    static func * (a: Self, b: Self) -> Self {
        Numbers(
            a.rows, b.columns,
            (0..<a.rows * b.columns).map { index in
                (0..<a.columns).reduce(0) {
                    $0 + a.values[index / b.columns * a.columns + $1]
                        * b.values[$1 * b.columns + index % b.columns]
                }
            })
    }
    static func * (a: Double, b: Self) -> Self {
        Numbers(b.rows, b.columns, b.values.map { a * $0 })
    }
    static func + (a: Self, b: Self) -> Self {
        Numbers(a.rows, a.columns, zip(a.values, b.values).map(+))
    }
    func elementwise(_ b: Self) -> Self { Numbers(rows, columns, zip(values, b.values).map(*)) }
    func kronecker(_ b: Self) -> Self {
        Numbers(
            rows * b.rows, columns * b.columns,
            (0..<rows * b.rows * columns * b.columns).map { index in
                let (row, column) = (index / (columns * b.columns), index % (columns * b.columns))
                return values[row / b.rows * columns + column / b.columns]
                    * b.values[row % b.rows * b.columns + column % b.columns]
            })
    }
    /// Rows (or columns) brought to these lengths.
    func withNorms(_ norms: [Double], rows alongRows: Bool) -> Self {
        func place(_ index: Int) -> Int { alongRows ? index / columns : index % columns }
        var squares = [Double](repeating: 0, count: norms.count)
        for (index, value) in values.enumerated() { squares[place(index)] += value * value }
        return Numbers(
            rows, columns,
            values.enumerated().map {
                norms[place($0.offset)] * $0.element / squares[place($0.offset)].squareRoot()
            })
    }
    func distance(to other: [Float]) -> Double {
        let error = zip(values, other).reduce(0) {
            $0 + ($1.0 - Double($1.1)) * ($1.0 - Double($1.1))
        }
        return (error / values.reduce(0) { $0 + $1 * $1 }).squareRoot()
    }
}

@Suite("Adapters")
struct AdapterTests {
    static let module = "blocks.0.self_attn.q"
    /// 24 rows of 16 columns, with a bias and two tensors that no adapter names.
    static var base: MemoryCheckpoint {
        var random = SplitMix64(seed: 31)
        return MemoryCheckpoint([
            ("patch_embedding.weight", .random([24, 144], using: &random)),
            ("\(module).weight", .random([24, 16], using: &random)),
            ("\(module).bias", .random([24], using: &random)),
            ("\(module).other", .random([], using: &random)),
            ("\(module).more", .random([24, 1], using: &random)),
            ("blocks.0.modulation", .random([1, 6, 24], using: &random)),
            ("blocks.0.norm3.weight", .random([24], using: &random)),
            ("blocks.0.norm3.bias", .random([24], using: &random)),
        ])
    }

    private static func random(_ shape: Shape, _ seed: UInt64) -> Tensor {
        var random = SplitMix64(seed: seed)
        return .random(shape, using: &random)
    }

    private static func weight(_ name: String = "\(module).weight") throws -> Numbers {
        Numbers(try #require(try base.tensor(name)))
    }

    /// The changed tensor, when nothing else has changed.
    private func change(
        _ lora: MemoryCheckpoint, strength: Float = 1, target: String = "\(module).weight",
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> [Float] {
        let result = try adapted(Self.base, by: [LoRA(lora, strength: strength)])
        #expect(result.unmatched.isEmpty, sourceLocation: sourceLocation)
        for name in Self.base.names where !result.changed.contains(name) {
            #expect(
                try result.checkpoint.tensor(name)?.bytes == Self.base.tensor(name)?.bytes,
                sourceLocation: sourceLocation)
        }
        return try #require(try result.checkpoint.tensor(target)).floats()
    }

    static var up: Tensor { random([24, 4], 1) }
    static var down: Tensor { random([4, 16], 2) }

    static func pair(_ more: [(String, Tensor)] = [], metadata: [String: String] = [:])
        -> MemoryCheckpoint
    {
        MemoryCheckpoint(
            [("\(module).lora_up.weight", up), ("\(module).lora_down.weight", down)]
                + more.map { ("\(module).\($0.0)", $0.1) }, metadata: metadata)
    }

    @Test("only what an adapter names is changed, whatever other tensors there are")
    func otherLeaves() throws {
        let found = try change(Self.pair())
        let expected = try Self.weight() + Numbers(Self.up) * Numbers(Self.down)
        #expect(expected.distance(to: found) < 1e-6)
    }

    @Test("alpha in keys, in the header, by a pattern, and stabilised")
    func alphas() throws {
        let delta = Numbers(Self.up) * Numbers(Self.down)
        func config(_ text: String) -> [String: String] { ["lora_adapter_metadata": text] }
        for (lora, scale) in [
            (Self.pair([("alpha", Tensor([2] as [Float], []))]), 0.5),
            (
                Self.pair(metadata: config(#"{"transformer.r": 4, "transformer.lora_alpha": 16}"#)),
                4
            ),
            (Self.pair(metadata: config(#"{"r": 4, "lora_alpha": 6, "use_rslora": true}"#)), 3),
            (
                Self.pair(
                    metadata: config(
                        #"{"transformer.lora_alpha": 16, "transformer.alpha_pattern": {"self_attn.q": 1}}"#
                    )), 0.25
            ),
            (
                Self.pair(
                    metadata: config(
                        #"{"lora_alpha": 400, "alpha_pattern": {"q": 2, "0.self_attn.q": 2, "k": 8}}"#
                    )), 0.5
            ),
            (
                Self.pair(
                    metadata: config(
                        #"{"transformer.lora_alpha": 8, "text_encoder_2.lora_alpha": 4}"#)), 2
            ),
            (
                Self.pair(
                    metadata: config(
                        #"{"transformer.lora_alpha": 8, "transformer_2.lora_alpha": 8}"#)), 2
            ),
            (
                Self.pair(
                    [("alpha", Tensor([2] as [Float], [1]))],
                    metadata: config(#"{"transformer.lora_alpha": 16}"#)), 0.5
            ),
        ] {
            let expected = try Self.weight() + scale * delta
            #expect(expected.distance(to: try change(lora)) < 1e-6, "\(scale)")
        }
        for text in [
            "{", "[]", #"{"fan_in_fan_out": true}"#, #"{"use_dora": true}"#,
            #"{"alpha_pattern": {"blocks.*q": 1}}"#, #"{"alpha_pattern": {"q": "1"}}"#,
            #"{"alpha_pattern": 1}"#, #"{"lora_alpha": "16"}"#, #"{"use_rslora": "true"}"#,
            #"{"use_dora": 0}"#, #"{"fan_in_fan_out": "false"}"#,
            #"{"transformer.lora_alpha": 4, "transformer_2.lora_alpha": 400}"#,
            #"{"alpha_pattern": {"q": 400, "self_attn.q": 8}}"#,
        ] {
            #expect(throws: CheckpointError.self, "\(text)") {
                try adapted(Self.base, by: [LoRA(Self.pair(metadata: config(text)))])
            }
        }
    }

    @Test("alpha in adapter_config.json beside the file")
    func configurationFile() throws {
        let folder = try TemporaryFolder()
        let path = folder.path + "/adapter_model.safetensors"
        try writeCheckpoint(Self.pair(), to: path)
        _ = try folder.file("adapter_config.json", Array(#"{"r": 4, "lora_alpha": 12}"#.utf8))
        let result = try adapted(Self.base, by: [LoRA(path: path)])
        #expect(result.notes.count == 1 && result.notes[0].contains("adapter_config.json"))
        let found = try #require(try result.checkpoint.tensor("\(Self.module).weight")).floats()
        let expected = try Self.weight() + 3 * (Numbers(Self.up) * Numbers(Self.down))
        #expect(expected.distance(to: found) < 1e-6)
    }

    @Test("the bias of a LoRA is scaled like its matrix", arguments: ["lora_B", "lora_up"])
    func bias(name: String) throws {
        let bias = Self.random([24], 3)
        let found = try change(
            Self.pair([("\(name).bias", bias), ("alpha", Tensor([8] as [Float], []))]),
            target: "\(Self.module).bias")
        let expected = try Self.weight("\(Self.module).bias") + 2 * Numbers(bias)
        #expect(expected.distance(to: found) < 1e-6)
    }

    @Test("DoRA along rows and columns, with any strength", arguments: [1, 0.5] as [Float])
    func decomposed(strength: Float) throws {
        for (name, shape) in [
            ("dora_scale", [24, 1]), ("dora_scale", [1, 16]), ("lora_magnitude_vector", [24]),
            ("lora_magnitude_vector.weight", [24]), ("lora_magnitude_vector.default.weight", [24]),
        ] {
            let norms = Self.random(Shape(shape), 5)
            let lora = Self.pair([(name, norms), ("alpha", Tensor([2] as [Float], []))])
            let weight = try Self.weight()
            let whole = (weight + 0.5 * (Numbers(Self.up) * Numbers(Self.down)))
                .withNorms(norms.floats().map(Double.init), rows: shape[0] == 24)
            let expected = Double(1 - strength) * weight + Double(strength) * whole
            #expect(
                expected.distance(to: try change(lora, strength: strength)) < 1e-6,
                "\(name) \(shape)")
        }
        let wrong = Self.pair([("dora_scale", Self.random([16, 1], 5))])
        #expect(throws: CheckpointError.self) { try adapted(Self.base, by: [LoRA(wrong)]) }
    }

    @Test("LoHa and LoKr")
    func products() throws {
        let (a, b) = (Self.random([24, 4], 6), Self.random([4, 16], 7))
        let alpha = ("alpha", Tensor([2] as [Float], []))
        func lora(_ parts: [(String, Tensor)]) -> MemoryCheckpoint {
            MemoryCheckpoint(parts.map { ("lycoris_blocks_0_self_attn_q.\($0.0)", $0.1) })
        }
        let weight = try Self.weight()
        let loha = lora([
            ("hada_w1_a", Self.up), ("hada_w1_b", Self.down), ("hada_w2_a", a), ("hada_w2_b", b),
            alpha,
        ])
        let product = (Numbers(Self.up) * Numbers(Self.down))
            .elementwise(Numbers(a) * Numbers(b))
        #expect((weight + 0.5 * product).distance(to: try change(loha)) < 1e-6)

        let (w1, w2) = (Self.random([3, 4], 8), Self.random([8, 4], 9))
        let (w2a, w2b) = (Self.random([8, 2], 10), Self.random([2, 4], 11))
        let (w1a, w1b) = (Self.random([3, 5], 12), Self.random([5, 4], 13))
        for (parts, first, second, scale) in [
            ([("lokr_w1", w1), ("lokr_w2", w2), alpha], Numbers(w1), Numbers(w2), 1.0),
            (
                [("lokr_w1", w1), ("lokr_w2_a", w2a), ("lokr_w2_b", w2b), alpha], Numbers(w1),
                Numbers(w2a) * Numbers(w2b), 1.0
            ),
            (
                [("lokr_w1_a", w1a), ("lokr_w1_b", w1b), ("lokr_w2", w2), alpha],
                Numbers(w1a) * Numbers(w1b), Numbers(w2), 0.4
            ),
        ] {
            let expected = weight + scale * first.kronecker(second)
            #expect(expected.distance(to: try change(lora(parts))) < 1e-6)
        }
    }

    @Test("full tensors are added or replace the model's")
    func whole() throws {
        let other = Self.random([24, 16], 14)
        for prefix in ["", "base_model.model."] {
            let lora = MemoryCheckpoint([("\(prefix)\(Self.module).weight", other)])
            let expected = try 0.5 * Self.weight() + 0.5 * Numbers(other)
            #expect(expected.distance(to: try change(lora, strength: 0.5)) < 1e-6)
        }
        let norm = Self.random([24], 15)
        let lora = MemoryCheckpoint([
            ("blocks.0.norm3.w_norm", norm), ("blocks.0.norm3.diff_b", norm),
        ])
        let result = try adapted(Self.base, by: [LoRA(lora)])
        #expect(result.changed == ["blocks.0.norm3.bias", "blocks.0.norm3.weight"])
        let saved = MemoryCheckpoint([
            ("base_model.model.\(Self.module).modules_to_save.default.bias", Self.random([24], 16))
        ])
        #expect(try adapted(Self.base, by: [LoRA(saved)]).changed == ["\(Self.module).bias"])
        // Hugging Face's norm2 is Wan's norm3.
        let diffusers = MemoryCheckpoint([
            ("transformer.blocks.0.norm2.diff", norm),
            ("transformer.blocks.0.attn1.to_q.diff_b", norm),
        ])
        #expect(
            try adapted(Self.base, by: [LoRA(diffusers)]).changed
                == ["blocks.0.norm3.weight", "\(Self.module).bias"])
    }

    @Test("unsupported changes are refused and named")
    func refused() throws {
        for (parts, word) in [
            (["oft_blocks"], "OFT"), (["lora_up.weight"], "incomplete change"),
            (["hada_w1_a", "hada_w1_b"], "LoHa"), (["lokr_w1"], "LoKr"),
            (["dora_scale"], "missing"),
            (["lora_up.weight", "lora_down.weight", "lora_mid.weight"], "LoCon"),
            (["lora_E"], "AdaLoRA"), (["unheard_of"], "'unheard_of'"), (["lora_A.bias"], "bias"),
            (["lora_up.weight", "lora_B.weight", "lora_down.weight"], "twice"),
            (["lora_up.weight", "lora_down.weight", "weight"], "twice"),
            (["diff_b", "bias"], "twice"),
        ] {
            let lora = MemoryCheckpoint(
                parts.map { part in
                    let isUp = part.contains("up") || part.contains("_B") || part.hasSuffix("_a")
                    return ("\(Self.module).\(part)", isUp ? Self.up : Self.down)
                })
            #expect {
                try adapted(Self.base, by: [LoRA(lora)])
            } throws: {
                "\($0)".contains(word) && "\($0)".contains(Self.module)
            }
        }
    }

    @Test("a LoRA of a text-to-video model on an image-to-video one: the patches are named")
    func otherChannels() throws {
        let lora = MemoryCheckpoint([
            ("\(Self.module).lora_up.weight", Self.up),
            ("\(Self.module).lora_down.weight", Self.down),
            ("patch_embedding.lora_up.weight", Self.random([24, 4, 1, 1, 1], 17)),
            ("patch_embedding.lora_down.weight", Self.random([4, 16, 1, 2, 2], 18)),
        ])
        let result = try adapted(Self.base, by: [LoRA(lora)])
        #expect(result.changed == ["\(Self.module).weight"])
        #expect(result.unmatched.count == 2)
        #expect(result.unmatched.allSatisfy { $0.contains("for 16 channels, the model has 36") })
    }

    @Test("the model keeps its names and shapes, whichever program's they are")
    func names() throws {
        var random = SplitMix64(seed: 41)
        let base = MemoryCheckpoint([
            ("patch_embedding.weight", .random([24, 4, 1, 2, 2], using: &random)),
            ("blocks.0.attn1.to_q.weight", .random([24, 16], using: &random)),
            ("blocks.0.norm2.weight", .random([24], using: &random)),
        ])
        let result = try adapted(base, by: [LoRA(Self.pair())])
        #expect(result.changed == ["\(Self.module).weight"])
        #expect(result.checkpoint.names == base.names)
        for name in base.names {
            #expect(result.checkpoint.info(name) == base.info(name))
            let isEqual = try result.checkpoint.tensor(name)?.bytes == base.tensor(name)?.bytes
            #expect(isEqual == !name.contains("to_q"))
        }
    }

    @Test("infinities in an adapter are not hidden by merging")
    func infinities() throws {
        let small = MemoryCheckpoint([("\(Self.module).weight", Tensor.zeros([24, 16], .f16))])
        func lora(_ value: Float, _ path: String) -> LoRA {
            let difference = Tensor([Float](repeating: value, count: 384), [24, 16])
            return LoRA(MemoryCheckpoint([("\(Self.module).diff", difference)], path: path))
        }
        for value in [Float.nan, 70_000] {
            let result = try adapted(small, by: [lora(1, "fine"), lora(value, "culprit")])
            #expect {
                try result.checkpoint.tensor("\(Self.module).weight")
            } throws: {
                ($0 as? CheckpointError)?.path == "culprit"
            }
        }
        // What was broken before is not the adapter's.
        let broken = small.replacing(
            "\(Self.module).weight", by: Tensor([Float](repeating: .nan, count: 384), [24, 16]))
        let result = try adapted(broken, by: [lora(1, "fine")])
        #expect {
            try result.checkpoint.tensor("\(Self.module).weight")
        } throws: {
            ($0 as? CheckpointError)?.path == "memory"
        }
    }
}
