/// `turbodiffusion convert`: the same weights in another file format, under other names or in
/// another type.

import ArgumentParser
import Checkpoints
import Tensors

struct ConvertCommand: AsyncParsableCommand {
    enum Names: String, ExpressibleByArgument, CaseIterable {
        case original, diffusers, comfyui
    }

    enum ElementType: String, ExpressibleByArgument, CaseIterable {
        case f32, f16, bf16

        var dtype: DType {
            switch self {
            case .f32: .f32
            case .f16: .f16
            case .bf16: .bf16
            }
        }
    }

    static let configuration = CommandConfiguration(
        commandName: "convert",
        abstract: "Rewrite a checkpoint in another format, under other names or in another type.",
        discussion: """
            Prefixes such as 'net.' or 'model.diffusion_model.' are removed. Without \
            options, names and types stay as they are.

            Example:
              turbodiffusion convert model.gguf model.safetensors --dtype bf16
            """)

    @Argument(
        help: "A checkpoint of any kind, or a folder or index of shards.", completion: .file())
    var input: String

    @Argument(help: "The result: .safetensors or .pth.", completion: .file())
    var output: String

    @Option(help: "Whose names to use: original, diffusers or comfyui.")
    var names: Names?

    @Option(help: "Store floating-point tensors as f32, f16 or bf16.")
    var dtype: ElementType?

    @Flag(
        help:
            "Turn quantised weights back into plain ones (bf16, or what --dtype says)."
    )
    var dequantize = false

    @Flag(
        name: [.customLong("add-proj-l"), .customLong("add-sla")],
        help: "Add proj_l, all zeros, so that a plain checkpoint can run sparse-linear attention.")
    var addProjL = false

    @Option(help: "Number of attention heads, for a transformer whose head width is not 128.")
    var numHeads: Int?

    @OptionGroup var writing: CheckpointOutput

    func validate() throws {
        if let numHeads, numHeads < 1 { throw ValidationError("--num-heads must be positive.") }
        if numHeads != nil, !addProjL {
            throw ValidationError(
                "--num-heads tells the width of proj_l: leave it out, or give --add-sla, too.")
        }
    }

    func run() async throws {
        try writing.check(output)
        var conversion = Conversion()
        conversion.layout = names.flatMap { KeyLayout(rawValue: $0.rawValue) }
        conversion.dtype = dtype?.dtype
        conversion.dequantizes = dequantize
        conversion.addsSparseLinear = addProjL
        conversion.heads = numHeads
        // Blocks hold numbers that a narrow type does not: converting tells, decoding to it would not.
        let source = try writing.source(input, blocksAs: dtype == nil ? .bf16 : .f32)
        let result = try converted(source, conversion)
        try writing.write(result, to: output)
        let added = result.names.count - source.names.count
        writing.note(
            "\(output): \(result.names.count) tensors" + (added > 0 ? ", \(added) of them new" : "")
        )
    }
}
