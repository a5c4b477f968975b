// What is compiled together: one file with its definitions and the kernels it instantiates.

/// One translation unit. An operation's file declares its units as `static let`s and the list in
/// KernelCatalog.swift names them; a unit is compiled whole when its first kernel is asked for, so
/// split a file's instantiations over several units where a run needs only some of them, and to let
/// them compile in parallel.
///
///     static let unit = KernelUnit("gelu.cu", kernels: ["gelu<bf16>", "gelu<float>"])
public final class KernelUnit: Sendable {
    /// The file's name in Kernels/.
    public let file: String
    public let family: KernelFamily
    /// Preprocessor definitions, `NAME=VALUE`.
    public let definitions: [String]
    /// C++ name expressions, as NVRTC's nvrtcAddNameExpression takes them: `gemm<128, true>`.
    public let kernels: [String]

    public init(
        _ file: String, for family: KernelFamily = .any, definitions: [String] = [],
        kernels: [String]
    ) {
        self.file = file
        self.family = family
        self.definitions = definitions
        self.kernels = kernels
    }
}
