// Detection of models, and the tensors that their architectures imply.

import Checkpoints
import Tensors
import Testing

/// A checkpoint that has names and shapes and no elements.
final class Outline: Checkpoint {
    let path = "outline"
    let names: [String]
    private let infos: [String: TensorInfo]

    init(_ infos: [TensorInfo]) {
        names = infos.map(\.name)
        self.infos = Dictionary(uniqueKeysWithValues: infos.map { ($0.name, $0) })
    }

    convenience init(_ expected: [ExpectedTensor]) {
        self.init(expected.map { TensorInfo(name: $0.name, shape: $0.shape, dtype: $0.dtype) })
    }

    func info(_ name: String) -> TensorInfo? { infos[name] }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? { nil }
}

extension ExpectedTensor {
    /// The type in which the published checkpoints hold it.
    var dtype: DType {
        switch content {
        case .numbers, .quantizableMatrix: .bf16
        case .int8Codes: .i8
        case .fp8Codes: .f8e4m3
        case .scales: .f32
        }
    }
}

@Suite("Detected models")
struct ModelTests {
    static let variants: [(WanTransformerArchitecture, String, Int, Int)] = {
        var list: [(WanTransformerArchitecture, String, Int, Int)] = []
        // Tensors and elements of the original's state dictionaries.
        for (model, title, counts, elements) in [
            (
                WanTransformerArchitecture.wan21T2V1B, "Wan2.1 T2V 1.3B", [825, 885, 1185],
                [1_418_996_800, 1_419_492_160, 1_419_577_120]
            ),
            (
                .wan21T2V14B, "Wan2.1 T2V 14B", [1095, 1175, 1575],
                [14_288_491_584, 14_289_152_064, 14_290_009_664]
            ),
            (
                .wan22I2VA14B, "Wan2.2 I2V A14B", [1095, 1175, 1575],
                [14_288_901_184, 14_289_561_664, 14_290_419_264]
            ),
        ] {
            var variant = model
            list.append((variant, title, counts[0], elements[0]))
            variant.hasSparseLinearAttention = true
            list.append((variant, title, counts[1], elements[1]))
            variant.linears = .int8Blocks
            list.append((variant, title, counts[2], elements[2]))
        }
        return list
    }()

    @Test("published transformers have the known numbers of tensors and elements")
    func transformers() {
        for (model, title, count, elements) in Self.variants {
            let tensors = model.tensors()
            #expect(tensors.count == count)
            #expect(tensors.reduce(0) { $0 + $1.shape.reduce(1, *) } == elements)
            let summary = CheckpointSummary(Outline(tensors))
            #expect(summary.model == .wanTransformer(model))
            #expect(summary.model?.title == title)
            #expect(summary.isComplete)
            #expect(summary.surplus.isEmpty)
        }
    }

    @Test("the text encoder and the VAE as well")
    func others() {
        let umt5 = UMT5Architecture.xxl.tensors()
        #expect(umt5.count == 242)
        #expect(umt5.reduce(0) { $0 + $1.shape.reduce(1, *) } == 5_680_910_336)
        #expect(CheckpointSummary(Outline(umt5)).model == .umT5(.xxl))
        let vae = WanVAEArchitecture().tensors()
        #expect(vae.count == 194)
        #expect(vae.reduce(0) { $0 + $1.shape.reduce(1, *) } == 126_892_531)
        let summary = CheckpointSummary(Outline(vae))
        #expect(summary.model == .wanVAE(WanVAEArchitecture()))
        #expect(summary.model?.title == "Wan2.1 VAE")
        #expect(summary.isComplete)
    }

    @Test("the built-in model is complete")
    func nano() throws {
        let folder = golden("../../Models/nano/")
        let student = CheckpointSummary(try openCheckpoint(folder + "student_sla_quant.pth"))
        var expected = WanTransformerArchitecture.nano
        expected.hasSparseLinearAttention = true
        expected.linears = .int8Blocks
        #expect(student.model == .wanTransformer(expected))
        #expect(student.model?.title == "nano")
        let text = CheckpointSummary(try openCheckpoint(folder + "text_encoder.safetensors"))
        #expect(text.model == .umT5(.nano))
        let vae = CheckpointSummary(try openCheckpoint(folder + "vae.safetensors"))
        #expect(vae.model == .wanVAE(WanVAEArchitecture(dim: 24)))
        for summary in [student, text, vae] {
            #expect(summary.isComplete && summary.surplus.isEmpty, "\(summary.path)")
        }
    }

    @Test("the head width is detected from the sparse branch")
    func headWidth() {
        var model = WanTransformerArchitecture(
            dim: 192, layers: 3, feedForward: 320, heads: 3, inputChannels: 36, textDim: 48)
        model.hasSparseLinearAttention = true
        #expect(CheckpointSummary(Outline(model.tensors())).model == .wanTransformer(model))
        model.hasSparseLinearAttention = false
        let plain = Outline(model.tensors())
        #expect(CheckpointSummary(plain, heads: 3).model == .wanTransformer(model))
    }

    @Test("missing, surplus and misshapen tensors are found")
    func differences() {
        let model = WanTransformerArchitecture.nano
        var infos = model.tensors().map {
            TensorInfo(name: $0.name, shape: $0.shape, dtype: .f16)
        }
        let lost = infos.remove(at: 40)
        let bent = infos[60]
        infos[60] = TensorInfo(name: bent.name, shape: bent.shape + [2], dtype: .f16)
        let whole = infos[70]
        infos[70] = TensorInfo(name: whole.name, shape: whole.shape, dtype: .i64)
        infos.append(TensorInfo(name: "img_emb.proj.0.weight", shape: [4], dtype: .f16))
        let summary = CheckpointSummary(Outline(infos))
        #expect(summary.model == .wanTransformer(model))
        #expect(summary.missing.map(\.name) == [lost.name])
        #expect(summary.mismatched.map(\.name) == [bent.name, whole.name])
        #expect(summary.surplus == ["img_emb.proj.0.weight"])
        #expect(!summary.isComplete)
    }

    @Test("models are recognised by other programs' names too")
    func foreignNames() throws {
        var conversion = Conversion()
        conversion.layout = .diffusers
        for tensors in [
            WanTransformerArchitecture.nano.tensors(), UMT5Architecture.nano.tensors(),
            WanVAEArchitecture(dim: 24).tensors(),
        ] {
            let original = Outline(tensors)
            let summary = CheckpointSummary(try converted(original, conversion))
            #expect(summary.model == DetectedModel(original))
            #expect(summary.isComplete && summary.surplus.isEmpty)
            #expect(summary.layout == .diffusers)
        }
    }

    @Test("the image branch of Wan2.1 is recognised")
    func imageBranch() {
        let branch = TensorInfo(name: "img_emb.proj.1.weight", shape: [4, 4], dtype: .f16)
        let infos = WanTransformerArchitecture.wan22I2VA14B.tensors().map {
            TensorInfo(name: $0.name, shape: $0.shape, dtype: .bf16)
        }
        let summary = CheckpointSummary(Outline(infos + [branch]))
        #expect(summary.model?.title == "Wan2.1 I2V (with a CLIP branch)")
        #expect(summary.surplus == [branch.name])
    }

    @Test("a patch embedding may be a convolution")
    func foldedPatch() {
        let infos = WanTransformerArchitecture.nano.tensors().map {
            TensorInfo(
                name: $0.name,
                shape: $0.name == "patch_embedding.weight" ? [256, 16, 1, 2, 2] : $0.shape,
                dtype: .f32)
        }
        let summary = CheckpointSummary(Outline(infos))
        #expect(summary.model == .wanTransformer(.nano) && summary.isComplete)
    }

    @Test("the wrong kind of model is refused in one line")
    func wrongKind() throws {
        let text = CheckpointSummary(Outline(UMT5Architecture.xxl.tensors()))
        try text.require(.umT5)
        #expect {
            try text.require(.wanTransformer)
        } throws: {
            "\($0)"
                == "outline holds an umT5-xxl encoder, expected a Wan transformer: it has no "
                + "'patch_embedding.weight'; it has no 'blocks.0.self_attn.q.weight'; it begins "
                + "with 'token_embedding.weight' [256384, 4096]"
        }
    }

    @Test("absurd extents do not overflow")
    func absurd() {
        for shape in [[0, Int.max / 8], [Int.max / 2, 0, 1], [0], []] {
            let names = [
                "blocks.0.self_attn.q.weight", "patch_embedding.weight", "blocks.0.ffn.0.weight",
                "blocks.0.modulation", "token_embedding.weight", "encoder.conv1.weight",
                "head.head.weight", "blocks.999999999999.x", "conv2.weight",
            ]
            for skipped in 0..<names.count {
                let infos = names.enumerated().filter { $0.offset != skipped }
                    .map { TensorInfo(name: $0.element, shape: shape, dtype: .i8) }
                _ = CheckpointSummary(Outline(infos))
            }
        }
    }
}
