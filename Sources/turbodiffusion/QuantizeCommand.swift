/// `turbodiffusion quantize`: a plain checkpoint → an 8-bit one.

import ArgumentParser
import Checkpoints
import Tensors

struct QuantizeCommand: AsyncParsableCommand {
    enum Format: String, ExpressibleByArgument, CaseIterable {
        case int8, fp8
    }

    static let configuration = CommandConfiguration(
        commandName: "quantize",
        abstract: "Quantise the linear layers of a transformer or of a text encoder.",
        discussion: """
            Every linear layer in the blocks is quantised, except proj_l. int8 uses blocks of \
            128x128 and is, byte for byte, what modify_model.py --quant_linear makes; fp8 (e4m3) \
            has one scale per row. A text encoder then takes half the time to load and half the \
            memory: give the file to --text_encoder_path.

            --center-text loses less in int8, at no cost: the origin of the embedded text moves to \
            the row of its padding, which then is zero and exact, and the biases of cross attention's \
            keys and values make up for it. The file keeps its layout, so that other programs read it.

            Example:
              turbodiffusion quantize Wan2.1_T2V.pth quant.safetensors
            """)

    @Argument(help: "A plain checkpoint.", completion: .file())
    var input: String

    @Argument(help: "The result: .safetensors or .pth.", completion: .file())
    var output: String

    @Option(help: "int8 or fp8.")
    var format = Format.int8

    @Flag(help: "Move the origin of the embedded text to its padding.")
    var centerText = false

    @OptionGroup var writing: CheckpointOutput

    func run() async throws {
        try writing.check(output)
        let base = try inOriginalNames(try writing.source(input))
        let result = try quantized(
            base, to: format == .int8 ? .int8Blocks : .fp8Rows, centresText: centerText)
        try writing.write(result.checkpoint, to: output)
        writing.note("\(output): \(result.layers.count) layers in \(format.rawValue)")
        writing.list("left as they are (width not a multiple of 128)", result.skipped)
    }
}
