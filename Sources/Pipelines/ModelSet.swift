/// Which files make a model, and what they are good for.

import Checkpoints
import FoundationEssentials

/// The files of one model and its defaults.
public struct ModelSet: Sendable, Equatable, Codable {
    public var name: String
    /// The transformer, or the high-noise expert where there are two.
    public var transformer: String
    /// The expert for noise levels below the request's boundary.
    public var lowNoiseTransformer: String?
    public var textEncoder: String
    public var tokenizer: String
    public var vae: String
    public var defaults: Defaults

    public init(
        name: String, transformer: String, lowNoiseTransformer: String? = nil,
        textEncoder: String, tokenizer: String, vae: String, defaults: Defaults
    ) {
        self.name = name
        self.transformer = transformer
        self.lowNoiseTransformer = lowNoiseTransformer
        self.textEncoder = textEncoder
        self.tokenizer = tokenizer
        self.vae = vae
        self.defaults = defaults
    }

    /// What a request for this model looks like when nothing is said, and what its files do not tell.
    public struct Defaults: Sendable, Equatable, Codable {
        public var width = 832
        public var height = 480
        public var frames = 81
        public var framesPerSecond = 16
        public var sigmaMax = 80.0
        public var attention = AttentionChoice.sagesla
        public var topK = 0.1
        /// Heads of the transformer; nil: width / 128.
        public var heads: Int?
        /// Rows of the text that the transformer sees, padding included.
        public var textLength = 512
        /// nil: Wan's own statistics.
        public var latentMean: [Float]?
        public var latentStd: [Float]?
        /// What guidance leads away from where the request says nothing. The text is Wan2.1's own
        /// (wan/configs/shared_config.py): garish, overexposed, static, blurred, subtitles, and so on.
        public var negativePrompt = wanNegativePrompt
        /// The model was trained with timesteps rounded to bf16, as the published ones run.
        public var roundTimesteps = true

        public init() {}
    }
}

private let wanNegativePrompt =
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    + "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    + "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"

/// A model that cannot be found or read.
public struct ModelSetError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
}

extension ModelSet {
    /// A folder with `config.json` and the files it stands for, or the name of one in a `Models` folder
    /// beside the working directory, the executable or its parents.
    public static func open(_ nameOrPath: String, executable: String?) throws(ModelSetError)
        -> ModelSet
    {
        let manager = FileManager.default
        var folders = [nameOrPath, "Models/\(nameOrPath)"]
        if let executable {
            var folder = executable.parentFolder
            for _ in 0..<5 where folder != "/" {
                folders.append("\(folder)/Models/\(nameOrPath)")
                folder = folder.parentFolder
            }
        }
        guard let folder = folders.first(where: { manager.fileExists(atPath: $0 + "/config.json") })
        else {
            throw ModelSetError(
                description: "no model '\(nameOrPath)': expected a folder with a config.json "
                    + "(looked in \(folders.joined(separator: ", ")))")
        }
        return try ModelSet(folder: folder)
    }

    /// Reads `folder/config.json`.
    public init(folder: String) throws(ModelSetError) {
        let path = folder + "/config.json"
        let config: ConfigFile
        do {
            guard let data = FileManager.default.contents(atPath: path) else {
                throw ModelSetError(description: "cannot read \(path)")
            }
            config = try JSONDecoder().decode(ConfigFile.self, from: data)
        } catch let error as ModelSetError {
            throw error
        } catch {
            throw ModelSetError(description: "\(path) is not a model configuration: \(error)")
        }
        func file(_ role: String, _ candidates: [String]) throws(ModelSetError) -> String {
            for name in candidates
            where FileManager.default.fileExists(atPath: "\(folder)/\(name)") {
                return "\(folder)/\(name)"
            }
            throw ModelSetError(
                description:
                    "\(folder) has no \(role): expected \(candidates.joined(separator: " or "))")
        }
        let files = config.files
        var defaults = Defaults()
        defaults.width = config.width ?? defaults.width
        defaults.height = config.height ?? defaults.height
        defaults.frames = config.num_frames ?? defaults.frames
        defaults.framesPerSecond = config.fps ?? defaults.framesPerSecond
        defaults.sigmaMax = config.sampler?.sigma_max ?? defaults.sigmaMax
        defaults.roundTimesteps = config.sampler?.round_timesteps ?? defaults.roundTimesteps
        defaults.topK = config.sla?.topk ?? defaults.topK
        defaults.attention = config.sla == nil ? .original : .sla
        defaults.heads = config.model?.dit?.num_heads
        defaults.textLength = config.text_len ?? defaults.textLength
        defaults.negativePrompt = config.negative_prompt ?? defaults.negativePrompt
        defaults.latentMean = config.latent_mean
        defaults.latentStd = config.latent_std
        for (key, values) in [
            ("latent_mean", config.latent_mean), ("latent_std", config.latent_std),
        ] {
            guard let values, values.count != 16 else { continue }
            throw ModelSetError(
                description: "\(path): '\(key)' has \(values.count) numbers, expected 16")
        }
        self.init(
            name: config.name ?? folder,
            transformer: try file(
                "transformer",
                files?.transformer.map { [$0] } ?? [
                    "student_sla_quant.pth", "student_sla.safetensors", "transformer.safetensors",
                    "transformer.pth",
                ]),
            lowNoiseTransformer: try files?.low_noise_transformer.map {
                name throws(ModelSetError) in
                try file("low-noise transformer", [name])
            },
            textEncoder: try file(
                "text encoder",
                files?.text_encoder.map { [$0] } ?? [
                    "text_encoder.safetensors", "text_encoder.pth",
                ]),
            tokenizer: try file(
                "tokenizer",
                files?.tokenizer.map { [$0] } ?? [
                    "tokenizer.model", "spiece.model", "tokenizer.json",
                ]),
            vae: try file("VAE", files?.vae.map { [$0] } ?? ["vae.safetensors", "vae.pth"]),
            defaults: defaults)
    }
}

extension ModelSet {
    /// Told by the headers of the files, before gigabytes are read: two experts must be of one model.
    public func checkExperts() throws {
        guard let low = lowNoiseTransformer else { return }
        func sizes(_ role: ModelRole, _ path: String) throws -> WanTransformerArchitecture {
            let found = DetectedModel(try checkpoint(role), heads: defaults.heads)
            guard case .wanTransformer(let sizes) = found else {
                throw RequestError("\(path) is not a Wan transformer")
            }
            return sizes
        }
        let (first, second) = (
            try sizes(.transformer, transformer), try sizes(.lowNoiseTransformer, low)
        )
        guard first.dim == second.dim, first.layers == second.layers,
            first.inputChannels == second.inputChannels
        else {
            throw RequestError(
                "\(transformer) and \(low) are not two experts of one model: "
                    + "\(first.title), \(first.layers) layers of width \(first.dim), and "
                    + "\(second.title), \(second.layers) of \(second.dim)")
        }
    }
}

/// `config.json` as written with the built-in model; unknown keys are ignored.
private struct ConfigFile: Decodable {
    struct Files: Decodable {
        var transformer, low_noise_transformer, text_encoder, tokenizer, vae: String?
    }
    struct Sampler: Decodable {
        var sigma_max: Double?
        var round_timesteps: Bool?
    }
    struct SLA: Decodable { var topk: Double? }
    struct Model: Decodable {
        struct Transformer: Decodable { var num_heads: Int? }
        var dit: Transformer?
    }
    var name, negative_prompt: String?
    var model: Model?
    var files: Files?
    var text_len: Int?
    var latent_mean, latent_std: [Float]?
    var fps, num_frames, width, height: Int?
    var sampler: Sampler?
    var sla: SLA?
}

extension String {
    /// The path without its last component: `/a/b` → `/a`, `b` → `.`.
    var parentFolder: String {
        guard let slash = lastIndex(of: "/") else { return "." }
        return slash == startIndex ? "/" : String(self[..<slash])
    }
}
