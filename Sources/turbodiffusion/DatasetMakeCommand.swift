/// `turbodiffusion dataset make`: a teacher makes the latents that a student learns from.

import ArgumentParser
import Catalog
import Checkpoints
import Devices
import Families
import Ground
import Runs
import Synchronization
import SystemPackage
import Tensors
import Terminal
import Training

struct DatasetMakeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "make",
        abstract: "Have a model make latents for prompts, in shards.",
        discussion: """
            Shards that are there are kept, so the same command goes on where another was stopped. \
            negative.safetensors is the embedding of the negative prompt, for 'train rcm'.

            Example:
              turbodiffusion dataset make --dit-path dense.safetensors --prompts prompts.txt --output data
            """)

    @Option(help: "The model: a name or a folder.")
    var model = "nano"

    @Option(help: "The dense transformer (default: the model's own).", completion: .file())
    var ditPath: String?

    @Option(help: "A file with a prompt on each line.", completion: .file())
    var prompts: String

    @Option(help: "The folder of the shards.", completion: .directory)
    var output: String

    @Option(help: "Samples of a shard.")
    var shardSize = 64

    @Option(help: "Steps of the sampler.")
    var numSteps = 50

    @Option(help: "Guidance.")
    var guidance = 5.0

    @Option(help: "Shift of the noise schedule (default: the family's).")
    var shift: Double?

    @Option(help: "Frames of the videos (default: the family's).")
    var numFrames: Int?

    @Option(help: "Seed of the first sample; each next one has the next seed.")
    var seed: UInt64 = 0

    @Option(help: "bf16 or f32.")
    var precision = TrainingPrecision.bf16

    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.usual

    func validate() throws {
        if shardSize < 1 { throw ValidationError("--shard-size must be 1 or more.") }
    }

    func run() async throws {
        let lines = try Batch.prompts(from: prompts, limit: 1 << 28)
        var choice = ModelChoice(model)
        if let ditPath { choice.files[.transformer] = ditPath }
        let models = try Catalog.published.open(choice)
        let first = request(lines[0], 0, models.family)
        try first.validate(for: models.family)
        let settings = try DatasetSettings(first, models, prompts: lines, shardSize: shardSize)
        let folder = FilePath(output)
        try folder.makeFolders()
        try settings.keep(in: folder)
        let device = device
        let engine = Engine {
            let backend = try device.open { Output.note("\($0)") }
            return OpenedDevice(backend, sageArchitecture: .sm90)
        }
        for start in stride(from: 0, to: lines.count, by: shardSize) {
            let number = start / shardSize
            let path = folder.appending("shard_" + padded(number, 6) + ".tar")
            if path.exists { continue }
            let writer = try ShardWriter(path)
            for index in start..<min(start + shardSize, lines.count) {
                let sample = try await make(lines[index], index, models, engine, folder)
                try writer.add(
                    index, latents: sample.latents, text: sample.text, prompt: lines[index])
                Output.note("sample \(index + 1) of \(lines.count)")
            }
            try writer.finish()
        }
    }

    private func request(_ prompt: String, _ index: Int, _ family: Family) -> Request {
        var request = Request(prompt, for: family)
        var flow = family.defaults.flow
        (flow.steps, flow.guidance) = (numSteps, guidance)
        if let shift { flow.shift = shift }
        request.sampling = .flow(flow)
        request.arithmetic.attention = .original
        request.arithmetic.precision = precision == .bf16 ? .bf16 : .f32
        request.seed = seed &+ UInt64(index)
        if let numFrames { request.frames = numFrames }
        return request
    }

    private func make(
        _ prompt: String, _ index: Int, _ models: ModelSet, _ engine: Engine, _ folder: FilePath
    ) async throws -> (latents: Tensor, text: Tensor) {
        let request = request(prompt, index, models.family)
        let text = TemporaryPath(beside: folder.appending("embedding.safetensors"))
        var options = RunOptions()
        options.save.text = text.path.string
        options.keepsTextEncoder = true
        let refusal = Mutex<String?>(nil)
        let handle = engine.start(try Run(request, models, options)) { event in
            if case .notice(.notSaved(_, let reason)) = event {
                refusal.withLock { $0 = reason }
            }
        }
        for try await _ in handle.steps {
            // Without the text no sample comes of it.
            if let reason = refusal.withLock({ $0 }) { throw UserError("dataset.text", reason) }
        }
        guard let made = try await handle.latents() else {
            throw UserError("dataset.latents", "the model made no latents for '\(prompt)'")
        }
        handle.cancel()
        let stored = try openCheckpoint(text.path.string)
        // The file holds the prompt's rows alone; a sample's text is whole, as the original's.
        func embedding(_ name: String) throws -> Tensor? {
            try stored.tensor(name).map {
                try Text(Tensor($0.floats(), $0.shape)).padded(to: models.family.textLength).rows
            }
        }
        guard let rows = try embedding("text_embedding") else {
            throw UserError("dataset.text", "the text encoder's embedding was not kept")
        }
        let negative = folder.appending("negative.safetensors")
        if !negative.exists, let other = try embedding("negative_text_embedding") {
            try writeCheckpoint(
                TensorCollection(
                    "negative prompt", [("text_embedding", other.converted(to: .bf16))]),
                to: negative.string)
        }
        let shape: Shape = [made.channels, made.extent.t, made.extent.h, made.extent.w]
        return (Tensor(made.values, shape), rows)
    }
}
