/// CRC-32 (ISO 3309), the checksum of zip archives and PNG files.

/// A running checksum: polynomial 0xEDB88320 (reflected), computed eight bytes at a time.
public struct CRC32 {
    /// [8 * 256]: entry `level * 256 + byte` is the checksum of `byte` followed by `level` zeros.
    private static let table: [UInt32] = {
        var table: [UInt32] = []
        for byte: UInt32 in 0..<256 {
            var value = byte
            for _ in 0..<8 { value = value & 1 == 1 ? value >> 1 ^ 0xEDB8_8320 : value >> 1 }
            table.append(value)
        }
        for index in 256..<8 * 256 {
            let previous = table[index - 256]
            table.append(previous >> 8 ^ table[Int(previous & 0xFF)])
        }
        return table
    }()

    private var state: UInt32 = ~0
    public var value: UInt32 { ~state }

    public init() {}

    /// The checksum of all `bytes`.
    public static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        var crc = CRC32()
        crc.update(bytes)
        return crc.value
    }

    /// Adds bytes to the checksum.
    public mutating func update(_ bytes: UnsafeRawBufferPointer) {
        Self.table.withUnsafeBufferPointer { table in
            var position = 0
            var crc = state
            while position + 8 <= bytes.count {
                let word =
                    bytes.loadUnaligned(fromByteOffset: position, as: UInt64.self) ^ UInt64(crc)
                crc =
                    table[7 << 8 | Int(word & 0xFF)] ^ table[6 << 8 | Int(word >> 8 & 0xFF)]
                    ^ table[5 << 8 | Int(word >> 16 & 0xFF)]
                    ^ table[4 << 8 | Int(word >> 24 & 0xFF)]
                    ^ table[3 << 8 | Int(word >> 32 & 0xFF)]
                    ^ table[2 << 8 | Int(word >> 40 & 0xFF)]
                    ^ table[1 << 8 | Int(word >> 48 & 0xFF)] ^ table[Int(word >> 56)]
                position += 8
            }
            while position < bytes.count {
                crc = crc >> 8 ^ table[Int((crc ^ UInt32(bytes[position])) & 0xFF)]
                position += 1
            }
            state = crc
        }
    }
}
