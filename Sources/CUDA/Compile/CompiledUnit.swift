// Machine code of a unit with what is known about its kernels, and its form in files.

/// A compiled unit.
struct CompiledUnit: Hashable, Sendable {
    struct Kernel: Hashable, Sendable {
        /// The name expression: `gelu<bf16>`.
        var name: String
        /// The mangled name in the cubin.
        var lowered: String
        var registers = 0
        /// Bytes a thread keeps in local memory: arrays that are indexed, and spilled registers.
        var localBytes = 0
        /// Bytes of spilled registers, stored and loaded.
        var spillBytes = 0
        var sharedBytes = 0
    }

    var kernels: [Kernel]
    var cubin: [UInt8]

    /// Kernels that keep registers in memory.
    var spilling: [Kernel] { kernels.filter { $0.localBytes > 0 || $0.spillBytes > 0 } }

    // A text header, one line a kernel, then the cubin.
    private static let magic = "turbodiffusion kernels 1"

    func serialized() -> [UInt8] {
        var header = "\(Self.magic)\n\(kernels.count) \(cubin.count)\n"
        for kernel in kernels {
            header += "\(kernel.registers) \(kernel.localBytes) \(kernel.spillBytes) "
            header += "\(kernel.sharedBytes)\t\(kernel.lowered)\t\(kernel.name)\n"
        }
        return Array(header.utf8) + cubin
    }

    /// nil where the bytes are not a whole unit.
    init?(serialized bytes: some Collection<UInt8>) {
        var rest = bytes[...]
        func line() -> String? {
            guard let end = rest.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
            defer { rest = rest[rest.index(after: end)...] }
            return String(decoding: rest[..<end], as: UTF8.self)
        }
        guard line() == Self.magic,
            let counts = line()?.split(separator: " ").compactMap({ Int($0) }), counts.count == 2
        else { return nil }
        var kernels: [Kernel] = []
        for _ in 0..<max(counts[0], 0) {
            guard let fields = line()?.split(separator: "\t"), fields.count == 3 else { return nil }
            let numbers = fields[0].split(separator: " ").compactMap { Int($0) }
            guard numbers.count == 4 else { return nil }
            kernels.append(
                Kernel(
                    name: String(fields[2]), lowered: String(fields[1]), registers: numbers[0],
                    localBytes: numbers[1], spillBytes: numbers[2], sharedBytes: numbers[3]))
        }
        guard rest.count == counts[1], !rest.isEmpty else { return nil }
        self.init(kernels: kernels, cubin: Array(rest))
    }

    init(kernels: [Kernel], cubin: [UInt8]) {
        self.kernels = kernels
        self.cubin = cubin
    }
}
