/// `turbodiffusion i2v`: a picture and a sentence → a video.

import ArgumentParser
import Media
import Pipelines

struct ImageToVideoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "i2v",
        abstract: "Make a video from a picture and text.",
        discussion: """
            Takes the options of TurboDiffusion's wan2.2_i2v_infer.py under the same names. --model names a folder \
            with a config.json, or the checkpoints are named one by one.
            """)

    @Option(help: "The picture that the video starts with.", completion: .file())
    var imagePath: String?
    @Option(help: "The expert for high noise.", completion: .file())
    var highNoiseModelPath: String?
    @Option(help: "The expert for low noise.", completion: .file())
    var lowNoiseModelPath: String?
    @Option(help: "Noise level below which the low-noise expert takes over.")
    var boundary = 0.9
    @Flag(help: "Take the picture's aspect ratio and the area of the named resolution.")
    var adaptiveResolution = false
    @OptionGroup var options: GenerationOptions

    func run() async throws {
        if let path = options.from {
            return try await Generation.repeating(path, options).run()
        }
        let runOptions = try options.runOptions()
        guard let imagePath else {
            throw RequestError(
                "--image_path FILE is needed: the picture that the video starts with")
        }
        let models = try modelSet()
        try options.checkExistence(imagePath)
        let script = GenerationOptions.ScriptDefaults(resolution: "720p", sigmaMax: 200)
        var request = try options.request(models, script, size: try await size(imagePath))
        request.image = imagePath
        request.boundary = boundary
        // As Wan's own generate.py has it for small videos.
        if options.shift == nil, request.width * request.height <= 832 * 480 { request.shift = 3 }
        try options.checkFiles(models, request, runOptions)
        try await Generation(
            models: models, request: request, runOptions: runOptions, options: options
        ).run()
    }

    /// nil: the size that was given in pixels.
    private func size(_ image: String) async throws -> Resolution? {
        let name = options.resolution ?? "720p"
        if !adaptiveResolution, name.lowercased().contains("x") { return nil }
        let base = try Resolution(name, aspectRatio: options.aspectRatio)
        guard adaptiveResolution else { return base }
        let picture = try await readImage(path: image)
        return try base.adapted(toImageWidth: picture.width, height: picture.height)
    }

    private func modelSet() throws -> ModelSet {
        if let model = options.model, !model.hasPrefix("Wan2.") {
            var models = try ModelSet.open(
                model, executable: CommandLine.arguments.first.map(resolved))
            if let path = highNoiseModelPath { models.transformer = path }
            if let path = lowNoiseModelPath { models.lowNoiseTransformer = path }
            return models
        }
        guard let high = highNoiseModelPath, let low = lowNoiseModelPath else {
            throw RequestError(
                "both experts are needed: --high_noise_model_path FILE --low_noise_model_path FILE")
        }
        for file in [high, low] { try options.checkExistence(file) }
        let textEncoder = options.textEncoderPath ?? "checkpoints/models_t5_umt5-xxl-enc-bf16.pth"
        var defaults = ModelSet.Defaults()
        defaults.sigmaMax = 200
        return ModelSet(
            name: options.model ?? "Wan2.2-A14B", transformer: high, lowNoiseTransformer: low,
            textEncoder: textEncoder, tokenizer: try options.tokenizer(besides: textEncoder),
            vae: options.vaePath ?? "checkpoints/Wan2.1_VAE.pth", defaults: defaults)
    }
}
