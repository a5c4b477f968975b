/// LoRAs that are merged while loading: into one transformer or two, plain or quantised.

import Checkpoints
import FoundationEssentials
import Pipelines
import Tensors
import Testing

/// Tensors in memory, for writing them.
private final class TensorList: Checkpoint {
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

    func models(_ transformer: String, low: String? = nil) -> ModelSet {
        var defaults = ModelSet.Defaults()
        defaults.heads = 2
        return ModelSet(
            name: "small", transformer: transformer, lowNoiseTransformer: low,
            textEncoder: Self.golden("umt5/models_t5_tiny-enc-bf16.pth"),
            tokenizer: Self.golden("tokenizer/umt5/tokenizer.json"),
            vae: Self.golden("vae/Wan2.1_VAE_tiny.pth"), defaults: defaults)
    }

    /// 48x32, five frames.
    var request: VideoRequest {
        VideoRequest(
            prompt: "a cat turns its head", width: 48, height: 32, frames: 5, steps: 2,
            sigmaMax: 200, attention: .original)
    }

    /// A picture in the simplest format.
    func picture() throws -> String {
        let path = folder.path + "/picture.ppm"
        let pixels = (0..<48 * 32 * 3).map { UInt8(truncatingIfNeeded: $0 * 7) }
        try (Data("P6 48 32 255\n".utf8) + Data(pixels)).write(to: URL(filePath: path))
        return path
    }

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
        arguments: [LinearStorage.plain, .int8, .fp8])
    func equalToMerged(form: LinearStorage) async throws {
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
            of: plain, pipeline(small.models(try small.merged(base, request.loras, "merged"))))
        // The models that stay on the device must not be taken for others.
        let sharing = pipeline(small.models(base))
        let before = try await frames(of: plain, sharing)
        #expect(try await frames(of: request, sharing) == expected)
        #expect(try await frames(of: plain, sharing) == before)
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
            low: try small.merged(base, [both, low], "low-merged"))
        let found = try await frames(of: adapting, pipeline(small.models(base, low: base)))
        #expect(try await frames(of: plain, pipeline(merged)) == found)
        let swapped = small.models(merged.lowNoiseTransformer!, low: merged.transformer)
        #expect(try await frames(of: plain, pipeline(swapped)) != found)
    }

    @Test("a LoRA that fits nothing is refused before anything is loaded; strange keys are told")
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
                "has one transformer: use --lora"
            ),
            (RequestedLoRA(small.folder.path + "/gone.safetensors"), "gone.safetensors"),
        ]
        for (lora, reason) in cases {
            var request = small.request
            request.loras = [lora]
            let wrong = request
            let events = EventList()
            #expect {
                try MemoryPlan(models, wrong, RunOptions())
            } throws: {
                "\($0)".contains(reason) && !"\($0)".contains("\n")
            }
            await #expect(throws: (any Error).self) {
                try await pipeline(models).begin(wrong, events: events.add)
            }
            #expect(events.started.isEmpty)
        }

        var request = small.request
        request.loras = [RequestedLoRA(try small.lora("odd", seed: 4, extra: ["img_emb.x.diff"]))]
        let events = EventList()
        try await pipeline(models).begin(request, events: events.add)
        let notes = events.events.compactMap { if case .note(let text) = $0 { text } else { nil } }
        #expect(notes.count == 2 && notes[1].hasSuffix("odd.safetensors: img_emb.x.diff"))
        #expect(try MemoryPlan(models, request, RunOptions()).loras == notes)
    }

    @Test("requests carry their LoRAs; those of videos that know none are read")
    func stored() throws {
        let small = try SmallModels()
        var request = small.request
        request.loras = [RequestedLoRA("style.safetensors", strength: 0.5, expert: .lowNoise)]
        let run = StoredRun(
            program: "turbodiffusion 0", request: request, models: small.models("a"))
        #expect(try StoredRun(json: run.json, path: "x.mp4") == run)
        request.loras = []
        let plain = StoredRun(program: run.program, request: request, models: run.models)
        let old = plain.json.replacing("\"loras\":[],", with: "")
        #expect(old != plain.json)
        #expect(try StoredRun(json: old, path: "x.mp4") == plain)
    }
}

@Suite("Checkpoints that do not fit")
struct WrongCheckpointTests {
    @Test("text and image models are told apart, and experts of different models")
    func kinds() async throws {
        let small = try SmallModels()
        var request = small.request
        let picture = try small.picture()
        func line(_ models: ModelSet, image: String?) async -> String? {
            request.image = image
            let request = request
            do {
                _ = try await frames(of: request, pipeline(models))
                return nil
            } catch {
                return "\(error)"
            }
        }
        let (text, image) = (SmallModels.text, SmallModels.image)
        #expect(
            await line(small.models(image), image: nil)?.contains("'turbodiffusion i2v'") == true)
        #expect(
            await line(small.models(text), image: picture)?.contains("'turbodiffusion t2v'") == true
        )
        #expect(throws: RequestError.self) { try small.models(text, low: image).checkExperts() }
        #expect(throws: RequestError.self) {
            try small.models(text, low: try nano().transformer).checkExperts()
        }
        #expect(throws: Never.self) { try small.models(image, low: image).checkExperts() }
    }
}
