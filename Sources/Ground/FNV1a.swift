/// FNV-1a with 64 bits: quick hashes that are the same in every run. They detect damage and mistakes, not attacks.
///
/// http://www.isthe.com/chongo/tech/comp/fnv/

/// A running hash.
public struct FNV1a: Sendable {
    public private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    public init() {}

    /// The hash of the UTF-8 bytes of a text.
    public static func hash(_ text: String) -> UInt64 {
        var hash = FNV1a()
        for byte in text.utf8 { hash.add(UInt64(byte)) }
        return hash.value
    }

    /// The hash by ``add(words:)``, which differs from the published hash of these bytes and is eight times as fast.
    public static func hash(words bytes: UnsafeRawBufferPointer) -> UInt64 {
        var hash = FNV1a()
        hash.add(words: bytes)
        return hash.value
    }

    /// Adds a byte, or a word where words are hashed instead of bytes.
    public mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x100_0000_01b3 }

    /// Adds words of eight bytes, and single bytes at the end.
    public mutating func add(words bytes: UnsafeRawBufferPointer) {
        let words = bytes.count / 8
        for index in 0..<words {
            add(bytes.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self))
        }
        for byte in bytes[(8 * words)...] { add(UInt64(byte)) }
    }
}
