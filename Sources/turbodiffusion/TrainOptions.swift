/// What the recipes of `turbodiffusion train` share.

public import ArgumentParser
import Devices
public import Training

struct TrainOptions: ParsableArguments {
    @Option(help: "The model whose family is trained: a name or a folder (default: nano).")
    var model: String?

    @Option(
        help: "The dense transformer: a file, or a DCP folder (default: the model's own).",
        completion: .file())
    var teacher: String?

    @Option(
        parsing: .upToNextOption,
        help: "Shards of the data set: tar files as 'dataset make' and the original write them.",
        completion: .file(extensions: ["tar"]))
    var dataset: [String] = []

    @Option(
        help: "The negative prompt's embedding: a .pt or .safetensors file.", completion: .file())
    var negativeEmbedding: String?

    @Option(help: "The run's folder.", completion: .directory)
    var output: String

    @Flag(help: "Go on with the run in the folder.")
    var resume = false

    @Option(
        help: "Settings and files, in YAML or as in a run's settings.json; options go before them.",
        completion: .file(extensions: ["yaml", "yml", "json"]))
    var config: String?

    @Option(
        help:
            "A published configuration: the 1.3B models' (the default), the 14B's, or an experiment of the original."
    )
    var preset: TrainingSettings.Preset?

    @Flag(name: .customLong("14b"), help: "The same as --preset 14b.")
    var isLarge = false

    @Option(help: "Iterations of the whole run.")
    var iterations: Int?

    @Option(help: "Samples of one pass.")
    var batchSize: Int?

    @Option(help: "Passes whose gradients add up before a step.")
    var accumulate: Int?

    @Option(
        help: "Processes that share out the tokens of each sample (default: 1).")
    var sequenceParallel: Int?

    @Option(help: "Learning rate.")
    var lr: Double?

    @Option(help: "Steps of the ramp of the learning rate (default: 100).")
    var warmup: Int?

    @Option(help: "The largest norm of the gradients (default: any).")
    var clip: Double?

    @Option(help: "Latent frames of a sample (default: all).")
    var latentFrames: Int?

    @Option(help: "Determines order, times and noise (default: 0).")
    var seed: UInt64?

    @Option(help: "bf16 (f32 masters and moments) or f32.")
    var precision: TrainingPrecision?

    @Option(help: "block: compute blocks again on the way back; none: keep everything.")
    var checkpoint: Recomputation?

    @Option(
        help: "none: processes share out masters and moments; full: weights and gradients, too.")
    var shard: Sharding?

    @Flag(
        name: .customLong("8bit-moments"),
        help: "Keep the optimiser's moments in 8 bits between steps, in the host's memory.")
    var eightBitMoments = false

    @Flag(
        help:
            "Bring latents through the autoencoder and back, as the original does; each sample once."
    )
    var vaeRoundTrip = false

    @Flag(
        help:
            "As the original: checkpoints without masters, gradients that are not finite become zeros, no clipping."
    )
    var reference = false

    @Option(help: "Sample the model every so many iterations, into the run's folder.")
    var validateEvery: Int?

    @Option(help: "Samples of the data set whose prompts are used for that.")
    var validateSamples = 4

    @Option(help: "Steps of the sampler for that (default: 4 for rcm, else 20).")
    var validateSteps: Int?

    @Option(
        help: "The attribute classifier of nano's videos: each validation gets a score.",
        completion: .file())
    var classifier: String?

    @Option(
        help: "What the prompts ask for, for the classifier: JSON with the attributes of each.",
        completion: .file(extensions: ["json"]))
    var captions: String?

    @Option(help: "Iterations between checkpoints (default: 500).")
    var saveEvery: Int?

    @Option(help: "Checkpoints that are kept (default: 2).")
    var keep: Int?

    @Option(help: "Iterations between lines on the terminal.")
    var logEvery = 10

    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic

    @Option(help: "Threads of the CPU (default: all).")
    var threads: Int?

    @Flag(help: "Only tell what the run takes.")
    var dryRun = false

    @Flag(help: "Print nothing but errors.")
    var quiet = false

    func validate() throws {
        if output.isEmpty { throw ValidationError("--output is empty, expected a folder's name") }
        try checkThreads(threads)
        for (name, value) in [
            ("--validate-every", validateEvery), ("--validate-samples", validateSamples),
            ("--validate-steps", validateSteps), ("--log-every", logEvery),
        ] {
            if let value, value < 1 {
                throw ValidationError("\(name) is \(value), expected 1 or more")
            }
        }
        if isLarge, let preset, preset != .large {
            throw ValidationError("--14b and --preset \(preset.rawValue) exclude each other")
        }
        if classifier != nil, captions == nil || validateEvery == nil {
            throw ValidationError(
                "--classifier needs --captions FILE, what the prompts ask for, and --validate-every N"
            )
        }
        if classifier == nil, captions != nil {
            throw ValidationError("--captions needs --classifier FILE")
        }
    }

    /// The options that are given, by the settings that are taken from them.
    var names: [String: String] {
        optionNames([
            ("iterations", "--iterations", iterations), ("batch", "--batch-size", batchSize),
            ("accumulation", "--accumulate", accumulate),
            ("sequenceParallel", "--sequence-parallel", sequenceParallel),
            ("optimizer.learningRate", "--lr", lr), ("warmup", "--warmup", warmup),
            ("largestNorm", "--clip", clip), ("frames", "--latent-frames", latentFrames),
            ("saveEvery", "--save-every", saveEvery), ("kept", "--keep", keep),
        ])
    }

    /// The options that are given, put into settings.
    func apply(to settings: inout TrainingSettings) {
        if reference { settings.asReference = true }
        if vaeRoundTrip { settings.hasRoundTrip = true }
        if eightBitMoments { settings.hasEightBitMoments = true }
        if let iterations { settings.iterations = iterations }
        if let batchSize { settings.batch = batchSize }
        if let accumulate { settings.accumulation = accumulate }
        if let sequenceParallel { settings.sequenceParallel = sequenceParallel }
        if let lr { settings.optimizer.learningRate = lr }
        if let warmup { settings.warmup = warmup }
        if let clip { settings.largestNorm = clip }
        if let latentFrames { settings.frames = latentFrames }
        if let seed { settings.seed = seed }
        if let precision { settings.isHalf = precision == .bf16 }
        if let checkpoint { settings.recomputation = checkpoint }
        if let shard { settings.shard = shard }
        if let saveEvery { settings.saveEvery = saveEvery }
        if let keep { settings.kept = keep }
    }
}

/// Names of options by those of their settings; an option whose value is nil is not given.
func optionNames(_ all: [(setting: String, option: String, value: Any?)]) -> [String: String] {
    Dictionary(
        uniqueKeysWithValues: all.filter { $0.value != nil }.map { ($0.setting, $0.option) })
}

enum TrainingPrecision: String, ExpressibleByArgument, CaseIterable { case bf16, f32 }

extension Recomputation: ExpressibleByArgument {}
extension Sharding: ExpressibleByArgument {}
extension TrainingSettings.Preset: ExpressibleByArgument {}

extension LowRankAdapters.Layout: ExpressibleByArgument {}

extension RCM.Consistency: ExpressibleByArgument {}

extension RCM.Derivative: ExpressibleByArgument {
    /// Words with hyphens, as all values of options.
    private static let words: [(String, RCM.Derivative)] = [
        ("exact", .exact), ("difference-in-time", .differenceInTime), ("difference", .difference),
    ]
    public static var allValueStrings: [String] { words.map(\.0) }

    public init?(argument: String) {
        guard let found = Self.words.first(where: { $0.0 == argument }) else { return nil }
        self = found.1
    }
}

/// `--expert`: one of two transformers, or both.
enum ExpertChoice: String, ExpressibleByArgument, CaseIterable {
    case high, low, both

    var experts: [TrainingSettings.Expert] {
        switch self {
        case .high: [.high]
        case .low: [.low]
        case .both: [.high, .low]
        }
    }
}

/// Sparse-linear attention as it is trained.
struct TrainedAttention: ParsableArguments {
    @Option(
        name: .customLong("sla-topk"),
        help: """
            Share of the key blocks attended exactly (default: 0.1 for sla; lora attends to all keys unless it is \
            given, and its transformer must have sparse-linear attention).
            """)
    var topK: Double?

    @Option(
        name: .customLong("sla-blocks"),
        help: """
            Queries x keys of a block (default: 64x64, as published models are trained). SLA makes videos with \
            128x64, SageSLA on Hopper with 64x128.
            """)
    var blocks: AttentionBlocks?

    /// As ``TrainOptions/names``.
    var names: [String: String] {
        optionNames([
            ("topK", "--sla-topk", topK), ("queryBlock", "--sla-blocks", blocks),
            ("keyBlock", "--sla-blocks", blocks),
        ])
    }

    func apply(to settings: inout TrainingSettings) throws {
        if let topK { settings.topK = topK }
        if let blocks {
            guard settings.topK != nil else {
                throw UserError(
                    "train.blocks",
                    "--sla-blocks needs --sla-topk: attention to all keys has no blocks")
            }
            (settings.queryBlock, settings.keyBlock) = (blocks.queries, blocks.keys)
        }
    }
}

/// `QUERIESxKEYS`.
struct AttentionBlocks: ExpressibleByArgument {
    let queries, keys: Int

    init?(argument: String) {
        guard let (queries, keys) = pair(argument) else { return nil }
        (self.queries, self.keys) = (queries, keys)
    }
}
