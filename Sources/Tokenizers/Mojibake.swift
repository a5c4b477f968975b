// Undoes UTF-8 that was decoded with a single-byte encoding.

/// The encoding repair of ftfy 6: while a text looks like mojibake, find a single-byte encoding
/// that could have produced it and in which its bytes are UTF-8, and decode them as UTF-8.
/// Source: https://github.com/rspeer/python-ftfy/blob/v6.3.1/ftfy/__init__.py
enum Mojibake {
    typealias Text = [Unicode.Scalar]

    /// `text` with all repairs that the heuristic asks for.
    static func repair(_ text: Text) -> Text {
        var text = text
        while let repaired = repairOnce(text), repaired != text { text = repaired }
        return text
    }

    /// Reads the byte of a C1 control character as Windows-1252, as browsers do.
    static func windows1252(forC1 scalar: Unicode.Scalar) -> Unicode.Scalar {
        (0x80...0x9F).contains(scalar.value)
            ? SingleByteEncoding.windows1252.upperHalf[Int(scalar.value) - 0x80] : scalar
    }

    private static func repairOnce(_ text: Text) -> Text? {
        guard MojibakeHeuristic.isSuspicious(text) else { return nil }
        for encoding in SingleByteEncoding.all {
            guard var bytes = encoding.encode(text) else { continue }
            if !encoding.isMacRoman { bytes = restoringNonBreakingSpaces(bytes) }
            if encoding.isSloppy { bytes = replacingLossySequences(bytes) }
            if let decoded = decodeUTF8Variants(bytes) { return decoded }
        }
        if let repaired = repairEmbedded(text) { return repaired }

        // What remains are bytes of Windows-1252 that were decoded as Latin-1's control characters.
        return text.map(windows1252(forC1:))
    }

    // MARK: Sequences inside other text

    private static let leads2 = decoded(0xC2...0xDF)
    private static let leads3 = decoded(0xE0...0xEF)
    private static let leads4 = decoded([0xF0, 0xF3])
    private static let continuations = decoded(0x80...0xBF).union([" "])
    /// Continuations that are rarely meant as themselves: no dashes, quotation marks, bullets or ellipses.
    private static let strictContinuations =
        continuations.subtracting(" –—―‘’‚“”„•…".unicodeScalars)

    private static func decoded(_ bytes: some Sequence<Int>) -> Set<Unicode.Scalar> {
        var scalars = Set<Unicode.Scalar>()
        for byte in bytes {
            for encoding in SingleByteEncoding.latinLike {
                scalars.insert(encoding.upperHalf[byte - 0x80])
            }
        }
        return scalars
    }

    /// Repairs runs that look like UTF-8 on their own; nil if nothing changes.
    private static func repairEmbedded(_ text: Text) -> Text? {
        var result = Text()
        var changed = false
        var index = 0
        while index < text.count {
            var end = index
            if index == 0 || !strictContinuations.contains(text[index - 1]) {
                while let length = sequenceLength(text, at: end) { end += length }
            }
            guard end > index else {
                result.append(text[index])
                index += 1
                continue
            }
            let run = Text(text[index..<end])
            // The run must be shorter than the text, so that the recursion ends.
            if run.count < text.count, MojibakeHeuristic.isSuspicious(run) {
                let repaired = repair(run)
                changed = changed || repaired != run
                result += repaired
            } else {
                result += run
            }
            index = end
        }
        return changed ? result : nil
    }

    private static func sequenceLength(_ text: Text, at index: Int) -> Int? {
        guard index < text.count, text[index].value >= 0x80 else { return nil }
        for (leads, length) in [(leads2, 2), (leads3, 3), (leads4, 4)] {
            guard leads.contains(text[index]), index + length <= text.count else { continue }
            if text[index + 1..<index + length].allSatisfy(continuations.contains) {
                return length
            }
        }
        return nil
    }

    // MARK: Bytes

    /// Restores bytes 0xA0 that a program replaced by a space in the middle of a character.
    private static func restoringNonBreakingSpaces(_ bytes: [UInt8]) -> [UInt8] {
        guard bytes.indices.contains(where: { alteredLength(bytes, at: $0) != nil }) else {
            return bytes
        }
        // "Ã la" lost one of its two spaces: "à la", but "àquele", "àquela", "àquilo", "às".
        let joined = [" ", "quele", "quela", "quilo", "s "].map { Array($0.utf8) }
        var separated = [UInt8]()
        var index = 0
        while index < bytes.count {
            separated.append(bytes[index])
            if bytes[index] == 0xC3, index + 1 < bytes.count, bytes[index + 1] == 0x20,
                !joined.contains(where: { bytes[(index + 2)...].starts(with: $0) })
            {
                separated += [0xA0, 0x20]
                index += 1
            }
            index += 1
        }
        var restored = [UInt8]()
        index = 0
        while index < separated.count {
            let length = alteredLength(separated, at: index)
            for byte in separated[index..<index + (length ?? 1)] {
                restored.append(length != nil && byte == 0x20 ? 0xA0 : byte)
            }
            index += length ?? 1
        }
        return restored
    }

    /// The length of the sequence at `index` that would be UTF-8 with 0xA0 in place of its space.
    private static func alteredLength(_ bytes: [UInt8], at index: Int) -> Int? {
        let lead = bytes[index]
        guard lead >= 0xC2 else { return nil }
        func byte(_ offset: Int) -> UInt8 {
            index + offset < bytes.count ? bytes[index + offset] : 0
        }
        func isContinuation(_ byte: UInt8) -> Bool { (0x80...0xBF).contains(byte) }
        // Bytes 0x85 and 0xA0 are often altered themselves, so they prove nothing.
        func isReliable(_ byte: UInt8) -> Bool {
            isContinuation(byte) && byte != 0x85 && byte != 0xA0
        }
        switch lead {
        case 0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9:
            return byte(1) == 0x20 ? 2 : nil
        case 0xE0...0xE3:
            if lead >= 0xE2, byte(1) == 0x20, isReliable(byte(2)) { return 3 }
            return isReliable(byte(1)) && byte(2) == 0x20 ? 3 : nil
        case 0xF0:
            let tail = [byte(1), byte(2), byte(3)]
            let isAltered = tail.allSatisfy { $0 == 0x20 || isContinuation($0) }
            return isAltered && tail.count(where: { $0 == 0x20 }) == 1 ? 4 : nil
        default:
            return nil
        }
    }

    /// Replaces sequences that have lost a byte (now 0x1A, or one `?`) by U+FFFD.
    private static func replacingLossySequences(_ bytes: [UInt8]) -> [UInt8] {
        guard bytes.contains(0x1A) || bytes.contains(0x3F) else { return bytes }
        var replaced = [UInt8]()
        var index = 0
        while index < bytes.count {
            if let length = lossyLength(bytes, at: index) {
                replaced += [0xEF, 0xBF, 0xBD]
                index += length
            } else {
                replaced.append(bytes[index])
                index += 1
            }
        }
        return replaced
    }

    private static func lossyLength(_ bytes: [UInt8], at index: Int) -> Int? {
        func byte(_ offset: Int) -> UInt8 {
            index + offset < bytes.count ? bytes[index + offset] : 0
        }
        func isLost(_ byte: UInt8) -> Bool { byte == 0x1A || byte == 0x3F }
        func isTail(_ byte: UInt8) -> Bool { byte == 0x1A || (0x80...0xBF).contains(byte) }
        /// Whether each of the next `count` bytes is a continuation or lost, at least one lost, at most one `?`.
        func isDamaged(_ count: Int) -> Bool {
            let tail = (1...count).map(byte)
            return tail.allSatisfy { isTail($0) || $0 == 0x3F } && tail.contains(where: isLost)
                && tail.count(where: { $0 == 0x3F }) <= 1
        }
        switch byte(0) {
        case 0x1A:
            return 1
        case 0xC2...0xDF:
            return byte(1) == 0x1A || (byte(0) <= 0xC3 && byte(1) == 0x3F) ? 2 : nil
        case 0xE0...0xEF:
            if byte(0) == 0xED, (0xA0...0xAF).contains(byte(1)), byte(3) == 0xED,
                (0xB0...0xBF).contains(byte(4)),
                (isLost(byte(2)) && (isTail(byte(5)) || isLost(byte(5))))
                    || ((isTail(byte(2)) || isLost(byte(2))) && isLost(byte(5)))
            {
                return 6
            }
            return isDamaged(2) ? 3 : nil
        case 0xF0...0xF4:
            return isDamaged(3) ? 4 : nil
        default:
            return nil
        }
    }

    /// Decodes UTF-8, including variants that write U+0000 as C0 80 (Java) or scalars beyond U+FFFF as
    /// two encoded surrogates (CESU-8); nil if `bytes` is none of these.
    private static func decodeUTF8Variants(_ bytes: [UInt8]) -> Text? {
        var standard = bytes
        if bytes.contains(0xC0) || bytes.contains(0xED) {
            standard = []
            var index = 0
            while index < bytes.count {
                if bytes[index] == 0xC0, index + 1 < bytes.count, bytes[index + 1] == 0x80 {
                    standard.append(0)
                    index += 2
                } else if let scalar = surrogatePair(bytes, at: index) {
                    standard += Array(String(scalar).utf8)
                    index += 6
                } else {
                    standard.append(bytes[index])
                    index += 1
                }
            }
        }
        return String(validating: standard, as: UTF8.self).map { Text($0.unicodeScalars) }
    }

    private static func surrogatePair(_ bytes: [UInt8], at index: Int) -> Unicode.Scalar? {
        guard bytes[index] == 0xED, index + 6 <= bytes.count,
            (0xA0...0xAF).contains(bytes[index + 1]), (0x80...0xBF).contains(bytes[index + 2]),
            bytes[index + 3] == 0xED,
            (0xB0...0xBF).contains(bytes[index + 4]), (0x80...0xBF).contains(bytes[index + 5])
        else { return nil }
        let high = UInt32(bytes[index + 1] & 0x0F) << 16 | UInt32(bytes[index + 2] & 0x3F) << 10
        let low = UInt32(bytes[index + 4] & 0x0F) << 6 | UInt32(bytes[index + 5] & 0x3F)
        return Unicode.Scalar(0x10000 + (high | low))
    }
}
