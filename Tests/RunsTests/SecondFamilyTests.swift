/// Another family than Wan's, from one line in a catalogue to frames: other latents, strides and patches, two experts,
/// files of its own.

import CPU
import Catalog
import Checkpoints
import Families
import FoundationEssentials
import Models
import Runs
import Tensors
import Testing

/// A family that differs from Wan's in every size, with random weights.
struct SecondFamily {
    let folder: TemporaryFolder
    let catalog: Catalog

    static let family: Family = {
        var family = Family(
            name: "second",
            geometry: LatentGeometry(
                channels: 6, stride: Extent(t: 2, h: 4, w: 4), patch: 1, positions: 32),
            statistics: LatentStatistics(
                mean: [Float](repeating: 0.1, count: 6), std: [Float](repeating: 1.5, count: 6)),
            conditioning: .firstFrame, textLength: 24, heads: 2, roundsTimesteps: false)
        (family.defaults.width, family.defaults.height, family.defaults.frames) = (28, 20, 7)
        (family.defaults.attention, family.defaults.boundary) = (.original, 0.9)
        return family
    }()
    static let transformer = WanTransformerArchitecture(
        dim: 64, layers: 2, feedForward: 96, heads: 2, inputChannels: 6 + 2 + 6,
        outputChannels: 6, patch: 1, textDim: 48, frequencyDim: 32)
    static let vae = WanVAEArchitecture(
        dim: 8, latentChannels: 6, multiples: [1, 2, 2], halvesTime: [true, false])

    /// Writes the files and adds the line.
    init(_ transformer: WanTransformerArchitecture = transformer) throws {
        let folder = try TemporaryFolder()
        self.folder = folder
        func write(_ name: String, _ model: DetectedModel, seed: UInt64) throws -> String {
            var noise = PhiloxNoise(seed: seed)
            let path = "\(folder.path)/\(name).safetensors"
            let outline = Outline(model, numbers: .f32)
            let tensors = outline.names.compactMap { name in
                outline.info(name).map { info -> (String, Tensor) in
                    let shape = Shape(info.shape)
                    let inputs = max(1, shape.count / max(shape.dimensions.first ?? 1, 1))
                    let scale = 1 / Float(inputs).squareRoot()
                    return (
                        name, Tensor(noise.normal(shape).floats().map { $0 * scale }, shape)
                    )
                }
            }
            try writeCheckpoint(TensorList(tensors), to: path)
            return path
        }
        let text = UMT5Architecture(
            vocabulary: 2048, dim: 48, attentionDim: 48, feedForward: 64, heads: 3, layers: 1)
        let files: [ModelFile: [String]] = [
            .transformer: [try write("high", .wanTransformer(transformer), seed: 1)],
            .lowNoiseTransformer: [try write("low", .wanTransformer(transformer), seed: 2)],
            .textEncoder: [try write("text", .umT5(text), seed: 3)],
            .tokenizer: [projectFolder + "/Models/nano/tokenizer.model"],
            .vae: [try write("vae", .wanVAE(Self.vae), seed: 4)],
        ]
        var family = Self.family
        family.heads = transformer.heads
        catalog = Catalog(
            entries: Catalog.published.entries + [
                Catalog.Entry(
                    "Second", family, .named(files), transformer: transformer,
                    textEncoder: text, vae: Self.vae)
            ])
    }
}

@Suite("A second family")
struct SecondFamilyTests {
    @Test("runs end to end by its name, in its own sizes, with both experts")
    func wholeRun() async throws {
        let second = try SecondFamily()
        let models = try second.catalog.open(ModelChoice("second"))
        #expect(models.experts.count == 2)
        var request = Request("a red ball", for: models.family)
        request.image = try second.folder.picture(width: 30, height: 30)
        let run = try Run(request, models)
        #expect(run.latents == Extent(t: 4, h: 5, w: 7))
        #expect(run.video == Extent(t: 7, h: 20, w: 28))

        let plan = try Plan(run)
        #expect(
            plan.stages.map(\.part) == [
                .textEncoder, .imageEncoder, .transformer, .lowNoiseTransformer, .decoder,
            ])
        let events = EventList()
        var counts: [Int] = []
        var bytes: [UInt8] = []
        _ = try await engine().finish(run, events: events.add) {
            #expect($0.width == 28 && $0.height == 20)
            counts.append($0.count)
            bytes += $0.bytes
        }
        #expect(counts == [1, 2, 2, 2])
        #expect(Set(bytes).count > 16)
        #expect(events.started.contains("step 1/4 (high noise)"))
        #expect(events.started.contains("step 4/4 (low noise)"))
        #expect(try await frames(of: request, models) == bytes)

        // Each of its own files makes a difference.
        for file in [ModelFile.transformer, .lowNoiseTransformer] {
            var other = models
            other[file] = models[file == .transformer ? .lowNoiseTransformer : .transformer]
            #expect(try await frames(of: request, other) != bytes)
        }
    }

    @Test("every stage can start from a file, the picture's conditioning too")
    func files() async throws {
        let second = try SecondFamily()
        let models = try second.catalog.open(ModelChoice("second"))
        var request = Request("a red ball", for: models.family)
        request.image = try second.folder.picture(width: 28, height: 20)
        var options = RunOptions()
        options.save = RunOptions.Files(
            text: second.folder.path + "/text.safetensors",
            conditioning: second.folder.path + "/conditioning.safetensors",
            latents: second.folder.path + "/latents.safetensors")
        let expected = try await frames(of: request, models, options)
        #expect(
            try openCheckpoint(second.folder.path + "/conditioning.safetensors")
                .info("conditioning")?.shape == [8, 4, 5, 7])
        request.image = nil
        for start in [
            RunOptions.Files(text: options.save.text, conditioning: options.save.conditioning),
            RunOptions.Files(latents: options.save.latents),
        ] {
            var options = RunOptions()
            options.start = start
            let events = EventList()
            #expect(try await frames(of: request, models, options, events: events) == expected)
            #expect(!events.started.contains("image encoder"))
            #expect(!events.started.contains("text encoder"))
        }
    }

    @Test("its requests are measured by its own sizes, and other families' files do not fit")
    func sizes() throws {
        let second = try SecondFamily()
        let models = try second.catalog.open(ModelChoice("second"))
        var request = Request("a red ball", for: models.family)
        request.image = "picture.ppm"
        request.width = 30
        #expect {
            try Run(request, models)
        } throws: {
            "\($0)" == "width must be a multiple of 4, not 30; nearest: 32"
        }
        request.width = 28
        var wrong = models
        wrong.vae = try nano().vae
        #expect(throws: FittingError.self) { try Plan(try Run(request, wrong)) }
        wrong = models
        wrong.textEncoder = try nano().textEncoder
        #expect(throws: FittingError.self) { try Plan(try Run(request, wrong)) }
        wrong = models
        wrong.family.geometry.stride.t = 4
        request.frames = 5
        #expect(throws: FittingError.self) { try Plan(try Run(request, wrong)) }
    }
}

extension TemporaryFolder {
    /// A picture in the simplest format.
    func picture(width: Int, height: Int) throws -> String {
        let path = self.path + "/picture.ppm"
        let pixels = (0..<width * height * 3).map { UInt8(truncatingIfNeeded: $0 * 7) }
        try (Data("P6 \(width) \(height) 255\n".utf8) + Data(pixels)).write(
            to: URL(filePath: path))
        return path
    }
}
