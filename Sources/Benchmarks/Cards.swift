/// Cards by name, with what their makers say of them.

/// One kind of NVIDIA card. Rates are those of its data sheet, without sparsity; bf16 with sums in f32.
public struct Card: Sendable, Hashable, Codable {
    public let name: String
    /// Of device memory, in GiB.
    public let memory: Int
    /// In a second: multiplications and additions.
    public let bf16, int8: Double
    /// Bytes in a second of device memory.
    public let bandwidth: Double
    /// Has the kernels that were measured; others run those of mma.sync.
    public let isHopper: Bool

    init(
        _ name: String, _ memory: Int, bf16: Double, int8: Double, bandwidth: Double,
        isHopper: Bool = false
    ) {
        self.name = name
        self.memory = memory
        self.bf16 = bf16 * 1e12
        self.int8 = int8 * 1e12
        self.bandwidth = bandwidth * 1e9
        self.isHopper = isHopper
    }

    /// What of the memory a run can have: the driver and the context take the rest.
    public var usableMemory: Int { (memory << 30) / 100 * 95 - (512 << 20) }

    /// "rtx-4090"
    public var shortName: String { name.lowercased().split(separator: " ").joined(separator: "-") }

    public static let known = [
        Card("H200", 141 * 1000 / 1074, bf16: 989, int8: 1979, bandwidth: 4800, isHopper: true),
        Card("H100", 80, bf16: 989, int8: 1979, bandwidth: 3350, isHopper: true),
        Card("A100 80GB", 80, bf16: 312, int8: 624, bandwidth: 2039),
        Card("L40S", 48, bf16: 362, int8: 733, bandwidth: 864),
        Card("RTX 5090", 32, bf16: 209, int8: 838, bandwidth: 1792),
        Card("RTX 4090", 24, bf16: 165, int8: 660, bandwidth: 1008),
        Card("RTX 3090", 24, bf16: 71, int8: 284, bandwidth: 936),
        Card("RTX 4080", 16, bf16: 97, int8: 390, bandwidth: 717),
        Card("RTX 4070", 12, bf16: 58, int8: 233, bandwidth: 504),
        Card("RTX 3060", 12, bf16: 25, int8: 102, bandwidth: 360),
    ]

    /// The card of a name as people or drivers say it: "4090", "rtx-4090", "NVIDIA GeForce RTX 4090". Others of the same
    /// number are not it: "4070 Ti".
    public static func named(_ name: String) -> Card? {
        func words(_ text: String) -> Set<String> {
            Set(
                text.lowercased().split { !$0.isLetter && !$0.isNumber }.map(String.init)
                    .filter { word in
                        !["nvidia", "geforce", "rtx", "pcie", "gpu"].contains(word)
                            && !["sxm", "hbm"].contains { word.hasPrefix($0) }
                            && !word.hasSuffix("gb")
                    })
        }
        let asked = words(name)
        return known.first { words($0.name) == asked }
    }
}
