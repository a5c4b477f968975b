// Translation units: one file, with definitions and the kernels to instantiate.

/// One translation unit. The file of an operation declares its units, and KernelCatalog.swift lists them all. A unit is
/// compiled as a whole when its first kernel is needed. So divide the instantiations of a file into several units if a
/// run needs only some of them, or to compile them in parallel.
///
///     static let unit = KernelUnit("gelu.cu", kernels: ["gelu<bf16>", "gelu<float>"])
public final class KernelUnit: Sendable {
    /// The name of the file in Kernels/.
    public let file: String
    public let family: KernelFamily
    /// Preprocessor definitions, `NAME=VALUE`.
    public let definitions: [String]
    /// C++ name expressions for nvrtcAddNameExpression: `gemm<128, true>`.
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
