/// From the options of `turbodiffusion train` to a run, and through it.

import ArgumentParser
import Benchmarks
import Checkpoints
import Devices
import Families
import Glibc
import Ground
import Models
import SystemPackage
import Tensors
import Terminal
import Training

struct TrainingRun {
    let options: TrainOptions
    let recipe: TrainingSettings.Recipe
    /// The options that are given, by the settings that are taken from them.
    let names: [String: String]
    /// The transformer that gets adapters, where it is not the teacher.
    let base: String?
    let isInt8: Bool
    /// Whether another run follows or went before, with the same options, for the model's other transformer.
    let isOneOfTwo: Bool
    /// The settings.json of another run, whose settings this one has unless it has some of its own.
    let other: FilePath?
    /// Whether -quant checkpoints are written, too.
    let isQuantized: Bool

    init(
        _ options: TrainOptions, _ recipe: TrainingSettings.Recipe, names: [String: String],
        base: String? = nil, isInt8: Bool = false, isOneOfTwo: Bool = false,
        like other: FilePath? = nil,
        isQuantized: Bool = false
    ) {
        self.options = options
        self.recipe = recipe
        self.names = names.merging(options.names) { own, _ in own }
        self.base = base
        self.isInt8 = isInt8
        self.isOneOfTwo = isOneOfTwo
        self.other = other
        self.isQuantized = isQuantized
    }

    /// - Parameter change: puts the recipe's own options into the settings.
    func run(_ change: (inout TrainingSettings) throws -> Void) async throws {
        let place = try ProcessPlace.read(environment)
        let isFirst = place?.isFirst ?? true
        var (settings, files) = try self.settings(change)
        if isInt8 { settings.hasInt8Base = true }
        if isOneOfTwo, files.teacher != nil || files.base != nil {
            throw UserError(
                "train.expert",
                "--expert both trains two transformers, but the settings name a teacher or a base: "
                    + "train --expert high and --expert low one after the other")
        }
        let inputs = try TrainingInputs(files, settings)
        if settings.expert != nil {
            settings.boundary = settings.boundary ?? inputs.set.family.defaults.boundary
            guard options.validateEvery == nil else {
                throw UserError(
                    "train.expert",
                    "--validate-every samples a whole model; an expert alone is none")
            }
        }
        let choice = place.map { $0.device(options.device) } ?? options.device
        // The plan of a run can be told without the others.
        let count = place?.count ?? (options.dryRun ? settings.sequenceParallel : 1)
        try Trainer.batch(settings, of: inputs.samples.count, count)
        try tellPlan(settings, inputs, choice, processes: count, isFirst: isFirst)
        if options.dryRun { return }

        var deviceOptions = DeviceOptions()
        deviceOptions.threads = options.threads ?? place?.threads
        let device = try choice.open(deviceOptions) { if isFirst { note("\($0)") } }
        guard device.supportsTraining else {
            throw UserError(
                "device.training",
                "\(device.name) has no kernels for gradients yet; train with --device cpu")
        }
        // The kernels' tiles have 64 queries and 64 keys.
        if choice.isGPU, settings.topK != nil,
            settings.queryBlock % 64 != 0 || settings.keyBlock % 64 != 0
        {
            throw UserError(
                "train.blocks",
                "blocks of \(settings.queryBlock) x \(settings.keyBlock): a GPU takes multiples of "
                    + "64 (--sla-blocks); smaller ones run with --device cpu")
        }
        try inputs.prepare(on: device)
        let group = try place.map {
            try joined($0, settings, inputs.samples.count, on: device)
        }
        let trainer = try Trainer(
            settings, inputs.models, inputs.samples, on: device, group: group)
        let folder = try RunFolder(options.output, kept: settings.kept)
        // Of several processes the first one alone writes.
        if isFirst { try folder.hold() }
        if let last = folder.states().last {
            try trainer.restore(try openTrainingState(last.path))
            if isFirst { note("resumed at iteration \(trainer.iteration) from \(last.path)") }
        }
        // Nobody removes a checkpoint that another process has not read yet.
        let agreed = try group?.sum([Double(trainer.iteration)])[0] ?? Double(trainer.iteration)
        guard agreed == Double(trainer.iteration * (place?.count ?? 1)) else {
            throw UserError(
                "train.processes",
                "the processes found different checkpoints in \(options.output): all of them need "
                    + "the same folder")
        }
        func validation() throws -> Validation? {
            try options.validateEvery.map { _ in
                try Validation(options, settings, inputs, on: device)
            }
        }
        guard isFirst else {
            // Weights that are split are gathered from all.
            return try follow(trainer, settings.shard == .full ? try validation() : nil)
        }
        let validated = try validation()
        // Nothing is refused any more.
        try folder.write(settings, files)
        Interruption.noteFinished(options.output)
        note(
            "on \(device.name); \(inputs.samples.count) samples"
                + (place.map { ", \($0.count) processes" } ?? "")
                + (settings.sequenceParallel > 1
                    ? ", \(settings.sequenceParallel) for each sample's tokens" : ""))
        try await lead(trainer, folder, validated)
        // Results are written there, too: nobody else has it before.
        withExtendedLifetime(folder) {}
    }

    // MARK: Settings

    /// The settings of a run that was begun in the folder.
    private var own: FilePath { FilePath(options.output).appending("settings.json") }

    /// Throws where the folder holds a run that nobody asks to go on with, or none where somebody does.
    func checkFolder() throws(UserError) {
        guard own.exists else {
            guard RunFolder.states(in: FilePath(options.output)).isEmpty else {
                throw UserError(
                    "train.exists",
                    "\(options.output) holds checkpoints of a run, but not its settings.json: choose "
                        + "another --output")
            }
            guard !options.resume else {
                throw UserError(
                    "train.resume", "\(options.output) holds no run that could be resumed")
            }
            return
        }
        guard options.resume || options.dryRun else {
            throw UserError(
                "train.exists",
                "\(options.output) holds a run already: --resume goes on with it, another "
                    + "--output begins a new one")
        }
    }

    func settings(_ change: (inout TrainingSettings) throws -> Void) throws -> (
        TrainingSettings, TrainingFiles
    ) {
        var settings = TrainingSettings(recipe)
        var files = TrainingFiles()
        try checkFolder()
        let stored = own.exists ? own : other
        if let stored { try take(try SettingsFile(stored.string), &settings, &files) }
        if let config = options.config {
            let file = try SettingsFile(config)
            if stored != nil, file.preset != nil { throw presetOfStored }
            try take(file, &settings, &files)
        }
        if stored != nil, options.preset != nil || options.isLarge { throw presetOfStored }
        if let preset = options.preset ?? (options.isLarge ? .large : nil) {
            guard preset.recipe == nil || preset.recipe == recipe else {
                throw UserError(
                    "train.recipe",
                    "--preset \(preset.rawValue) is a configuration of 'train "
                        + "\(preset.recipe?.rawValue ?? "")', not of 'train \(recipe.rawValue)'")
            }
            // A file's settings go before those of a preset on the command line, whichever comes first.
            settings.use(preset)
            if let config = options.config { try SettingsFile(config).apply(to: &settings) }
        }
        options.apply(to: &settings)
        try change(&settings)
        if let fault = settings.fault {
            // The option's name where the value is an option's, else the setting's: of a file.
            let setting = fault.prefix { $0 != " " }
            guard let option = names[String(setting)] else {
                throw UserError("train.settings", fault)
            }
            throw UsageError(description: option + fault.dropFirst(setting.count))
        }
        files.model = options.model ?? files.model
        files.teacher = options.teacher ?? files.teacher
        files.base = base ?? files.base
        if !options.dataset.isEmpty { files.dataset = options.dataset }
        files.negativeEmbedding = options.negativeEmbedding ?? files.negativeEmbedding
        return (settings, files)
    }

    private var presetOfStored: UserError {
        UserError(
            "train.preset",
            "\(options.output) holds a run with settings of its own: leave the preset out (--preset, "
                + "--14b, or in --config), or begin a new run with another --output")
    }

    private func take(
        _ file: SettingsFile, _ settings: inout TrainingSettings, _ files: inout TrainingFiles
    ) throws {
        if let other = file.recipe ?? file.preset?.recipe, other != recipe {
            throw UserError(
                "train.recipe",
                "the settings are those of 'train \(other.rawValue)', not of "
                    + "'train \(recipe.rawValue)'")
        }
        if let preset = file.preset { settings.use(preset) }
        try file.apply(to: &settings)
        files.model = file.files.model ?? files.model
        files.teacher = file.files.teacher ?? files.teacher
        files.base = file.files.base ?? files.base
        files.dataset = file.files.dataset ?? files.dataset
        files.negativeEmbedding = file.files.negativeEmbedding ?? files.negativeEmbedding
    }

    private func tellPlan(
        _ settings: TrainingSettings, _ inputs: TrainingInputs, _ device: DeviceChoice,
        processes: Int, isFirst: Bool
    ) throws {
        let sample = try inputs.outlined()
        func planned(_ shard: Sharding) throws -> TrainingPlan {
            var settings = settings
            settings.shard = shard
            return try TrainingPlan(
                settings, inputs.models, sample, isGPU: device.isGPU, processes: processes)
        }
        let plan = try planned(settings.shard)
        let card = device.isGPU ? device.cardName.flatMap { Card.named($0) } : nil
        let time = card.map { Estimate.training(flops: plan.flops, on: $0) }
        let words =
            plan.words + (processes == 1 ? "" : " of each process")
            + (time.map { "; it takes \(about(seconds: $0)) (an estimate)" } ?? "")
        if options.dryRun { Output.line(words) } else if isFirst { note(words) }
        try plan.require(on: device) {
            let others =
                "--checkpoint block, a smaller --batch-size or --latent-frames, or more "
                + "processes with --sequence-parallel"
            guard processes > 1, settings.shard == .none else { return others }
            let needed = try planned(.full).needed
            return "--shard full, with which it takes \(describe(bytes: needed)), \(others)"
        }
        // All of them look: the others would wait for the first one.
        try plan.requireRoom(in: FilePath(options.output), settings)
    }

    // MARK: Processes

    private func joined(
        _ place: ProcessPlace, _ settings: TrainingSettings, _ samples: Int,
        on device: any Backend
    ) throws -> ProcessGroup {
        if place.isFirst {
            note(
                "waiting for \(place.count - 1) other processes at \(place.host), port \(place.port)"
            )
        }
        // What differs between machines, such as where the files are, does not count.
        var purpose = "\(settings), \(samples) samples"
        if settings.shard == .full, let every = options.validateEvery {
            // All take part in it then.
            let steps = options.validateSteps.map { "\($0)" } ?? ""
            purpose += ", \(options.validateSamples) validated in \(steps) every \(every)"
        }
        let group = try ProcessGroup.join(place, purpose: purpose)
        group.cards = try CardsOfProcesses.open(group, device) { if place.isFirst { note($0) } }
        return group
    }

    /// What a process does that is not the first: the same steps, without a word.
    private func follow(_ trainer: Trainer, _ validation: Validation?) throws {
        Interruption.pauses()
        while trainer.iteration < trainer.settings.iterations {
            let report = try trainer.step(pausing: { Interruption.isPausing })
            if report.isPausing {
                _ = try trainer.state()
                throw ExitCode(130)
            }
            if trainer.iteration % trainer.settings.saveEvery == 0 { _ = try trainer.state() }
            if let validation, let every = options.validateEvery, trainer.iteration % every == 0 {
                try validation.accompany(trainer)
            }
        }
        if trainer.iteration % trainer.settings.saveEvery != 0 { _ = try trainer.state() }
        for average in [false, true] { _ = try trainer.exported(average: average) }
    }

    // MARK: The run

    private func lead(_ trainer: Trainer, _ folder: RunFolder, _ validation: Validation?)
        async throws
    {
        let curves = try Curves(in: folder, done: trainer.iteration)
        Interruption.pauses()
        let clock = ContinuousClock()
        var pace = Pace()
        let first = trainer.iteration
        func save() throws {
            if let state = try trainer.state() {
                try folder.save(state, iteration: trainer.iteration)
            }
            try curves.draw()
        }
        func validate() async throws {
            guard let validation else { return }
            let figures = try await validation.run(trainer, in: folder)
            try curves.add(figures, iteration: trainer.iteration)
            note(
                "validation after iteration \(trainer.iteration): "
                    + figures.map { name, value in
                        value.map { "\(name) \(fixed($0, 2))" } ?? "equal to the teacher's"
                    }.joined(separator: ", "))
        }
        while trainer.iteration < trainer.settings.iterations {
            let start = clock.now
            let report = try trainer.step(pausing: { Interruption.isPausing })
            let seconds = (clock.now - start) / .seconds(1)
            pace.add(seconds)
            try curves.add(report, seconds: seconds)
            if let reason = report.skipped {
                Output.note("iteration \(report.iteration) skipped: \(reason)")
            }
            if report.iteration % options.logEvery == 0 || report.iteration == first + 1 {
                let left = pace.mean * Double(trainer.settings.iterations - trainer.iteration)
                note(
                    "iteration \(report.iteration) of \(trainer.settings.iterations), "
                        + "\(report.net) loss \(numeral(report.loss)) norm \(numeral(report.norm)), "
                        + "\(describe(seconds: pace.mean)) each, \(about(seconds: left)) left")
            }
            if report.isPausing {
                try save()
                note("paused after iteration \(trainer.iteration); --resume goes on")
                throw ExitCode(130)
            }
            if trainer.iteration % trainer.settings.saveEvery == 0 { try save() }
            if let every = options.validateEvery, trainer.iteration % every == 0 {
                try await validate()
            }
        }
        if trainer.iteration % trainer.settings.saveEvery != 0 { try save() }
        try export(trainer)
    }

    private func export(_ trainer: Trainer) throws {
        let isAdapter = trainer.adapters != nil
        for (ending, average) in [("", false), ("-ema", true)] {
            guard let result = try trainer.exported(average: average) else { continue }
            func write(_ checkpoint: any Checkpoint, _ name: String) throws {
                let path = FilePath(options.output).appending(name).string
                try writeCheckpoint(checkpoint, to: path, overwrite: true)
                note("wrote \(path)")
            }
            if isAdapter, trainer.settings.layout == .peft {
                // As PEFT's from_pretrained finds them.
                let folder = FilePath(options.output).appending("adapter\(ending)")
                try folder.makeFolders()
                try write(result, "adapter\(ending)/adapter_model.safetensors")
                try PendingFile.write(
                    Array(trainer.adapters!.configuration.utf8),
                    to: folder.appending("adapter_config.json"), overwrite: true)
                continue
            }
            try write(result, "\(isAdapter ? "adapter" : "transformer")\(ending).safetensors")
            if isQuantized, !isAdapter {
                try write(
                    try quantized(result, to: .int8Blocks).checkpoint,
                    "transformer\(ending)-quant.pth")
            }
        }
    }

    private func note(_ text: String) {
        if !options.quiet { Output.note(text.printable) }
    }
}

extension TrainingPlan {
    /// What an iteration takes.
    var words: String {
        "\(fixed(Double(parameters) / 1e6, 2)) M numbers are trained, about "
            + "\(describe(bytes: memory)) of memory"
            + (overhead > 0 ? " and \(describe(bytes: overhead)) for the device's own" : "")
            + ", \(fixed(Double(flops) / 1e12, 3)) TFLOP in the heaviest iteration"
    }

    /// Throws where it does not fit.
    /// - Parameter advice: what may be tried then.
    func require(on device: DeviceChoice, advice: () throws -> String) throws {
        let free = device.isGPU ? device.freeMemory : HostMemory.current.available
        guard let free, free < needed else { return }
        throw UserError(
            "train.memory",
            "an iteration takes \(describe(bytes: needed)), \(describe(bytes: free)) are free: "
                + "try \(try advice())")
    }

    /// Throws where the disk has no room for the run's checkpoints.
    func requireRoom(in folder: FilePath, _ settings: TrainingSettings) throws(FileError) {
        let checkpoints = folder.appending("checkpoints")
        let needed = room(for: settings, there: RunFolder.states(in: folder).count)
        // Folders that are missing will be made.
        var place = checkpoints
        while place.freeBytes == nil, place.folder != place { place = place.folder }
        if let free = place.freeBytes, needed > free {
            throw .noRoom(checkpoints, needed: needed, free: free)
        }
    }
}

/// How long the last iterations took.
private struct Pace {
    private var last: [Double] = []
    private var next = 0

    mutating func add(_ seconds: Double) {
        if last.count < 50 { last.append(seconds) } else { last[next % 50] = seconds }
        next += 1
    }

    var mean: Double { last.reduce(0, +) / Double(max(1, last.count)) }
}

extension ProcessPlace {
    /// The device of this process: its number among those of the machine, unless each process sees one only.
    func device(_ choice: DeviceChoice) -> DeviceChoice {
        switch choice {
        case .cpu: return .cpu
        case .cuda(let ordinal) where ordinal > 0: return choice
        case .automatic, .cuda:
            if local == 0 { return choice }
            let own = DeviceChoice.cuda(ordinal: local)
            if own.cardName != nil { return own }
            // Slurm can show each process its own card alone. More processes than cards are told by opening one.
            return choice == .automatic && DeviceChoice.automatic.cardName == nil
                ? .cpu : DeviceChoice.cuda(ordinal: 1).cardName == nil ? .cuda(ordinal: 0) : own
        }
    }

    /// The threads of a process that shares its machine's processors.
    var threads: Int? {
        localCount.map { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))) / $0) }
    }
}
