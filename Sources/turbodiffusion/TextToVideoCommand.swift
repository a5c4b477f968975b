/// `turbodiffusion t2v`: a sentence → a video.

import ArgumentParser
import Families

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
    @Option(help: "The low-noise expert of a model with two.", completion: .file())
    var lowNoiseModelPath: String?
    @Option(help: "Noise level below which the low-noise expert takes over (default 0.875).")
    var boundary: Double?
    @Flag(help: "Has no effect; accepted so that the original's command lines work.")
    var compile = false
    @OptionGroup var options: GenerationOptions

    func run() async throws { try await generation.carryOut() }

    var generation: Generation {
        Generation(
            options: options, conditioning: .none, transformer: ditPath,
            lowNoiseTransformer: lowNoiseModelPath, boundary: boundary)
    }
}
