// Problems that a header reveals are reported before any work: missing parts, foreign parts, another family.

import Checkpoints
import Glibc
import Ground
import Tensors
import Testing

@Suite("Opening models")
struct ModelFileTests {
    static let net = WanTransformerArchitecture(
        dim: 128, layers: 2, feedForward: 256, heads: 1, textDim: 32)
    static let text = UMT5Architecture(
        vocabulary: 40, dim: 32, attentionDim: 32, feedForward: 24, heads: 2, layers: 2)

    private static func infos(_ tensors: [ExpectedTensor]) -> [TensorInfo] {
        tensors.map { TensorInfo(name: $0.name, shape: $0.shape, dtype: $0.dtype) }
    }

    /// Opens a transformer with tensors added, replaced or (nil) taken away.
    private static func open(
        _ model: WanTransformerArchitecture = net, _ changes: [(String, [Int], DType)?] = [],
        without: String? = nil
    ) throws -> OpenedModel {
        var list = infos(model.tensors()).filter { $0.name != without }
        for case (let name, let shape, let dtype)? in changes {
            list.removeAll { $0.name == name }
            list.append(TensorInfo(name: name, shape: shape, dtype: dtype))
        }
        return try modelFile(Outline(list), .wanTransformer)
    }

    private static func refusal(_ body: () throws -> Void) -> String {
        do {
            try body()
            return "nothing was refused"
        } catch {
            return "\(error)"
        }
    }

    @Test("a complete model is opened, and its unused tensors are reported")
    func whole() throws {
        #expect(try Self.open().unused.isEmpty)
        let file = try Self.open(
            Self.net, [("freqs", [4], .f32), ("blocks.0.ffn.0._extra_state", [2], .u8)])
        #expect(file.unused == ["freqs", "blocks.0.ffn.0._extra_state"])
        #expect(try Set(file.used.names) == Set(Self.net.tensors().map(\.name)))
    }

    @Test("a model that somebody holds is opened once, until its file is replaced")
    func openedOnce() throws {
        let folder = try TemporaryFolder()
        let path = folder.path + "/net.safetensors"
        func open(heads: Int? = nil) throws -> OpenedModel {
            try openModel(path, .wanTransformer, heads: heads)
        }
        try writeCheckpoint(randomTransformer(Self.net), to: path)
        let first = try open()
        #expect(try open() === first)
        let count = try mappings(of: path)
        #expect(count == 1)
        #expect(try open(heads: 2) !== first)

        try writeCheckpoint(randomTransformer(Self.net, seed: 2), to: path, overwrite: true)
        let second = try open()
        #expect(second !== first)
        #expect(try !areEqual(second.checkpoint, first.checkpoint))
        // Whoever has opened the old one keeps it.
        #expect(try areEqual(first.checkpoint, randomTransformer(Self.net)))

        weak var released: OpenedModel?
        do {
            let third = try open(heads: 4)
            released = third
        }
        #expect(released == nil)
    }

    /// How often a file is mapped into this process now.
    private func mappings(of path: String) throws -> Int {
        let maps = try #require(fopen("/proc/self/maps", "r"))
        var (count, line, size) = (0, UnsafeMutablePointer<CChar>?.none, 0)
        while getline(&line, &size, maps) > 0 {
            if let line, String(cString: line).hasSuffix(path + "\n") { count += 1 }
        }
        free(line)
        fclose(maps)
        return count
    }

    @Test("tensors that would change the model are refused by name")
    func foreign() {
        for (name, part) in [
            ("vace_blocks.0.self_attn.q.weight", "VACE"), ("vace_patch_embedding.weight", "VACE"),
            ("blocks.1.self_attn.to_gate_compress.weight", "VSA"), ("ref_conv.weight", "reference"),
            ("blocks.0.cross_attn.k_img.weight", "CLIP"), ("audio_proj.proj1.weight", "sound"),
            ("blocks.0.unheard_of.weight", "unknown"), ("fps_embedding.weight", "SkyReels"),
            ("blocks.0.self_attn.q.lora_A.weight", "merged"),
        ] {
            let text = Self.refusal { _ = try Self.open(Self.net, [(name, [128, 128], .bf16)]) }
            #expect(text.contains(name) && text.contains(part), "\(text)")
        }
    }

    @Test("missing tensors, other shapes, integers")
    func mismatches() {
        for (text, word) in [
            (
                Self.refusal { _ = try Self.open(without: "blocks.1.norm3.bias") },
                "'blocks.1.norm3.bias'; nearest: blocks.0.norm3.bias"
            ),
            (
                Self.refusal {
                    _ = try Self.open(Self.net, [("blocks.0.norm3.bias", [127], .f32)])
                },
                "shape [127], expected [128]"
            ),
            (
                Self.refusal {
                    _ = try Self.open(Self.net, [("blocks.0.norm3.bias", [128], .i32)])
                },
                "'blocks.0.norm3.bias' holds i32, expected floating point"
            ),
            (
                Self.refusal {
                    _ = try Self.open(Self.net, [("text_embedding.0.bias", [128], .i64)])
                },
                "holds i64"
            ),
        ] { #expect(text.contains(word), "\(text)") }
    }

    @Test("sizes that this program does not run")
    func sizes() {
        var model = Self.net
        (model.inputChannels, model.outputChannels) = (48, 48)
        #expect(model.title.contains("TI2V-5B"))
        model.outputChannels = 16
        #expect(model.title.contains("Fun-Control"))
        model = Self.net
        model.frequencyDim = 17
        #expect(Self.refusal { _ = try Self.open(model) }.contains("17"))
        model = WanTransformerArchitecture(
            dim: 127, layers: 1, feedForward: 8, heads: 1, textDim: 8)
        #expect(Self.refusal { _ = try Self.open(model) }.contains("127"))
        var vae = Self.infos(WanVAEArchitecture(dim: 4, latentChannels: 48).tensors())
        #expect(CheckpointSummary(Outline(vae)).model?.title.contains("TI2V-5B") == true)
        vae.removeAll { $0.name == "encoder.conv1.weight" }
        vae.append(
            TensorInfo(name: "encoder.conv1.weight", shape: [4, 12, 3, 3, 3], dtype: .f16))
        let folded = Self.refusal { _ = try modelFile(Outline(vae), .wanVAE) }
        #expect(folded.contains("Wan2.2 VAE of TI2V-5B"), "\(folded)")
        var encoder = Self.text
        encoder.heads = 3
        let text = Self.refusal {
            _ = try modelFile(Outline(Self.infos(encoder.tensors())), .umT5)
        }
        #expect(text.contains("3 heads"))
        for rows in [1, 31, 64] {
            var encoder = Self.text
            encoder.buckets = rows
            let text = Self.refusal {
                _ = try modelFile(Outline(Self.infos(encoder.tensors())), .umT5)
            }
            #expect(text.contains("has \(rows) rows, expected 32"), "\(text)")
        }
    }

    @Test("q, k and v in one form")
    func mixed() {
        var list = Self.infos(Self.net.tensors())
        list.removeAll { $0.name == "blocks.1.self_attn.q.weight" }
        list.append(
            TensorInfo(name: "blocks.1.self_attn.q.int8_weight", shape: [128, 128], dtype: .i8))
        list.append(TensorInfo(name: "blocks.1.self_attn.q.scale", shape: [1, 1], dtype: .f32))
        let text = Self.refusal { _ = try modelFile(Outline(list), .wanTransformer) }
        #expect(text.contains("'blocks.1.self_attn.q' is stored as int8"), "\(text)")
    }

    @Test("a file of another kind is refused by its kind")
    func wrongKind() {
        let text = Self.refusal {
            _ = try modelFile(Outline(Self.infos(Self.text.tensors())), .wanVAE)
        }
        #expect(text.contains("holds an umT5 encoder, expected a Wan VAE"))
        let strange = Self.refusal {
            _ = try modelFile(Outline([TensorInfo(name: "a", shape: [1], dtype: .f32)]), .wanVAE)
        }
        #expect(strange.contains("no known model"))
    }

    @Test("the cursor reports unused tensors, and refuses those that would change the model")
    func cursor() throws {
        func weights(_ extra: [(String, [Int], DType)]) -> Weights {
            let infos =
                Self.infos(Self.net.tensors())
                + extra.map { TensorInfo(name: $0.0, shape: $0.1, dtype: $0.2) }
            return Weights(Outline(infos), on: NullBackend(), activations: .bf16)
        }
        #expect(try weights([]).finish().isEmpty)
        #expect(try weights([("freqs", [2], .f32)]).finish().count == 1)
        #expect(throws: CheckpointError.self) {
            try weights([("vace_blocks.0.q.weight", [2], .f32)]).finish()
        }
    }
}
