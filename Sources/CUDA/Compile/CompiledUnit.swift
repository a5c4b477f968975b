// The machine code of a unit, with facts about its kernels, and its file format.

internal import Ground

/// A compiled unit.
struct CompiledUnit: Hashable, Sendable {
    struct Kernel: Hashable, Sendable {
        /// The name expression: `gelu<bf16>`.
        var name: String
        /// The mangled name in the cubin.
        var lowered: String
        var registers = 0
        /// Bytes of local memory per thread: indexed arrays and spilled registers.
        var localBytes = 0
        /// Bytes of spills, stores and loads together.
        var spillBytes = 0
        var sharedBytes = 0
    }

    var kernels: [Kernel]
    var cubin: [UInt8]
    /// The version of the NVRTC that compiled it.
    var compiler: CompilerVersion

    /// Kernels that keep more than `toleratedBytes` in local memory.
    var spilling: [Kernel] { kernels.filter { $0.localBytes > Self.toleratedBytes } }
    /// Bytes of local memory that do not matter: a few values, spilled before a loop and reloaded after it.
    static let toleratedBytes = 16

    // File format: two lines of text, one line per kernel, then the cubin. The second line contains the number of
    // kernels, the bytes of the cubin, the compiler's version, and a checksum of everything that follows.
    private static let magic = "turbodiffusion kernels 2"

    func serialized() -> [UInt8] {
        var body = kernels.map { kernel in
            "\(kernel.registers) \(kernel.localBytes) \(kernel.spillBytes) \(kernel.sharedBytes)\t"
                + "\(kernel.lowered)\t\(kernel.name)\n"
        }.joined().utf8.map { $0 }
        body += cubin
        let sum = body.withUnsafeBytes { FNV1a.hash(words: $0) }
        let header = "\(kernels.count) \(cubin.count) \(compiler.major) \(compiler.minor) \(sum)"
        return Array("\(Self.magic)\n\(header)\n".utf8) + body
    }

    /// nil if the bytes are not a complete, undamaged unit.
    init?(serialized bytes: UnsafeRawBufferPointer) {
        var rest = bytes[...]
        func line() -> String? {
            guard let end = rest.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
            defer { rest = rest[(end + 1)...] }
            return String(decoding: rest[..<end], as: UTF8.self)
        }
        guard line() == Self.magic, let words = line()?.split(separator: " "), words.count == 5,
            let count = Int(words[0]), let byteCount = Int(words[1]), let major = Int(words[2]),
            let minor = Int(words[3]),
            UInt64(words[4]) == FNV1a.hash(words: UnsafeRawBufferPointer(rebasing: rest))
        else { return nil }
        var kernels: [Kernel] = []
        for _ in 0..<max(count, 0) {
            guard let fields = line()?.split(separator: "\t"), fields.count == 3 else { return nil }
            let numbers = fields[0].split(separator: " ").compactMap { Int($0) }
            guard numbers.count == 4 else { return nil }
            kernels.append(
                Kernel(
                    name: String(fields[2]), lowered: String(fields[1]), registers: numbers[0],
                    localBytes: numbers[1], spillBytes: numbers[2], sharedBytes: numbers[3]))
        }
        guard rest.count == byteCount, !rest.isEmpty else { return nil }
        self.init(
            kernels: kernels, cubin: Array(rest),
            compiler: CompilerVersion(major: major, minor: minor))
    }

    init(kernels: [Kernel], cubin: [UInt8], compiler: CompilerVersion) {
        self.kernels = kernels
        self.cubin = cubin
        self.compiler = compiler
    }
}

/// A version of NVRTC: 13.0.
public struct CompilerVersion: Hashable, Sendable, CustomStringConvertible {
    public let major, minor: Int
    public var description: String { "\(major).\(minor)" }
}
