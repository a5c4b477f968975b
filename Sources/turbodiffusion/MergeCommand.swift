/// `turbodiffusion merge`: base + w · (target − diff base).

import ArgumentParser
import Checkpoints

struct MergeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge",
        abstract: "Add the difference of two checkpoints to a third.",
        discussion: """
            result = base + w (diff_target - diff_base), in f32, stored in the type of the base. \
            Tensors that only the base has are kept; those that only the target has are added. \
            The options are those of the original's merge_models.py.

            Example:
              turbodiffusion merge --base tuned.pth --diff-base Wan.pth --diff-target Turbo.pth \\
                  --output out.pth
            """)

    @Option(help: "The checkpoint that is changed.", completion: .file())
    var base: String

    @Option(help: "What the target was trained from.", completion: .file())
    var diffBase: String

    @Option(help: "The checkpoint whose training is added.", completion: .file())
    var diffTarget: String

    @Option(help: "Factor of the difference.")
    var w: Float = 1

    @Option(help: "The result: .safetensors or .pth.", completion: .file())
    var output: String

    @OptionGroup var writing: CheckpointOutput

    func validate() throws {
        if !w.isFinite { throw ValidationError("--w must be a number.") }
    }

    func run() async throws {
        try writing.check(output)
        let result = try merged(
            base: try writing.source(base), target: try writing.source(diffTarget),
            diffBase: try writing.source(diffBase), weight: w)
        try writing.write(result.checkpoint, to: output)
        writing.note("\(output): \(result.merged) tensors merged")
        writing.list("kept from the base", result.keptFromBase)
        writing.list("added from the target", result.takenFromTarget)
    }
}
