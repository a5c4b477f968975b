/// `turbodiffusion train`: sparse-attention tuning, distillation and adapters.

import ArgumentParser
import Ground
import SystemPackage
import Training

struct TrainCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train",
        abstract: "Train a model: SLA tuning, rCM distillation, LoRA.",
        discussion: """
            A run lives in a folder: settings.json, loss.csv, events for TensorBoard, checkpoints, and at the end the \
            trained models. Ctrl-C pauses it after the current iteration; --resume goes on with the same bits. \
            The published configurations are the defaults; --config reads settings from a file. Several processes, \
            one for each device, train one model: torchrun --no-python, srun or Ray start them.
            """,
        subcommands: [TrainSLACommand.self, TrainRCMCommand.self, TrainLoRACommand.self])
}

struct TrainSLACommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sla",
        abstract: "Tune a dense transformer to sparse-linear attention: it imitates itself.",
        discussion: """
            Example:
              turbodiffusion train sla --teacher dense.safetensors --dataset data/shard_*.tar \\
                  --output runs/sla --sla-topk 0.2 --iterations 500
            """)

    @OptionGroup var options: TrainOptions

    @OptionGroup var attention: TrainedAttention

    @Flag(help: "Write -quant checkpoints too: linear layers in int8.")
    var quant = false

    func run() async throws {
        try await TrainingRun(
            options, .sla, names: attention.names, isQuantized: quant
        ).run { settings in
            try attention.apply(to: &settings)
        }
    }
}

struct TrainRCMCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rcm",
        abstract: "Distil a transformer to few steps: consistency and distribution matching.",
        discussion: """
            Example:
              turbodiffusion train rcm --teacher dense.safetensors --dataset data/shard_*.tar \\
                  --negative-embedding data/negative.safetensors --output runs/rcm
            """)

    @OptionGroup var options: TrainOptions

    @Option(help: "Learning rate of the critic.")
    var criticLr: Double?

    @Option(help: "The teacher's guidance (default: 5).")
    var guidance: Double?

    @Option(help: "Iterations until the tangent counts fully (default: 1000).")
    var tangentWarmup: Int?

    @Option(help: "The student's turn comes every so many iterations (default: 5).")
    var studentEvery: Int?

    @Option(help: "continuous (sCM) or discrete (dCM).")
    var consistency: RCM.Consistency?

    @Option(
        help:
            "How sCM's derivative is found: exact (forward mode), difference-in-time or difference."
    )
    var derivative: RCM.Derivative?

    @Option(help: "h of the differences (default: 0.0001).")
    var difference: Double?

    @Flag(help: "Write -quant checkpoints too: linear layers in int8.")
    var quant = false

    private var names: [String: String] {
        optionNames([
            ("criticOptimizer.learningRate", "--critic-lr", criticLr),
            ("rcm.guidance", "--guidance", guidance),
            ("rcm.tangentWarmup", "--tangent-warmup", tangentWarmup),
            ("rcm.studentEvery", "--student-every", studentEvery),
            ("rcm.difference", "--difference", difference),
        ])
    }

    func run() async throws {
        try await TrainingRun(options, .rcm, names: names, isQuantized: quant).run { settings in
            if let consistency { settings.rcm.consistency = consistency }
            if let derivative { settings.rcm.derivative = derivative }
            if let difference { settings.rcm.difference = difference }
            if let criticLr { settings.criticOptimizer.learningRate = criticLr }
            if let guidance { settings.rcm.guidance = guidance }
            if let tangentWarmup { settings.rcm.tangentWarmup = tangentWarmup }
            if let studentEvery { settings.rcm.studentEvery = studentEvery }
        }
    }
}

struct TrainLoRACommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lora",
        abstract: "Train low-rank adapters beside a transformer's linear layers.",
        discussion: """
            Learns from the data (flow matching); with --base the adapters are for that transformer and imitate the \
            teacher's velocity.

            Example:
              turbodiffusion train lora --dataset data/shard_*.tar --output runs/style --rank 8
            """)

    @OptionGroup var options: TrainOptions

    @Option(
        help: "The transformer that gets the adapters, where it is not the teacher.",
        completion: .file())
    var base: String?

    @Option(help: "Rank of the adapters (default: 16).")
    var rank: Int?

    @Option(help: "alpha / rank is the adapters' factor (default: the rank).")
    var alpha: Double?

    @Option(
        help:
            "Layers, by the ends of their names, separated by commas (default: all in the blocks).")
    var targets: String?

    @OptionGroup var attention: TrainedAttention

    @Option(
        help: "comfyui, or peft: a folder with adapter_model.safetensors and adapter_config.json.")
    var adapterLayout: LowRankAdapters.Layout?

    @Flag(help: "Quantise the layers of the blocks to int8; the adapters stay as they are.")
    var int8 = false

    @Option(
        help:
            "Of a model with two transformers: high (noise), low, or both, one run after the other."
    )
    var expert: ExpertChoice?

    @Option(
        help:
            "Share of noise below which the expert for low noise takes over (default: the family's)."
    )
    var boundary: Double?

    func validate() throws {
        if expert == .both, base != nil || options.teacher != nil {
            throw ValidationError(
                "--expert both trains two transformers, but --teacher and --base name one: train "
                    + "--expert high and --expert low one after the other")
        }
    }

    func run() async throws {
        let runs = runs
        // The second one's folder, too, before the first one is trained.
        for (run, _) in runs { try run.checkFolder() }
        for (run, expert) in runs {
            try await run.run { try apply(to: &$0, expert) }
        }
    }

    private var names: [String: String] {
        let own = optionNames([
            ("boundary", "--boundary", boundary), ("rank", "--rank", rank),
            ("alpha", "--alpha", alpha), ("expert", "--expert", expert),
            ("targets", "--targets", targets),
        ])
        return own.merging(attention.names) { own, _ in own }
    }

    /// One run after the other, each with its expert.
    var runs: [(run: TrainingRun, expert: TrainingSettings.Expert?)] {
        func run(_ options: TrainOptions, like other: FilePath? = nil) -> TrainingRun {
            TrainingRun(
                options, .lora, names: names, base: base, isInt8: int8,
                isOneOfTwo: expert == .both, like: other)
        }
        guard expert == .both else { return [(run(options), expert?.experts[0])] }
        func settings(_ one: TrainingSettings.Expert) -> FilePath {
            FilePath(options.output).appending(one.rawValue).appending("settings.json")
        }
        let experts = ExpertChoice.both.experts
        let begun = experts.map(settings).first { $0.exists }
        return experts.map { one in
            var options = options
            // Each expert's run has a folder of its own. The second one has none before the first one's end; what it
            // is to be like is known from the first one's then.
            if begun != nil, !settings(one).exists { options.resume = false }
            options.output += "/\(one.rawValue)"
            return (run(options, like: begun), one)
        }
    }

    /// Puts the options that are given into settings.
    func apply(to settings: inout TrainingSettings, _ expert: TrainingSettings.Expert?) throws {
        if let expert { settings.expert = expert }
        if let boundary { settings.boundary = boundary }
        if let rank { (settings.rank, settings.alpha) = (rank, nil) }
        if let alpha { settings.alpha = alpha }
        try attention.apply(to: &settings)
        if let adapterLayout { settings.layout = adapterLayout }
        if let targets { settings.targets = targets.split(separator: ",").map(String.init) }
    }
}
