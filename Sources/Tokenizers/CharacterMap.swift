// SentencePiece's compiled character map: text normalization as a double-array trie.

/// Maps characters to their normal form (`nmt_nfkc` for umT5).
///
/// The blob holds the size of the trie in bytes, the trie as 32-bit units (darts-clone), and the
/// replacements as zero-terminated strings, all little-endian.
/// Source: https://github.com/google/sentencepiece/blob/v0.2.0/src/normalizer.cc
struct CharacterMap: Sendable {
    private let units: [UInt32]
    private let replacements: [UInt8]
    /// Length of the longest replacement, in bytes.
    let longestReplacement: Int
    /// What each ASCII character becomes on its own; nil if it stays.
    private var ascii: [[UInt8]?] = []

    /// Nil if `blob` is too short for the trie that it declares, or its replacements are not UTF-8.
    init?(_ blob: [UInt8]) {
        func unit(at offset: Int) -> UInt32 {
            UInt32(blob[offset]) | UInt32(blob[offset + 1]) << 8
                | UInt32(blob[offset + 2]) << 16 | UInt32(blob[offset + 3]) << 24
        }
        guard blob.count >= 4 else { return nil }
        let size = Int(unit(at: 0))
        guard size >= 4, size % 4 == 0, size <= blob.count - 4 else { return nil }
        units = stride(from: 4, to: 4 + size, by: 4).map(unit(at:))
        replacements = Array(blob[(4 + size)...])
        longestReplacement = replacements.split(separator: 0).map(\.count).max() ?? 0
        guard String(validating: replacements, as: UTF8.self) != nil else { return nil }
        ascii = (0..<128).map { byte in
            replacement(for: CollectionOfOne(UInt8(byte))).map { Array(replacements[$0]) }
        }
    }

    /// `text` (UTF-8) in normal form.
    ///
    /// Grapheme clusters of fewer than six bytes are looked up whole, and the shortest entry that
    /// they begin with replaces the whole cluster; others are looked up scalar by scalar, as in the
    /// reference: https://github.com/huggingface/tokenizers/blob/v0.21.0/tokenizers/src/normalizers/precompiled.rs
    func normalize(_ text: [UInt8]) -> [UInt8] {
        var result = [UInt8]()
        result.reserveCapacity(text.count + text.count / 8)
        var index = 0
        while index < text.count {
            // A cluster always ends between two ASCII characters other than CR LF.
            var end = index + 1
            while end < text.count,
                text[end - 1] >= 0x80 || text[end] >= 0x80
                    || (text[end - 1] == 0x0D && text[end] == 0x0A)
            {
                end += 1
            }
            if end == index + 1, text[index] < 0x80 {
                if let replacement = ascii[Int(text[index])] {
                    result += replacement
                } else {
                    result.append(text[index])
                }
            } else {
                for cluster in String(decoding: text[index..<end], as: UTF8.self) {
                    normalize(cluster, into: &result)
                }
            }
            index = end
        }
        return result
    }

    private func normalize(_ cluster: Character, into result: inout [UInt8]) {
        if cluster.utf8.count < 6, let range = replacement(for: cluster.utf8) {
            result += replacements[range]
            return
        }
        for scalar in cluster.unicodeScalars {
            let bytes = UTF8.encode(scalar)!
            if let range = replacement(for: bytes) {
                result += replacements[range]
            } else {
                result += bytes
            }
        }
    }

    /// The place of the replacement for the shortest entry that `key` begins with.
    private func replacement(for key: some Sequence<UInt8>) -> Range<Int>? {
        var position = offset(units[0])
        for byte in key {
            guard byte != 0 else { return nil }
            position ^= Int(byte)
            guard position < units.count else { return nil }
            let unit = units[position]
            guard unit & 0x8000_00FF == UInt32(byte) else { return nil }
            position ^= offset(unit)
            guard position < units.count else { return nil }
            // Bit 8: an entry ends here; its value is in the unit without a label.
            if unit & 0x100 != 0 {
                let start = Int(units[position] & 0x7FFF_FFFF)
                guard start < replacements.count else { return nil }
                let end = replacements[start...].firstIndex(of: 0) ?? replacements.count
                return start..<end
            }
        }
        return nil
    }

    private func offset(_ unit: UInt32) -> Int { Int((unit >> 10) << ((unit & 0x200) >> 6)) }
}
