// Repairs damaged text: encodings, widths, quotes, control characters.

// The standard library's own normalization, which has no public interface outside Foundation.
@_spi(_Unicode) import Swift

/// `ftfy.fix_text` of version 6 with its default settings.
/// Source: https://github.com/rspeer/python-ftfy/blob/v6.3.1/ftfy/__init__.py
enum TextFixes {
    typealias Text = [Unicode.Scalar]

    /// The most passes over one line. Real text is stable after two or three; the limit keeps the time
    /// linear for text in which every pass uncovers one more level of escapes.
    private static let passLimit = 16
    /// Lines longer than this are fixed in parts.
    private static let partLimit = 1_000_000

    /// `text` fixed line by line. HTML entities are decoded until the first line with a `<`:
    /// from there on the text may be HTML itself.
    static func fix(_ text: Text) -> Text {
        var result = Text()
        result.reserveCapacity(text.count)
        var decodesEntities = true
        var start = 0
        while start < text.count {
            let limit = min(text.count, start + partLimit)
            let end = text[start..<limit].firstIndex(of: "\n").map { $0 + 1 } ?? limit
            let line = Text(text[start..<end])
            if line.contains("<") { decodesEntities = false }
            result += fix(line: line, decodingEntities: decodesEntities)
            start = end
        }
        return result
    }

    private static func fix(line: Text, decodingEntities: Bool) -> Text {
        var line = line
        for _ in 0..<passLimit {
            var fixed = decodingEntities ? HTMLEntities.unescapeComplete(line) : line
            fixed = Mojibake.repair(fixed)
            fixed = normalized(removingControls(removingTerminalEscapes(replacing(fixed))))
            if fixed == line { break }
            line = fixed
        }
        return line
    }

    // MARK: Single characters

    /// Replaces C1 controls, ligatures, unusual widths, curly quotes and line breaks by ordinary characters.
    private static func replacing(_ text: Text) -> Text {
        var result = Text()
        result.reserveCapacity(text.count)
        for (index, scalar) in text.enumerated() {
            if scalar.value < 0x80 {
                if scalar != "\r" {
                    result.append(scalar)
                } else if index + 1 == text.count || text[index + 1] != "\n" {
                    result.append("\n")
                }
                continue
            }
            let scalar = Mojibake.windows1252(forC1: scalar)
            if let ligature = ligatures[scalar] {
                for part in ligature.unicodeScalars { result.append(uncurled(part)) }
            } else if scalar == "\u{ffe3}" {
                result += [" ", "\u{304}"]
            } else {
                result.append(uncurled(standardWidth(scalar)))
            }
        }
        return result
    }

    private static func uncurled(_ scalar: Unicode.Scalar) -> Unicode.Scalar {
        switch scalar.value {
        case 0x2BC, 0x2018...0x201B: return "'"
        case 0x201C...0x201F: return "\""
        case 0x2028, 0x2029, 0x85: return "\n"
        default: return scalar
        }
    }

    /// Latin letters only: ligatures of other scripts may be intended.
    private static let ligatures: [Unicode.Scalar: String] = [
        "Ĳ": "IJ", "ĳ": "ij", "ŉ": "\u{2bc}n",
        "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž",
        "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj",
        "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
    ]

    /// The standard form of a full-width or half-width character.
    private static func standardWidth(_ scalar: Unicode.Scalar) -> Unicode.Scalar {
        switch scalar.value {
        case 0x3000: return " "
        case 0xFF01...0xFF5E: return Unicode.Scalar(UInt8(scalar.value - 0xFEE0))
        case 0xFF5F...0xFFEE: return widths[Int(scalar.value) - 0xFF5F]
        default: return scalar
        }
    }

    /// The standard forms of U+FF5F ... U+FFEE; characters without one stand for themselves.
    private static let widths = Text(
        """
        ⦅⦆。「」、・ヲァィゥェォャュョッ\u{30fc}アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワン\
        \u{3099}\u{309a}\u{1160}\u{1100}\u{1101}\u{11aa}\u{1102}\u{11ac}\u{11ad}\u{1103}\u{1104}\
        \u{1105}\u{11b0}\u{11b1}\u{11b2}\u{11b3}\u{11b4}\u{11b5}\u{111a}\u{1106}\u{1107}\u{1108}\
        \u{1121}\u{1109}\u{110a}\u{110b}\u{110c}\u{110d}\u{110e}\u{110f}\u{1110}\u{1111}\u{1112}\
        \u{ffbf}\u{ffc0}\u{ffc1}\u{1161}\u{1162}\u{1163}\u{1164}\u{1165}\u{1166}\u{ffc8}\u{ffc9}\
        \u{1167}\u{1168}\u{1169}\u{116a}\u{116b}\u{116c}\u{ffd0}\u{ffd1}\u{116d}\u{116e}\u{116f}\
        \u{1170}\u{1171}\u{1172}\u{ffd8}\u{ffd9}\u{1173}\u{1174}\u{1175}\u{ffdd}\u{ffde}\u{ffdf}\
        ¢£¬\u{ffe3}¦¥₩\u{ffe7}│←↑→↓■○
        """.unicodeScalars)

    // MARK: Sequences

    /// Removes terminal escapes such as `ESC [ 1;31 m`.
    private static func removingTerminalEscapes(_ text: Text) -> Text {
        guard text.contains("\u{1b}") else { return text }
        var result = Text()
        var index = 0
        while index < text.count {
            if text[index] == "\u{1b}", index + 1 < text.count, text[index + 1] == "[" {
                var end = index + 2
                while end < text.count,
                    text[end] == ";" || text[end].properties.generalCategory == .decimalNumber
                {
                    end += 1
                }
                if end < text.count, text[end].isASCII, text[end].properties.isAlphabetic {
                    index = end + 1
                    continue
                }
            }
            result.append(text[index])
            index += 1
        }
        return result
    }

    /// Removes control characters that are neither white space nor affect glyphs.
    private static func removingControls(_ text: Text) -> Text {
        text.filter { scalar in
            switch scalar.value {
            case 0x00...0x08, 0x0B, 0x0E...0x1F, 0x7F: return false
            case 0x206A...0x206F, 0xFEFF, 0xFFF9...0xFFFC: return false
            default: return true
            }
        }
    }

    /// Normalization form C.
    private static func normalized(_ text: Text) -> Text {
        // Text without scalars from U+0300, the combining marks, is already in this form.
        guard text.contains(where: { $0.value >= 0x300 }) else { return text }
        return Text(String(String.UnicodeScalarView(text))._nfc)
    }
}
