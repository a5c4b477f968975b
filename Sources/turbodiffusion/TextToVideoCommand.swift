/// `turbodiffusion t2v`: a sentence → a video.

import ArgumentParser
import Pipelines

struct TextToVideoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "t2v",
        abstract: "Make a video from text.",
        discussion: """
            Takes the options of TurboDiffusion's wan2.1_t2v_infer.py under the same names. Without --model and \
            --dit_path the small built-in model is used.
            """)

    @Option(help: "The transformer's checkpoint.", completion: .file())
    var ditPath: String?
    @Option(help: "The expert for low noise, of a model with two.", completion: .file())
    var lowNoiseModelPath: String?
    @Option(help: "Noise level below which the low-noise expert takes over.")
    var boundary = 0.875
    @Flag(help: "Accepted for the original's command lines; nothing needs compiling here.")
    var compile = false
    @OptionGroup var options: GenerationOptions

    func run() async throws {
        if let path = options.from {
            return try await Generation.repeating(path, options).run()
        }
        let models = try modelSet()
        let script = GenerationOptions.ScriptDefaults(
            resolution: "480p", sigmaMax: models.defaults.sigmaMax)
        var request = try options.request(models, script)
        request.boundary = boundary
        let runOptions = try options.runOptions()
        try options.checkFiles(models, request, runOptions)
        try await Generation(
            models: models, request: request, runOptions: runOptions, options: options
        ).run()
    }

    private func modelSet() throws -> ModelSet {
        let isPublished = options.model?.hasPrefix("Wan2.") ?? (ditPath != nil)
        if isPublished {
            guard let ditPath else {
                throw RequestError(
                    "--model \(options.model ?? "") needs its transformer: --dit_path FILE")
            }
            try options.checkExistence(ditPath)
            let textEncoder =
                options.textEncoderPath ?? "checkpoints/models_t5_umt5-xxl-enc-bf16.pth"
            return ModelSet(
                name: options.model ?? "Wan2.1-1.3B", transformer: ditPath,
                lowNoiseTransformer: lowNoiseModelPath, textEncoder: textEncoder,
                tokenizer: try options.tokenizer(besides: textEncoder),
                vae: options.vaePath ?? "checkpoints/Wan2.1_VAE.pth", defaults: .init())
        }
        var models = try ModelSet.open(
            options.model ?? "nano", executable: CommandLine.arguments.first.map(resolved))
        if let ditPath { models.transformer = ditPath }
        if let low = lowNoiseModelPath { models.lowNoiseTransformer = low }
        if let path = options.textEncoderPath { models.textEncoder = path }
        if let path = options.tokenizerPath { models.tokenizer = path }
        if let path = options.vaePath { models.vae = path }
        return models
    }
}
