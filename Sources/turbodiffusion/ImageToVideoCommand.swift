/// `turbodiffusion i2v`: a picture and a sentence → a video.

import ArgumentParser
import Families

struct ImageToVideoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "i2v",
        abstract: "Make a video from a picture and text.",
        discussion: """
            Takes the options of TurboDiffusion's wan2.2_i2v_infer.py under the same names. Either --model names a \
            folder with a config.json, or each checkpoint is named.

            Examples:
              turbodiffusion i2v --image_path cat.jpg --prompt "The cat blinks." --adaptive_resolution
              turbodiffusion i2v --image_path cat.jpg "The cat blinks." --dry_run
            """)

    @OptionGroup(title: "What to make") var picture: Picture
    @OptionGroup var options: GenerationOptions
    @OptionGroup(title: "Model") var files: Files

    struct Picture: ParsableArguments {
        @Option(help: "The picture that the video starts with.", completion: .file())
        var imagePath: String?
        @Flag(help: "Use the picture's aspect ratio, with the area of the named resolution.")
        var adaptiveResolution = false
    }

    struct Files: ParsableArguments {
        @Option(help: "The high-noise expert.", completion: .file())
        var highNoiseModelPath: String?
        @Option(help: "The low-noise expert.", completion: .file())
        var lowNoiseModelPath: String?
        @Option(help: "Noise level below which the low-noise expert takes over (default 0.9).")
        var boundary: Double?
        @Flag(help: "Keep the model loaded and ask for one prompt after the other: 'interactive'.")
        var serve = false
    }

    func run() async throws {
        if files.serve { try await generation.converse() } else { try await generation.carryOut() }
    }

    var generation: Generation {
        Generation(
            options: options, conditioning: .firstFrame, transformer: files.highNoiseModelPath,
            lowNoiseTransformer: files.lowNoiseModelPath, boundary: files.boundary,
            image: picture.imagePath, adaptsToImage: picture.adaptiveResolution)
    }
}
