/// The options that text-to-video and image-to-video share: those of the original's scripts under the same names, and
/// this program's own. What is nil or false was not said: the model's defaults hold, or what a repeated video has.

public import ArgumentParser
import CUDA
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
    @Argument(help: "What the video shows.")
    var promptArgument: String?
    @Option(help: "The same as an option.")
    var prompt: String?
    @Option(help: "What guidance leads away from (undistilled models).")
    var negativePrompt: String?
    @Option(name: [.long, .customLong("size")], help: "480p, 720p, 480, 512, 720 or WIDTHxHEIGHT.")
    var resolution: String?
    @Option(help: "Of a named resolution: 16:9, 9:16, 4:3, 3:4 or 1:1 (default 16:9).")
    var aspectRatio: String?
    @Option(help: "Frames, 4n + 1.")
    var numFrames: Int?
    @Option(help: "Frames per second.")
    var fps: Int?
    @Option(help: "Determines the noise: a number (default 0), or random.")
    var seed: Seed?
    @Option(help: "Videos to make from one noise draw (default 1).")
    var numSamples: Int?
    @Option(
        help: "Repeat the request that is stored in this video, with what else is said changed.",
        completion: .file())
    var from: String?
}

struct ModelOptions: ParsableArguments {
    @Option(
        help: """
            A folder with a config.json, or a name: nano, Wan2.1-1.3B, Wan2.1-14B, Wan2.2-A14B, Wan2.2-T2V-A14B.
            """)
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
            Repeatable; of two experts it changes both.
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
            Wan's own generate.py runs; unipc and euler begin at pure noise or at --sigma_max.
            """)
    var sampler: SamplerChoice?
    @Option(
        help: "Steps: 1 to 4 for distilled models (default 4), any number for others (default 50).")
    var numSteps: Int?
    @Option(help: "Noise level of the first step.")
    var sigmaMax: Double?
    @Flag(help: "Without rCM's fresh noise: sharper, less robust.")
    var ode = false
    @Option(help: "Guidance scale (undistilled models; default 5).")
    var guidance: Double?
    @Option(
        help: "Schedule shift of undistilled models' samplers (default 5; 3 for pictures at 480p).")
    var shift: Double?
}

struct ArithmeticOptions: ParsableArguments {
    @Option(help: "Self-attention: original, sla or sagesla.")
    var attentionType: AttentionChoice?
    @Option(help: "Share of key blocks that SLA and SageSLA attend exactly.")
    var slaTopk: Double?
    @Option(help: "Linear layers: stored (default), int8 or fp8.")
    var linears: LinearChoice?
    @Flag(help: "The same as --linears int8: quantise them where the checkpoint has not done it.")
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
    @Option(help: "Start from this file instead of the picture.", completion: .file())
    var conditioning: String?
    @Option(help: "Write what the transformer is told of the picture.", completion: .file())
    var saveConditioning: String?
    @Option(help: "Start from these latents: only decode.", completion: .file())
    var latents: String?
    @Option(
        help: "Write the last latents to this file. Without --save_path no video is made of them.",
        completion: .file())
    var saveLatents: String?
}

struct OutputOptions: ParsableArguments {
    @Option(
        help: """
            The output: .mp4, .webm, .gif, .webp, or a pattern such as frames/%04d.png \
            (default output/generated_video.mp4, numbered where that exists).
            """,
        completion: .file())
    var savePath: String?
    @Option(help: "Quality of the video, less is better: 0 to 51 for .mp4 (default 12).")
    var crf: Int?
    @Flag(help: "Replace files that exist.")
    var force = false
}

/// Where and how a run is carried out.
struct ExecutionOptions: ParsableArguments {
    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic
    @Option(help: "Threads of the CPU (default: all).")
    var threads: Int?
    @Option(help: "The most device memory to use, such as 16GiB.", transform: ByteCount.init)
    var memoryLimit: ByteCount?
    @Flag(help: "Release the transformer before frames are decoded.")
    var offloadDit = false
    @Flag(help: "Print the plan of memory and time, and stop.")
    var dryRun = false
    @Flag(help: "Print events as JSON, one object a line.")
    var json = false
    @Flag(help: "Print nothing but errors.")
    var quiet = false

    /// - Parameter resident: bytes of weights that stay on a GPU; nil for all.
    func deviceOptions(resident: Int?) -> DeviceOptions {
        var options = DeviceOptions()
        options.threads = threads
        options.cuda.memoryLimit = memoryLimit?.bytes
        options.cuda.residentWeights = resident
        return options
    }
}
