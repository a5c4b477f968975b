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
            """)

    @Option(help: "The picture that the video starts with.", completion: .file())
    var imagePath: String?
    @Option(help: "The high-noise expert.", completion: .file())
    var highNoiseModelPath: String?
    @Option(help: "The low-noise expert.", completion: .file())
    var lowNoiseModelPath: String?
    @Option(help: "Noise level below which the low-noise expert takes over (default 0.9).")
    var boundary: Double?
    @Flag(help: "Use the picture's aspect ratio, with the area of the named resolution.")
    var adaptiveResolution = false
    @OptionGroup var options: GenerationOptions

    func run() async throws { try await generation.carryOut() }

    var generation: Generation {
        Generation(
            options: options, conditioning: .firstFrame, transformer: highNoiseModelPath,
            lowNoiseTransformer: lowNoiseModelPath, boundary: boundary, image: imagePath,
            adaptsToImage: adaptiveResolution)
    }
}
