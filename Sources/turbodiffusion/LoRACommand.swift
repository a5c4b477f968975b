/// `turbodiffusion lora`: adaptations merged into a checkpoint.

import ArgumentParser
import Checkpoints

struct LoRACommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lora",
        abstract: "Merge LoRA files into a checkpoint.",
        discussion: """
            Understands LoRA, DoRA, LoHa and LoKr, and full weight differences, under the names of \
            kohya, musubi-tuner, LyCORIS, ComfyUI, diffusers and PEFT. Quantised layers are \
            dequantised, changed and quantised again. Unused keys are listed; a change of an \
            unknown kind is refused.

            Example:
              turbodiffusion lora model.safetensors styled.safetensors --lora style.safetensors:0.8
            """)

    @Argument(help: "The checkpoint to change.", completion: .file())
    var input: String

    @Argument(help: "The result: .safetensors or .pth.", completion: .file())
    var output: String

    @Option(
        name: .customLong("lora"),
        help: "A LoRA file, with its strength after a colon: style.safetensors:0.8. Repeatable.",
        completion: .file())
    var loras: [LoRAArgument]

    @Flag(help: "Fail if a LoRA has unused keys.")
    var strict = false

    @OptionGroup var writing: CheckpointOutput

    func run() async throws {
        try writing.check(output)
        let base = try writing.source(input)
        let result = try adapted(
            base, by: try loras.map { try LoRA(path: $0.path, strength: $0.strength) })
        if strict, !result.unmatched.isEmpty {
            throw ValidationError(
                "\(result.unmatched.count) keys are not used in \(input): "
                    + result.unmatched.prefix(5).joined(separator: ", "))
        }
        try writing.write(result.checkpoint, to: output)
        writing.note("\(output): \(result.changed.count) tensors changed")
        for note in result.notes { writing.note(note) }
        writing.list("keys that are not used", result.unmatched)
    }
}
