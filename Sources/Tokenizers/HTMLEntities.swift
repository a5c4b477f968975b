// Decodes HTML character references.

/// Character references as HTML5 and Python's `html.unescape` decode them.
/// Source: https://html.spec.whatwg.org/multipage/parsing.html#character-reference-state
enum HTMLEntities {
    typealias Text = [Unicode.Scalar]

    /// Decodes every named or numeric reference in `text` once, with the standard's leniency:
    /// some names and all numbers need no semicolon, and the longest known name counts.
    static func unescape(_ text: Text) -> Text {
        guard text.contains("&") else { return text }
        var result = Text()
        result.reserveCapacity(text.count)
        var index = 0
        while index < text.count {
            if text[index] == "&", let (scalars, length) = reference(text, at: index) {
                result += scalars
                index += length
            } else {
                result.append(text[index])
                index += 1
            }
        }
        return result
    }

    /// Decodes only complete references (`&name;`), and names written all in capitals
    /// (`&EACUTE;`) if no other reading exists: the careful variant of ftfy.
    static func unescapeComplete(_ text: Text) -> Text {
        guard text.contains("&") else { return text }
        var result = Text()
        var index = 0
        while index < text.count {
            if text[index] == "&", let end = completeEnd(text, from: index) {
                result += decodeComplete(Text(text[index..<end]))
                index = end
            } else {
                result.append(text[index])
                index += 1
            }
        }
        return result
    }

    // MARK: Parsing

    /// The end of `&#?[0-9A-Za-z]{1,24};` at `start`.
    private static func completeEnd(_ text: Text, from start: Int) -> Int? {
        var index = start + 1
        if index < text.count, text[index] == "#" { index += 1 }
        let name = index
        while index < text.count, index - name < 24, isAlphanumeric(text[index]) { index += 1 }
        return index > name && index < text.count && text[index] == ";" ? index + 1 : nil
    }

    private static func decodeComplete(_ reference: Text) -> Text {
        if reference[1] == "#" {
            let decoded = unescape(reference)
            return decoded.contains(";") ? reference : decoded
        }
        if let exact = longestName(reference, at: 1), exact.length == reference.count - 1 {
            return exact.scalars
        }
        let lowered = reference.map { isUpper($0) ? Unicode.Scalar($0.value + 32)! : $0 }
        guard !reference.contains(where: isLower), unescape(reference) == reference,
            let folded = longestName(lowered, at: 1), folded.length == reference.count - 1
        else { return reference }
        return folded.scalars.flatMap { Text($0.properties.uppercaseMapping.unicodeScalars) }
    }

    /// What the reference at `index` stands for, and how many scalars of `text` it takes.
    private static func reference(_ text: Text, at index: Int) -> (Text, Int)? {
        guard index + 1 < text.count else { return nil }
        guard text[index + 1] == "#" else {
            return longestName(text, at: index + 1).map { ($0.scalars, $0.length + 1) }
        }
        var end = index + 2
        var radix: UInt32 = 10
        if end < text.count, text[end] == "x" || text[end] == "X" {
            radix = 16
            end += 1
        }
        let digits = end
        var number: UInt32 = 0
        while end < text.count, let digit = digit(text[end], radix: radix) {
            number = min(number * radix + digit, 0x110000)
            end += 1
        }
        guard end > digits else { return nil }
        if end < text.count, text[end] == ";" { end += 1 }
        return (scalars(forReference: number), end - index)
    }

    /// The scalars of a numeric reference, with the standard's corrections for U+0000, for carriage
    /// return and for Windows-1252 bytes; none for numbers that are not characters.
    private static func scalars(forReference number: UInt32) -> Text {
        switch number {
        case 0: return ["\u{fffd}"]
        case 0x0D: return ["\r"]
        case 0x80...0x9F: return [Mojibake.windows1252(forC1: Unicode.Scalar(UInt8(number)))]
        case 0x01...0x08, 0x0B, 0x0E...0x1F, 0x7F, 0xFDD0...0xFDEF: return []
        default:
            if number & 0xFFFE == 0xFFFE, number < 0x110000 { return [] }
            return [Unicode.Scalar(number) ?? "\u{fffd}"]
        }
    }

    // MARK: Names

    private static let names: (trie: ByteTrie, values: [Text]) = {
        var keys = ByteStrings()
        var values = [Text]()
        let bytes = table.withUTF8Buffer { Array($0) }
        for entry in bytes.split(separator: UInt8(ascii: " ")) {
            let separator = entry.firstIndex { $0 == UInt8(ascii: ";") || $0 == UInt8(ascii: ":") }!
            let name = Array(entry[..<separator])
            let value = entry[(separator + 1)...].split(separator: UInt8(ascii: "+")).map {
                Unicode.Scalar(UInt32(String(decoding: $0, as: UTF8.self), radix: 16)!)!
            }
            keys.append(name + [UInt8(ascii: ";")])
            values.append(value)
            if entry[separator] == UInt8(ascii: ":") {
                keys.append(name)
                values.append(value)
            }
        }
        return (ByteTrie(keys), values)
    }()

    /// The longest name of the table that occurs at `start`.
    private static func longestName(
        _ text: Text, at start: Int
    ) -> (scalars: Text, length: Int)? {
        let (trie, values) = names
        var node = ByteTrie.root
        var best: (Text, Int)?
        for index in start..<text.count {
            guard text[index].value < 0x80,
                let child = trie.child(of: node, UInt8(text[index].value))
            else { break }
            node = child
            if let value = trie.value(of: node) { best = (values[Int(value)], index + 1 - start) }
        }
        return best
    }

    private static func isUpper(_ scalar: Unicode.Scalar) -> Bool { ("A"..."Z").contains(scalar) }
    private static func isLower(_ scalar: Unicode.Scalar) -> Bool { ("a"..."z").contains(scalar) }
    private static func isAlphanumeric(_ scalar: Unicode.Scalar) -> Bool {
        isUpper(scalar) || isLower(scalar) || ("0"..."9").contains(scalar)
    }

    private static func digit(_ scalar: Unicode.Scalar, radix: UInt32) -> UInt32? {
        switch scalar {
        case "0"..."9": return scalar.value - 0x30
        case "a"..."f" where radix == 16: return scalar.value - 0x61 + 10
        case "A"..."F" where radix == 16: return scalar.value - 0x41 + 10
        default: return nil
        }
    }
}
