/// What the recipes of `turbodiffusion train` share.

public import ArgumentParser
import Devices
public import Training

struct TrainOptions: ParsableArguments {
    @Option(help: "The model whose family is trained: a name or a folder (default: nano).")
    var model = "nano"

    @Option(help: "The dense transformer (default: the model's own).", completion: .file())
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
        help: "All settings, as in a run's settings.json.", completion: .file(extensions: ["json"]))
    var config: String?

    @Flag(name: .customLong("14b"), help: "The published configuration of the 14B models.")
    var isLarge = false

    @Option(help: "Iterations of the whole run.")
    var iterations: Int?

    @Option(help: "Samples of one pass.")
    var batchSize: Int?

    @Option(help: "Passes whose gradients add up before a step.")
    var accumulate: Int?

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

    /// The options that are given, put into settings.
    func apply(to settings: inout TrainingSettings) {
        if isLarge { settings.useLargePreset() }
        if let iterations { settings.iterations = iterations }
        if let batchSize { settings.batch = batchSize }
        if let accumulate { settings.accumulation = accumulate }
        if let lr { settings.optimizer.learningRate = lr }
        if let warmup { settings.warmup = warmup }
        if let clip { settings.largestNorm = clip }
        if let latentFrames { settings.frames = latentFrames }
        if let seed { settings.seed = seed }
        if let precision { settings.isHalf = precision == .bf16 }
        if let checkpoint { settings.recomputation = checkpoint }
        if let saveEvery { settings.saveEvery = saveEvery }
        if let keep { settings.kept = keep }
    }
}

enum TrainingPrecision: String, ExpressibleByArgument, CaseIterable { case bf16, f32 }

extension Recomputation: ExpressibleByArgument {}
