/// The options that text-to-video and image-to-video share: those of the original's scripts under the same names,
/// and this program's own.

public import ArgumentParser
import FoundationEssentials
import Media
public import Pipelines

extension AttentionChoice: ExpressibleByArgument {}
extension SamplerChoice: ExpressibleByArgument {}
extension Precision: ExpressibleByArgument {}
extension LinearChoice: ExpressibleByArgument {}

enum NormChoice: String, ExpressibleByArgument, CaseIterable { case exact, reference }

struct GenerationOptions: ParsableArguments {
    // MARK: The original's

    @Option(help: "What the video shows.")
    var prompt: String?
    @Option(
        help: "A folder with a config.json, or a name: nano, Wan2.1-1.3B, Wan2.1-14B, Wan2.2-A14B.")
    var model: String?
    @Option(help: "The VAE.", completion: .file())
    var vaePath: String?
    @Option(help: "The umT5 text encoder.", completion: .file())
    var textEncoderPath: String?
    @Option(
        help: "A file with the text embedding, instead of the text encoder.", completion: .file())
    var cachedEmbedding: String?
    @Flag(help: "Do not load the text encoder; needs --cached_embedding.")
    var skipT5 = false
    @Option(help: "Videos to make from one noise draw.")
    var numSamples = 1
    @Option(
        help: "Steps: 1 to 4 for distilled models (default 4), any number for others (default 50).")
    var numSteps: Int?
    @Option(help: "Noise level of the first step.")
    var sigmaMax: Double?
    @Option(help: "Frames, 4n + 1.")
    var numFrames: Int?
    @Option(name: [.long, .customLong("size")], help: "480p, 720p, 480, 512, 720 or WIDTHxHEIGHT.")
    var resolution: String?
    @Option(help: "Of a named resolution: 16:9, 9:16, 4:3, 3:4 or 1:1.")
    var aspectRatio = "16:9"
    @Option(help: "Determines the noise.")
    var seed: UInt64 = 0
    @Option(
        help: "The output: .mp4, .webm, .gif, .webp, or a pattern such as frames/%04d.png.",
        completion: .file())
    var savePath = "output/generated_video.mp4"
    @Option(help: "Self-attention: original, sla or sagesla.")
    var attentionType: AttentionChoice?
    @Option(help: "Share of key blocks that SLA and SageSLA attend exactly.")
    var slaTopk: Double?
    @Flag(help: "Quantise linear layers to int8 where the checkpoint has not done it.")
    var quantLinear = false
    @Flag(help: "Exact norms, which is the default here.")
    var defaultNorm = false
    @Flag(help: "Release the transformer before frames are decoded.")
    var offloadDit = false
    @Flag(help: "Without rCM's fresh noise: sharper, less robust.")
    var ode = false

    // MARK: This program's

    @Option(help: "The tokenizer: tokenizer.json or spiece.model.", completion: .file())
    var tokenizerPath: String?
    @Option(help: "What guidance leads away from (undistilled models).")
    var negativePrompt: String?
    @Option(help: "Guidance scale (undistilled models).")
    var guidance: Double?
    @Option(
        help: """
            rcm (distilled models); wan-unipc, unipc or euler (undistilled models). wan-unipc is what Wan's \
            own generate.py runs; unipc and euler begin at pure noise or at --sigma_max.
            """)
    var sampler = SamplerChoice.rcm
    @Option(
        help: "Schedule shift of undistilled models' samplers (default 5; 3 for pictures at 480p).")
    var shift: Double?
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
    @Option(help: "Arithmetic: f32 or bf16.")
    var precision = Precision.bf16
    @Option(help: "Norms: exact, or the original's fast ones (reference).")
    var norms = NormChoice.exact
    @Option(help: "Linear layers: stored, int8 or fp8.")
    var linears: LinearChoice?
    @Option(help: "Frames per second.")
    var fps: Int?
    @Option(help: "Repeat the request that is stored in this video.", completion: .file())
    var from: String?
    @Option(help: "Start from these latents: only decode.", completion: .file())
    var latents: String?
    @Option(help: "Write the last latents to this file.", completion: .file())
    var saveLatents: String?
    @Option(help: "Start from this text embedding.", completion: .file())
    var textEmbedding: String?
    @Option(help: "Write the text embedding to this file.", completion: .file())
    var saveTextEmbedding: String?
    @OptionGroup var execution: ExecutionOptions
}

/// Where and how a run is carried out.
struct ExecutionOptions: ParsableArguments {
    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic
    @Option(help: "Threads of the CPU (default: all).")
    var threads: Int?
    @Option(help: "The most device memory to use, such as 16GiB.")
    var memoryLimit: ByteCount?
    @Option(help: "Quality of the video, less is better: 0 to 51 for .mp4 (default 12).")
    var crf: Int?
    @Flag(help: "Print the plan of memory and time, and stop.")
    var dryRun = false
    @Flag(help: "Print events as JSON, one object a line.")
    var json = false
    @Flag(help: "Print nothing but errors.")
    var quiet = false
}

/// "16GiB", "512M", "8e9": bytes.
struct ByteCount: ExpressibleByArgument, Sendable {
    let bytes: Int

    init?(argument: String) {
        let digits = argument.prefix { $0.isNumber || $0 == "." }
        let unit = argument.dropFirst(digits.count).lowercased()
        let scales: [String: Double] = [
            "": 1, "b": 1, "k": 0x1p10, "kib": 0x1p10, "kb": 1e3, "m": 0x1p20, "mib": 0x1p20,
            "mb": 1e6, "g": 0x1p30, "gib": 0x1p30, "gb": 1e9,
        ]
        guard let number = Double(digits), let scale = scales[unit], number > 0,
            number * scale < 1e15
        else { return nil }
        bytes = Int(number * scale)
    }
}

// MARK: - From options to a request

extension GenerationOptions {
    /// What the original's scripts take as given.
    struct ScriptDefaults {
        var resolution = "480p"
        var sigmaMax = 80.0
    }

    func runOptions() throws -> RunOptions {
        var options = RunOptions()
        options.textEmbedding = textEmbedding ?? cachedEmbedding
        if skipT5, options.textEmbedding == nil {
            throw RequestError("--skip_t5 needs --cached_embedding FILE")
        }
        options.latents = latents
        options.saveTextEmbedding = saveTextEmbedding
        options.saveLatents = saveLatents
        options.keepsTransformer = !offloadDit
        return options
    }

    /// - Parameter size: nil for the model's own.
    func request(_ models: ModelSet, _ script: ScriptDefaults, size: Resolution? = nil) throws
        -> VideoRequest
    {
        let defaults = models.defaults
        var width = defaults.width
        var height = defaults.height
        if let size {
            (width, height) = (size.width, size.height)
        } else if let resolution {
            (width, height) = try Self.size(resolution, aspectRatio)
        }
        let isDistilled = sampler == .rcm
        var request = VideoRequest(
            prompt: prompt ?? (latents == nil ? "" : "latents of \(latents!)"), width: width,
            height: height, frames: numFrames ?? defaults.frames)
        request.negativePrompt = negativePrompt
        request.framesPerSecond = fps ?? defaults.framesPerSecond
        request.seed = seed
        request.samples = numSamples
        request.sampler = sampler
        request.steps = numSteps ?? (isDistilled ? 4 : 50)
        request.sigmaMax = sigmaMax ?? (isDistilled ? script.sigmaMax : nil)
        request.ode = ode
        request.shift = shift ?? 5
        request.guidance = guidance ?? (isDistilled ? 1 : 5)
        request.attention = attentionType ?? defaults.attention
        request.topK = slaTopk ?? defaults.topK
        request.referenceNorms = norms == .reference && !defaultNorm
        request.precision = precision
        request.linears = linears ?? (quantLinear ? .int8 : .stored)
        for (arguments, expert) in [
            (loras, nil), (highNoiseLoras, .highNoise), (lowNoiseLoras, .lowNoise),
        ] as [([LoRAArgument], RequestedLoRA.Expert?)] {
            request.loras += arguments.map {
                RequestedLoRA($0.path, strength: $0.strength, expert: expert)
            }
        }
        return request
    }

    /// Width and height as given: the request is told of sizes that no model takes, rather than another size made.
    private static func size(_ text: String, _ aspectRatio: String) throws -> (Int, Int) {
        let parts = text.lowercased().split(separator: "x").map { Int($0) }
        if parts.count == 2, let width = parts[0], let height = parts[1] { return (width, height) }
        let named = try Resolution(text, aspectRatio: aspectRatio)
        return (named.width, named.height)
    }

    /// Files that stand beside published text encoders.
    func tokenizer(besides textEncoder: String) throws -> String {
        if let tokenizerPath { return tokenizerPath }
        let folder = textEncoder.lastIndex(of: "/").map { String(textEncoder[..<$0]) } ?? "."
        let candidates = ["", "google/umt5-xxl/", "umt5-xxl/", "tokenizer/"].flatMap { place in
            ["tokenizer.json", "spiece.model", "tokenizer.model"].map { "\(folder)/\(place)\($0)" }
        }
        if let found = candidates.first(where: { FileManager.default.fileExists(atPath: $0) }) {
            return found
        }
        if textEmbedding ?? cachedEmbedding ?? latents != nil { return candidates[0] }
        throw RequestError(
            "no tokenizer beside \(textEncoder): put umT5's tokenizer.json or spiece.model there, "
                + "or name it with --tokenizer-path")
    }

    /// Every file that a run will open must be there before anything is loaded.
    func checkFiles(
        _ models: ModelSet, _ request: VideoRequest, _ options: RunOptions
    ) throws {
        var files = [models.vae]
        if options.latents == nil {
            files.append(models.transformer)
            if let low = models.lowNoiseTransformer { files.append(low) }
            files += request.loras.map(\.path)
            if options.textEmbedding == nil { files += [models.textEncoder, models.tokenizer] }
        }
        files += [options.latents, options.textEmbedding, request.image].compactMap { $0 }
        for file in files { try checkExistence(file) }
    }

    func checkExistence(_ file: String) throws {
        guard FileManager.default.fileExists(atPath: file) else {
            throw RequestError("no such file: \(file)")
        }
    }
}
