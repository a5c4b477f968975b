/// LoRAs that are merged while loading: into one transformer or two, plain or quantised.

import Checkpoints
import Families
import FoundationEssentials
import Runs
import Tensors
import Testing

/// Tensors in memory, for writing them.
final class TensorList: Checkpoint {
    let path = "memory"
    let names: [String]
    private let tensors: [String: Tensor]

    init(_ tensors: [(String, Tensor)]) {
        names = tensors.map(\.0)
        self.tensors = Dictionary(uniqueKeysWithValues: tensors)
    }

    func info(_ name: String) -> TensorInfo? {
        tensors[name].map {
            TensorInfo(name: name, shape: $0.shape.dimensions, dtype: $0.dtype)
        }
    }
    func tensor(_ name: String) -> Tensor? { tensors[name] }
}

/// The small models that the fixtures come with, and LoRAs for them, in a folder of their own.
private struct SmallModels {
    let folder: TemporaryFolder

    init() throws { folder = try TemporaryFolder() }

    static func golden(_ path: String) -> String { projectFolder + "/Tests/Golden/" + path }
    static let text = golden("weights/wan21_d128h64.safetensors")
    static let image = golden("weights/wan22_i2v_d128h64.safetensors")

    func models(
        _ transformer: String, low: String? = nil, _ family: Family = .wan21
    ) -> ModelSet {
        var family = family
        family.heads = 2
        return ModelSet(
            name: "small", family: family, transformer: transformer, lowNoiseTransformer: low,
            textEncoder: Self.golden("umt5/models_t5_tiny-enc-bf16.pth"),
            tokenizer: Self.golden("tokenizer/umt5/tokenizer.json"),
            vae: Self.golden("vae/Wan2.1_VAE_tiny.pth"))
    }

    /// 48x32, five frames.
    var request: Request {
        Request(
            prompt: "a cat turns its head", width: 48, height: 32, frames: 5,
            sampling: .distilled(.init(steps: 2, sigmaMax: 200)),
            arithmetic: Arithmetic(attention: .original))
    }

    func picture() throws -> String { try folder.picture(width: 48, height: 32) }

    func write(_ checkpoint: any Checkpoint, _ name: String) throws -> String {
        let path = "\(folder.path)/\(name).safetensors"
        try writeCheckpoint(checkpoint, to: path)
        return path
    }

    /// Changes two layers of width `dim`.
    func lora(_ name: String, seed: UInt64, dim: Int = 128, extra: [String] = []) throws -> String {
        var noise = PhiloxNoise(seed: seed)
        var tensors: [(String, Tensor)] = []
        for layer in ["blocks.0.self_attn.v", "blocks.1.cross_attn.o"] {
            tensors += [
                ("diffusion_model.\(layer).lora_A.weight", noise.normal([3, dim])),
                ("diffusion_model.\(layer).lora_B.weight", noise.normal([dim, 3])),
            ]
        }
        for name in extra { tensors.append((name, noise.normal([3, 3]))) }
        return try write(TensorList(tensors), name)
    }

    func merged(_ base: String, _ loras: [RequestedLoRA], _ name: String) throws -> String {
        let result = try adapted(
            try openCheckpoint(base),
            by: try loras.map { try LoRA(path: $0.path, strength: $0.strength) })
        return try write(result.checkpoint, name)
    }
}

@Suite("LoRAs while loading")
struct LoRALoadingTests {
    @Test(
        "frames equal those of a checkpoint that was merged before",
        arguments: [LinearFormat.plain, .int8Blocks, .fp8Rows])
    func equalToMerged(form: LinearFormat) async throws {
        let small = try SmallModels()
        var base = SmallModels.text
        if form != .plain {
            base = try small.write(try quantized(openCheckpoint(base), to: form).checkpoint, "8bit")
        }
        let plain = small.request
        var request = plain
        request.loras = [
            RequestedLoRA(try small.lora("a", seed: 1), strength: 0.4),
            RequestedLoRA(try small.lora("b", seed: 2), strength: -0.2),
        ]
        let expected = try await frames(
            of: plain, small.models(try small.merged(base, request.loras, "merged")))
        // The models that stay on the device must not be taken for others.
        let (sharing, models) = (engine(), small.models(base))
        let before = try await frames(of: plain, models, on: sharing)
        #expect(try await frames(of: request, models, on: sharing) == expected)
        #expect(try await frames(of: plain, models, on: sharing) == before)
        #expect(before != expected)
    }

    @Test("of two experts, both are changed or the one that is named")
    func experts() async throws {
        let small = try SmallModels()
        var request = small.request
        request.image = try small.picture()
        let base = SmallModels.image
        let both = RequestedLoRA(try small.lora("both", seed: 1), strength: 0.3)
        let high = RequestedLoRA(try small.lora("high", seed: 2), expert: .highNoise)
        let low = RequestedLoRA(try small.lora("low", seed: 3), strength: 0.5, expert: .lowNoise)
        request.loras = [both, high, low]
        // The second of two steps is the low-noise expert's.
        request.boundary = 0.95
        let adapting = request
        request.loras = []
        let plain = request
        let merged = small.models(
            try small.merged(base, [both, high], "high-merged"),
            low: try small.merged(base, [both, low], "low-merged"), .wan22I2V)
        let found = try await frames(of: adapting, small.models(base, low: base, .wan22I2V))
        #expect(try await frames(of: plain, merged) == found)
        let swapped = small.models(
            try #require(merged.lowNoiseTransformer), low: merged.transformer, .wan22I2V)
        #expect(try await frames(of: plain, swapped) != found)

        // Where there is no room for both, the second one comes after the first one's last step.
        let events = EventList()
        var options = RunOptions()
        options.keepsBothExperts = false
        #expect(
            try await frames(
                of: adapting, small.models(base, low: base, .wan22I2V), options, events: events)
                == found)
        let order = events.started
        let step = try #require(order.firstIndex(of: "step 1/2 (high noise)"))
        let late = try #require(order.firstIndex(of: "load low-noise transformer"))
        #expect(step < late)
    }

    @Test("a LoRA that fits nothing is refused before anything is loaded; unused keys are reported")
    func refusals() async throws {
        let small = try SmallModels()
        let models = small.models(SmallModels.text)
        let cases: [(RequestedLoRA, String)] = [
            (
                RequestedLoRA(try small.lora("wide", seed: 1, dim: 256)),
                "made for a transformer of width 256, \(SmallModels.text) has 128"
            ),
            (
                RequestedLoRA(
                    try small.write(
                        TensorList([("lora_te.lora_up.weight", Tensor([Float(1)], [1, 1]))]), "none"
                    )),
                "none of its 1 keys"
            ),
            (
                RequestedLoRA(try small.lora("high", seed: 1), expert: .highNoise),
                "one of two experts"
            ),
            (RequestedLoRA(small.folder.path + "/gone.safetensors"), "gone.safetensors"),
        ]
        for (lora, reason) in cases {
            var request = small.request
            request.loras = [lora]
            let wrong = request
            let events = EventList()
            #expect {
                try Plan(try Run(wrong, models))
            } throws: {
                "\($0)".contains(reason) && !"\($0)".contains("\n")
            }
            await #expect(throws: (any Error).self) {
                try await frames(of: wrong, models, events: events)
            }
            #expect(events.started.isEmpty)
        }

        var request = small.request
        request.loras = [RequestedLoRA(try small.lora("odd", seed: 4, extra: ["img_emb.x.diff"]))]
        let events = EventList()
        _ = try await frames(of: request, models, events: events)
        let notices = events.notices
        #expect(notices.count == 2)
        #expect(
            notices.last
                == .unmatchedKeys(
                    part: .transformer,
                    names: [request.loras[0].path + ": img_emb.x.diff"]))
        #expect(try Plan(try Run(request, models)).notices == notices)
    }
}

@Suite("Checkpoints that do not fit")
struct WrongCheckpointTests {
    @Test("text and image models are told apart, and experts of different models")
    func kinds() throws {
        let small = try SmallModels()
        let picture = try small.picture()
        func refusal(_ models: ModelSet) throws -> FittingError? {
            var request = small.request
            // Both experts are used.
            request.boundary = 0.95
            request.image = models.family.conditioning == .none ? nil : picture
            do {
                _ = try Plan(try Run(request, models))
                return nil
            } catch let error as FittingError {
                return error
            }
        }
        let (text, image) = (SmallModels.text, SmallModels.image)
        #expect(
            try refusal(small.models(image))
                == .conditioning(path: image, channels: 36, expected: 16))
        #expect(
            try refusal(small.models(text, .wan22I2V))
                == .conditioning(path: text, channels: 16, expected: 36))
        #expect(try refusal(small.models(image, low: image, .wan22I2V)) == nil)
        guard case .experts = try refusal(small.models(text, low: try nano().transformer)) else {
            return #expect(Bool(false), "experts of different models")
        }
    }
}
