/// The options that text-to-video and image-to-video share: those of the original's scripts under the same names, and
/// this program's own. An option that is nil or false was not given: the value of the repeated video holds, or else the
/// model's default.

public import ArgumentParser
import Benchmarks
import CUDA
import Catalog
import Devices
public import Families

extension AttentionChoice: ExpressibleByArgument {}
extension Precision: ExpressibleByArgument {}
extension LinearChoice: ExpressibleByArgument {}

enum NormChoice: String, ExpressibleByArgument, CaseIterable { case exact, reference }

/// A sampler by its name.
enum SamplerChoice: String, ExpressibleByArgument, CaseIterable {
    case rcm
    case wanUniPC = "wan-unipc"
    case unipc, euler

    /// nil for distilled models.
    var solver: Sampling.Solver? { Sampling.Solver(rawValue: rawValue) }
}

struct GenerationOptions: ParsableArguments {
    @OptionGroup(title: "What to make") var content: ContentOptions
    @OptionGroup(title: "Model") var model: ModelOptions
    @OptionGroup(title: "Sampling") var sampling: SamplingOptions
    @OptionGroup(title: "Arithmetic") var arithmetic: ArithmeticOptions
    @OptionGroup(title: "Files of stages") var stages: StageOptions
    @OptionGroup(title: "Output") var output: OutputOptions
    @OptionGroup(title: "Machine") var execution: ExecutionOptions
}

struct ContentOptions: ParsableArguments {
    @Argument(help: ArgumentHelp("What the video shows.", valueName: "prompt"))
    var promptArgument: String?
    @Option(help: "The prompt, given as an option.")
    var prompt: String?
    @Option(help: "What guidance steers away from (undistilled models).")
    var negativePrompt: String?
    @Option(
        name: [.long, .customLong("size")],
        help: """
            480p, 720p, 480, 512, 720 or WIDTHxHEIGHT, multiples of 16 (default: the model's, 480p for Wan2.1, 720p for \
            Wan2.2 i2v, 256x144 for nano).
            """,
        completion: .list(["480p", "720p", "480", "512", "720"]))
    var resolution: String?
    @Option(
        help: "Of a named resolution: 16:9, 9:16, 4:3, 3:4 or 1:1 (default 16:9).",
        completion: .list(["16:9", "9:16", "4:3", "3:4", "1:1"]))
    var aspectRatio: String?
    @Option(help: "Frames, 4n + 1 (default: the model's, 81; 33 for nano).")
    var numFrames: Int?
    @Option(help: "Frames per second of the file (default 16).")
    var fps: Int?
    @Option(help: "Seed of the noise: a number (default 0), or random.")
    var seed: Seed?
    @Option(help: "Several seeds, such as 0-3,7: a video of each.")
    var seeds: SeedList?
    @Option(
        help: "A file with a prompt a line, - for standard input: a video of each, for every seed.",
        completion: .file())
    var prompts: String?
    @Option(help: "Number of videos to make from one noise draw (default 1).")
    var numSamples: Int?
    @Option(
        help: "Repeat the request stored in this video, changed by the other options.",
        completion: .file())
    var from: String?
}

struct ModelOptions: ParsableArguments {
    @Option(
        help: """
            A name that 'turbodiffusion models' lists, such as nano, Wan2.1-1.3B, Wan2.1-14B or Wan2.2-A14B, or a folder \
            with a config.json.
            """,
        completion: .list(Catalog.published.names))
    var model: String?
    @Option(help: "The VAE.", completion: .file())
    var vaePath: String?
    @Option(help: "The umT5 text encoder.", completion: .file())
    var textEncoderPath: String?
    @Option(help: "The tokenizer: tokenizer.json or spiece.model.", completion: .file())
    var tokenizerPath: String?
    @Option(
        name: .customLong("lora"),
        help: """
            A LoRA file, merged while loading, with its strength after a colon: style.safetensors:0.8. \
            Repeatable; of a model with two experts, both are changed.
            """,
        completion: .file())
    var loras: [LoRAArgument] = []
    @Option(
        name: .customLong("high-noise-lora"), help: "The same for the high-noise expert alone.",
        completion: .file())
    var highNoiseLoras: [LoRAArgument] = []
    @Option(
        name: .customLong("low-noise-lora"), help: "The same for the low-noise expert alone.",
        completion: .file())
    var lowNoiseLoras: [LoRAArgument] = []
}

struct SamplingOptions: ParsableArguments {
    @Option(
        help: """
            rcm (distilled models, the default); wan-unipc, unipc or euler (undistilled models). wan-unipc is what \
            Wan's own generate.py runs; unipc and euler start from pure noise, or from --sigma_max.
            """)
    var sampler: SamplerChoice?
    @Option(
        help: "Steps: 1 to 4 for distilled models (default 4), any number for others (default 50).")
    var numSteps: Int?
    @Option(help: "Noise level of the first step (default 80; 200 for pictures).")
    var sigmaMax: Double?
    @Flag(help: "Leave out rCM's fresh noise: sharper, less robust.")
    var ode = false
    @Option(help: "Guidance scale (undistilled models; default 5).")
    var guidance: Double?
    @Option(
        help: "Schedule shift of undistilled models (default 5; 3 for image to video up to 480p).")
    var shift: Double?
}

struct ArithmeticOptions: ParsableArguments {
    @Option(
        help:
            "Self-attention: original (dense), sla (bf16) or sagesla (8-bit; default but for nano)."
    )
    var attentionType: AttentionChoice?
    @Option(
        help: "Share of key blocks that SLA and SageSLA attend exactly (default 0.1; 0.2 for nano)."
    )
    var slaTopk: Double?
    @Option(help: "Linear layers: stored (default), int8 or fp8.")
    var linears: LinearChoice?
    @Flag(help: "The same as --linears int8: quantise what the checkpoint has not quantised.")
    var quantLinear = false
    @Option(help: "Arithmetic: f32 or bf16 (default).")
    var precision: Precision?
    @Option(help: "Norms: exact (default), or the original's fast ones (reference).")
    var norms: NormChoice?
    @Flag(help: "The same as --norms exact.")
    var defaultNorm = false
}

struct StageOptions: ParsableArguments {
    @Option(help: "Start from this text embedding.", completion: .file())
    var textEmbedding: String?
    @Option(
        help: "A file with the text embedding, instead of the text encoder.", completion: .file())
    var cachedEmbedding: String?
    @Flag(help: "Do not load the text encoder; needs --cached_embedding.")
    var skipT5 = false
    @Option(help: "Write the text embedding to this file.", completion: .file())
    var saveTextEmbedding: String?
    @Option(help: "Start from this conditioning instead of a picture.", completion: .file())
    var conditioning: String?
    @Option(help: "Write the conditioning, the encoded picture, to this file.", completion: .file())
    var saveConditioning: String?
    @Option(help: "Start from these latents: decode only.", completion: .file())
    var latents: String?
    @Option(
        help: "Write the final latents to this file. Without --save_path no video is made of them.",
        completion: .file())
    var saveLatents: String?
}

struct OutputOptions: ParsableArguments {
    @Option(
        help: """
            The output: .mp4, .webm, .gif, .webp, or a pattern such as frames/%04d.png \
            (default output/generated_video.mp4, numbered where that exists: generated_video-2.mp4); \
            - or /dev/fd/N: raw RGB frames for another program. \
            {seed}, {prompt} and {n} stand for the seed, the first words and the number of the prompt.
            """,
        completion: .file())
    var savePath: String?
    @Option(help: "Quality of the video, lower is better: 0 to 51 for .mp4 (default 12).")
    var crf: Int?
    @Flag(help: "Replace files that exist.")
    var force = false
}

/// Where and how a run is carried out.
struct ExecutionOptions: ParsableArguments {
    @Option(
        help: "Where to compute: auto, cpu, cuda or cuda:N.",
        completion: .list(["auto", "cpu", "cuda", "cuda:0"]))
    var device = DeviceChoice.usual
    @Option(
        help: """
            Make each video on several devices together, to the same bits: GPUs by number or UUID (0,1), cuda:all, or \
            cpu,cpu.
            """)
    var devices: DeviceGroup?
    @Option(help: "CPU threads (default: all).")
    var threads: Int?
    @Option(
        help: "The most memory to use on each device, such as 16GiB (default: what is free).",
        transform: ByteCount.init)
    var memoryLimit: ByteCount?
    @Flag(help: "Release the transformer before decoding.")
    var offloadDit = false
    @Flag(
        help:
            "Print the plan of memory, disk and time, and stop; published models need not be there."
    )
    var dryRun = false
    @Option(
        name: .customLong("card"),
        help:
            "With --dry_run: estimate the time on this card too, such as 4090; all for all. Repeatable.",
        completion: .list(["all"] + Card.known.map(\.shortName)))
    var cards: [CardArgument] = []
    @Flag(help: "Print events as JSON, one object a line; docs/events.md tells what is in them.")
    var json = false
    @Flag(help: "Print nothing but errors.")
    var quiet = false
    @Flag(help: "Print what each stage takes.")
    var verbose = false

    mutating func validate() throws {
        try Machines.check(device, devices)
        memoryLimit = try memoryLimit ?? Defaults.memoryLimit()
        try checkThreads(threads)
    }

    var machines: Machines { Machines(device: device, group: devices) }

    var deviceOptions: DeviceOptions {
        var options = DeviceOptions()
        options.threads = threads
        options.cuda.memoryLimit = memoryLimit?.bytes
        return options
    }
}
