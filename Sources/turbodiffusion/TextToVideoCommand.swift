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

            Examples:
              turbodiffusion t2v "A big shiny violet ball bounces on a green lawn." --seed 7
              turbodiffusion t2v --from output/generated_video.mp4 --seed random
              turbodiffusion t2v --model Wan2.1-14B --resolution 720p --dry_run
            """)

    @OptionGroup var options: GenerationOptions
    @OptionGroup(title: "Model") var files: Files

    /// Those that only this command has.
    struct Files: ParsableArguments {
        @Option(help: "The transformer's checkpoint.", completion: .file())
        var ditPath: String?
        @Option(help: "The low-noise expert of a model with two.", completion: .file())
        var lowNoiseModelPath: String?
        @Option(help: "Noise level below which the low-noise expert takes over (default 0.875).")
        var boundary: Double?
        @Flag(help: "Has no effect; accepted so that the original's command lines work.")
        var compile = false
        @Flag(help: "Keep the model loaded and ask for one prompt after the other: 'interactive'.")
        var serve = false
    }

    func run() async throws {
        if files.serve { try await generation.converse() } else { try await generation.carryOut() }
    }

    var generation: Generation {
        Generation(
            options: options, conditioning: .none, transformer: files.ditPath,
            lowNoiseTransformer: files.lowNoiseModelPath, boundary: files.boundary)
    }
}
