/// From the options of `turbodiffusion train` to a run, and through it.

import ArgumentParser
import Catalog
import Checkpoints
import Devices
import Families
import Ground
import Models
import SystemPackage
import Tensors
import Terminal
import Training

struct TrainingRun {
    let options: TrainOptions
    let recipe: TrainingSettings.Recipe
    let base: String?
    let isInt8: Bool

    init(
        _ options: TrainOptions, _ recipe: TrainingSettings.Recipe, base: String? = nil,
        isInt8: Bool = false
    ) {
        self.options = options
        self.recipe = recipe
        self.base = base
        self.isInt8 = isInt8
    }

    /// - Parameter change: puts the recipe's own options into the settings.
    func run(_ change: (inout TrainingSettings) -> Void) async throws {
        let settings = try settings(change)
        let (models, sizes, textLength) = try models()
        let samples = try samples(settings, sizes, textLength)
        try tellPlan(settings, models, samples)
        if options.dryRun { return }

        let folder = try RunFolder(options.output, kept: settings.kept)
        var deviceOptions = DeviceOptions()
        deviceOptions.threads = options.threads
        let device = try options.device.open(deviceOptions) { note("\($0)") }
        guard device.supportsTraining else {
            throw UserError(
                "device.training",
                "\(device.name) has no kernels for gradients yet; train with --device cpu")
        }
        // The kernels' tiles have 64 queries and 64 keys.
        if options.device.isGPU, settings.topK != nil,
            settings.queryBlock % 64 != 0 || settings.keyBlock % 64 != 0
        {
            throw UserError(
                "train.blocks",
                "blocks of \(settings.queryBlock) x \(settings.keyBlock): a GPU takes multiples of "
                    + "64 (queryBlock, keyBlock); smaller ones run with --device cpu")
        }
        let trainer = try Trainer(settings, models, samples, on: device)
        if let last = folder.states().last {
            try trainer.restore(try openTrainingState(last.path))
            note("resumed at iteration \(trainer.iteration) from \(last.path)")
        }
        try folder.write(settings)
        note("on \(device.name); \(samples.count) samples")
        try train(trainer, folder)
    }

    // MARK: What is asked for

    private func settings(_ change: (inout TrainingSettings) -> Void) throws -> TrainingSettings {
        var settings = TrainingSettings(recipe)
        let place = FilePath(options.output).appending("settings.json")
        if place.exists {
            guard options.resume || options.dryRun else {
                throw UserError(
                    "train.exists",
                    "\(options.output) holds a run already: --resume goes on with it, another "
                        + "--output begins a new one")
            }
            settings = try RunFolder.settings(from: place.string)
        } else if options.resume {
            throw UserError("train.resume", "\(options.output) holds no run that could be resumed")
        }
        if let config = options.config { settings = try RunFolder.settings(from: config) }
        guard settings.recipe == recipe else {
            throw UserError(
                "train.recipe",
                "the settings are those of 'train \(settings.recipe.rawValue)', not of "
                    + "'train \(recipe.rawValue)'")
        }
        options.apply(to: &settings)
        change(&settings)
        if let fault = settings.fault { throw UserError("train.settings", fault) }
        return settings
    }

    /// - Returns: the models, the transformer's sizes, and the rows of a text.
    private func models() throws -> (TrainingModels, WanTransformerArchitecture, Int) {
        var choice = ModelChoice(options.model)
        if let teacher = options.teacher { choice.files[.transformer] = teacher }
        let set = try Catalog.published.open(choice)
        let family = set.family
        guard family.conditioning == .none else {
            throw UserError(
                "train.model", "\(set.name) takes a picture; text-to-video models are trained here")
        }
        func open(_ path: String) throws -> OpenedModel {
            try openModel(
                path, .wanTransformer, heads: family.heads, patch: family.geometry.patch)
        }
        let teacher = try open(set.transformer)
        guard case .wanTransformer(let sizes) = teacher.model else {
            throw UserError("train.model", "\(set.transformer) is no transformer")
        }
        return (
            TrainingModels(
                teacher: teacher.checkpoint, student: try base.map { try open($0).checkpoint },
                options: WanTransformerOptions(
                    heads: sizes.heads, patch: family.geometry.patch),
                roundsTimesteps: family.roundsTimesteps,
                linearFormat: isInt8 ? .int8Blocks : .plain), sizes, family.textLength
        )
    }

    private func samples(
        _ settings: TrainingSettings, _ sizes: WanTransformerArchitecture, _ textLength: Int
    ) throws -> ShardSamples {
        guard !options.dataset.isEmpty else {
            throw UserError("train.data", "--dataset SHARD… is needed: 'dataset make' makes one")
        }
        var negative: Text?
        if let path = options.negativeEmbedding {
            let isTorch = !path.hasSuffix(".safetensors")
            let rows = try isTorch ? readTorchTensor(path) : Self.only(path)
            guard rows.shape.rank == 2, rows.shape[1] == sizes.textDim else {
                throw UserError(
                    "train.negative",
                    "\(path) holds \(rows), expected an embedding of [rows, \(sizes.textDim)]")
            }
            negative = try Text(rows).padded(to: textLength)
        }
        if recipe == .rcm, settings.rcm.guidance > 1, negative == nil {
            throw UserError(
                "train.negative",
                "the teacher's guidance needs --negative-embedding FILE (or --guidance 1)")
        }
        let samples = ShardSamples(
            try TarShards(options.dataset), frames: settings.frames, textLength: textLength,
            negative: negative)
        // The first sample stands for all: what does not fit is told before work begins.
        let first = try samples.sample(0)
        let shape = first.latents.shape
        guard shape[0] == sizes.outputChannels, shape[2] % sizes.patch == 0,
            shape[3] % sizes.patch == 0, first.text.rows.shape[1] == sizes.textDim
        else {
            throw UserError(
                "train.data",
                "the data set's latents are \(shape) and its text \(first.text.rows.shape): "
                    + "expected \(sizes.outputChannels) channels, heights and widths that are "
                    + "multiples of \(sizes.patch), and text of width \(sizes.textDim)")
        }
        return samples
    }

    private static func only(_ path: String) throws -> Tensor {
        let file = try openCheckpoint(path)
        guard file.names.count == 1, let tensor = try file.tensor(file.names[0]) else {
            throw UserError(
                "train.negative", "\(path) holds \(file.names.count) tensors, expected 1")
        }
        return tensor
    }

    // MARK: The run

    private func tellPlan(
        _ settings: TrainingSettings, _ models: TrainingModels, _ samples: ShardSamples
    ) throws {
        let plan = try TrainingPlan(
            settings, models, try samples.sample(0), isGPU: options.device.isGPU)
        let words =
            "\(fixed(Double(plan.parameters) / 1e6, 2)) M numbers are trained, at most "
            + "\(describe(bytes: plan.memory)) of memory, "
            + "\(fixed(Double(plan.flops) / 1e12, 3)) TFLOP in the heaviest iteration"
        if options.dryRun { Output.line(words) } else { note(words) }
        let free =
            options.device.isGPU
            ? options.device.freeMemory : HostMemory.current.available
        if let free, free < plan.memory {
            throw UserError(
                "train.memory",
                "an iteration takes \(describe(bytes: plan.memory)), \(describe(bytes: free)) are "
                    + "free: try --checkpoint block, a smaller --batch-size or --latent-frames")
        }
    }

    private func train(_ trainer: Trainer, _ folder: RunFolder) throws {
        let curves = try Curves(in: folder, done: trainer.iteration)
        Interruption.pauses()
        let clock = ContinuousClock()
        let begin = clock.now
        let first = trainer.iteration
        var saved = trainer.iteration
        func save() throws {
            guard saved != trainer.iteration else { return }
            try folder.save(trainer.state(), iteration: trainer.iteration)
            saved = trainer.iteration
        }
        while trainer.iteration < trainer.settings.iterations {
            let start = clock.now
            let report = try trainer.step()
            try curves.add(report, seconds: (clock.now - start) / .seconds(1))
            if let reason = report.skipped {
                Output.note("iteration \(report.iteration) skipped: \(reason)")
            }
            if report.iteration % max(1, options.logEvery) == 0 || report.iteration == first + 1 {
                let mean = (clock.now - begin) / .seconds(1) / Double(trainer.iteration - first)
                let left = mean * Double(trainer.settings.iterations - trainer.iteration)
                note(
                    "iteration \(report.iteration) \(report.net) loss \(brief(report.loss)) "
                        + "norm \(brief(report.norm)) \(describe(seconds: mean)) each, "
                        + "\(fixed(left / 60, 1)) min left")
            }
            if Interruption.isPausing {
                try save()
                note("paused after iteration \(trainer.iteration); --resume goes on")
                throw ExitCode(130)
            }
            if trainer.iteration % trainer.settings.saveEvery == 0 { try save() }
        }
        try save()
        try export(trainer)
    }

    private func export(_ trainer: Trainer) throws {
        let isAdapter = trainer.adapters != nil
        for (name, average) in [
            (isAdapter ? "adapter" : "transformer", false),
            (isAdapter ? "adapter-ema" : "transformer-ema", true),
        ] {
            let path = FilePath(options.output).appending("\(name).safetensors").string
            try writeCheckpoint(trainer.exported(average: average), to: path, overwrite: true)
            note("wrote \(path)")
        }
    }

    private func brief(_ value: Double) -> String {
        value.isFinite ? "\(Float(value))" : "\(value)"
    }

    private func note(_ text: String) {
        if !options.quiet { Output.note(text.printable) }
    }
}
