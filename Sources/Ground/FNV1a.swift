/// FNV-1a, 64 bits: quick hashes that are the same in every run, against damage and mistakes and not against attackers.
///
/// http://www.isthe.com/chongo/tech/comp/fnv/

/// A running hash.
public struct FNV1a: Sendable {
    public private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    public init() {}

    /// The hash of the text's UTF-8, byte by byte.
    public static func hash(_ text: String) -> UInt64 {
        var hash = FNV1a()
        for byte in text.utf8 { hash.add(UInt64(byte)) }
        return hash.value
    }

    /// As ``add(words:)``: not the published hash of these bytes, and eight times as fast.
    public static func hash(words bytes: UnsafeRawBufferPointer) -> UInt64 {
        var hash = FNV1a()
        hash.add(words: bytes)
        return hash.value
    }

    /// A byte, or a word where all agree on words.
    public mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x100_0000_01b3 }

    /// Takes eight bytes a step, and single ones at the end.
    public mutating func add(words bytes: UnsafeRawBufferPointer) {
        let words = bytes.count / 8
        for index in 0..<words {
            add(bytes.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self))
        }
        for byte in bytes[(8 * words)...] { add(UInt64(byte)) }
    }
}
