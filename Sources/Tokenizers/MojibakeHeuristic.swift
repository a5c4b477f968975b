// Which character sequences betray text that was decoded with the wrong encoding.

/// The heuristic of ftfy 6 (`ftfy.badness`): the characters that occur when UTF-8 is misread fall
/// into a few classes, and some sequences of classes hardly ever occur in intended text, such as
/// an accented lower-case letter followed by a currency sign.
/// Source: https://github.com/rspeer/python-ftfy/blob/v6.3.1/ftfy/badness.py
enum MojibakeHeuristic {
    /// The classes of a scalar; one scalar may be in several.
    struct Classes: OptionSet {
        let rawValue: UInt32
        static let common = Classes(rawValue: 1 << 0)
        static let c1 = Classes(rawValue: 1 << 1)
        static let bad = Classes(rawValue: 1 << 2)
        static let law = Classes(rawValue: 1 << 3)
        static let currency = Classes(rawValue: 1 << 4)
        static let opening = Classes(rawValue: 1 << 5)
        static let closing = Classes(rawValue: 1 << 6)
        static let numeric = Classes(rawValue: 1 << 7)
        static let kaomoji = Classes(rawValue: 1 << 8)
        static let upperAccented = Classes(rawValue: 1 << 9)
        static let lowerAccented = Classes(rawValue: 1 << 10)
        static let upperCommon = Classes(rawValue: 1 << 11)
        static let lowerCommon = Classes(rawValue: 1 << 12)
        static let box = Classes(rawValue: 1 << 13)
        static let asciiLower = Classes(rawValue: 1 << 14)
        static let asciiUpper = Classes(rawValue: 1 << 15)
        static let space = Classes(rawValue: 1 << 16)
        static let sentenceEnd = Classes(rawValue: 1 << 17)
    }

    private static let members: [(Classes, String)] = [
        (.common, "\u{a0}\u{ad}\u{b4}·–—―’…"),
        (.bad, "¤¦\u{a8}ª¬\u{af}\u{b8}ºƒ\u{2c6}\u{2c7}\u{2d8}\u{2db}\u{2dc}†‡‰⌐◊\u{fffd}"),
        (.law, "§¶"),
        (.currency, "¢£¥₧€"),
        (.opening, "¡©«¿\u{384}\u{385}‘‚“„•‹\u{f8ff}"),
        (.closing, "®»\u{2dd}”›™"),
        (.numeric, "±²³µ¹¼½¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"),
        (.kaomoji, "°ÒÓÔÕÖÙÚÛÜòóôõöøùúûüŌŐŪŲ"),
        (.upperAccented, "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
        (.lowerAccented, "ßàáâãäåæçèéêëìíîïðñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"),
        (.upperCommon, "ÞΆΈΉΊΌΎΏΪΫ"),
        (.lowerCommon, "άέήίΰ"),
        (.box, "│┌┐┘├┤┬┼▀▄█▌▐░▒▓"),
        (.sentenceEnd, ".,?!"),
    ]

    private static let ranges: [(Classes, ClosedRange<UInt32>)] = [
        (.c1, 0x80...0x9F),
        (.upperCommon, 0x391...0x3A9), (.upperCommon, 0x401...0x42F),
        (.lowerCommon, 0x3B1...0x3C9), (.lowerCommon, 0x430...0x45F),
        (.box, 0x2550...0x256C),
        (.asciiLower, 0x61...0x7A), (.asciiUpper, 0x41...0x5A),
        (.space, 0x09...0x0D), (.space, 0x1C...0x20), (.space, 0x85...0x85),
        (.space, 0xA0...0xA0), (.space, 0x1680...0x1680), (.space, 0x2000...0x200A),
        (.space, 0x2028...0x2029), (.space, 0x202F...0x202F), (.space, 0x205F...0x205F),
    ]

    /// The classes of U+0000 ... U+25FF; the few beyond are in `classes(of:)`.
    private static let table: [Classes] = {
        var table = [Classes](repeating: [], count: 0x2600)
        for (classes, range) in ranges {
            for value in range { table[Int(value)].insert(classes) }
        }
        for (classes, scalars) in members {
            for scalar in scalars.unicodeScalars where scalar.value < 0x2600 {
                table[Int(scalar.value)].insert(classes)
            }
        }
        return table
    }()

    private static func classes(of scalar: Unicode.Scalar) -> Classes {
        if scalar.value < 0x2600 { return table[Int(scalar.value)] }
        switch scalar.value {
        case 0x3000: return .space
        case 0xF8FF: return .opening
        case 0xFB01, 0xFB02: return .lowerAccented
        case 0xFFFD: return .bad
        default: return []
        }
    }

    private static let accented: Classes = [.upperAccented, .lowerAccented]
    private static let signs: Classes = [.box, .opening, .closing, .currency, .numeric, .law]
    private static let letter: Classes = [.asciiLower, .asciiUpper]
    private static let arabicTail: Classes = [.common, .currency, .bad, .numeric, .opening]
    private static let cyrillicMiddle: Classes = [.c1, .bad, .opening, .closing, .currency]

    /// Suspicious pairs of neighbours, the first of them outside ASCII.
    private static let pairs: [(Classes, Classes)] = [
        (accented.union(signs).union(.bad), .bad),
        (.bad, accented.union(signs)),
        ([.lowerAccented, .lowerCommon, .box, .closing, .currency, .numeric], .upperAccented),
        ([.box, .closing, .currency, .numeric], .lowerAccented),
        ([.lowerAccented, .box, .closing], .currency),
        ([.upperAccented, .box], [.numeric, .law]),
        ([.currency, .numeric, .box], .opening),
        (.box, [.kaomoji, .closing]),
        (accented.union([.currency, .numeric, .opening, .closing, .law]), .box),
    ]

    /// Suspicious triples of neighbours, the middle one outside ASCII.
    private static let triples: [(Classes, Classes, Classes)] = [
        (letter, [.lowerCommon, .upperCommon], .bad),
        (.space, .upperAccented, .currency),
        (accented.union([.box, .currency, .closing]), .opening, .numeric),
        (accented.union([.currency, .numeric, .box, .law]), .closing, .opening),
        (.asciiLower, .upperAccented, [.opening, .currency]),
    ]

    /// Misread sequences given by their characters: the first one, then a set for each that follows.
    private static let sequences: [Unicode.Scalar: [[Set<Unicode.Scalar>]]] = {
        let rules: [(String, [String])] = [
            ("ÂÃÎÐ", ["€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—\u{b4}"]),
            ("×", ["²³"]),
            ("à", ["²µ¹¼½¾"]),
            ("√", ["±∂†≠®™\u{b4}≤≥¥µø"]),
            ("≈", ["°¢"]),
            ("‚", ["Ä", "ìîïòôúùû†°¢π"]),
            ("‚", ["âó", "àä°ê"]),
            ("в", ["Ђ"]),
            ("Ã", ["\u{a0}¡"]),
            ("\u{3b2}", ["€", "™\u{a0}Ά\u{ad}®°"]),
            ("ā", ["€"]),
        ]
        var sequences = [Unicode.Scalar: [[Set<Unicode.Scalar>]]]()
        for (heads, tails) in rules {
            for head in heads.unicodeScalars {
                sequences[head, default: []].append(tails.map { Set($0.unicodeScalars) })
            }
        }
        return sequences
    }()

    private static let arabicHead = Set("ØÙ".unicodeScalars)
    private static let arabicExtra = Set("ŸŠ®°µ»".unicodeScalars)
    private static let cyrillic = Set("ВГРС".unicodeScalars)
    private static let greek = Set("\u{392}\u{393}\u{39e}\u{39f}".unicodeScalars)
    private static let doubled = Array("ГўВЂВ".unicodeScalars)

    /// Whether any part of `text` looks like UTF-8 that was decoded as something else.
    static func isSuspicious(_ text: some RandomAccessCollection<Unicode.Scalar>) -> Bool {
        let text = Array(text)
        for index in text.indices where text[index].value >= 0x80 {
            if isSuspicious(text, at: index) { return true }
        }
        return false
    }

    /// Whether a rule matches with its first character (or, for a triple, its middle one) at `index`,
    /// where the text is outside ASCII.
    private static func isSuspicious(_ text: [Unicode.Scalar], at index: Int) -> Bool {
        let scalar = text[index]
        let here = classes(of: scalar)
        if here.contains(.c1) { return true }
        let before = index > 0 ? classes(of: text[index - 1]) : []
        let isLatinHead = scalar == "Ã" || scalar == "Â"
        guard index + 1 < text.count else { return false }
        let next = text[index + 1]
        let after = classes(of: next)

        for (first, second) in pairs where !here.isDisjoint(with: first) {
            if !after.isDisjoint(with: second) { return true }
        }
        for (first, second, third) in triples where !here.isDisjoint(with: second) {
            if !before.isDisjoint(with: first), !after.isDisjoint(with: third) { return true }
        }
        if scalar == "Œ" || scalar == "œ", after.isDisjoint(with: letter) { return true }
        if here.contains(.upperAccented), next == "°" { return true }
        if isLatinHead || scalar == "Î" || scalar == "Ð",
            !after.isDisjoint(with: [.opening, .closing])
        {
            return true
        }
        if isLatinHead, next == " " {
            if index == 0 || before.contains(.asciiLower) { return true }
            if before.contains(.space), index > 1,
                classes(of: text[index - 2]).contains(.asciiLower)
            {
                return true
            }
        }
        if scalar == "Â", !before.isDisjoint(with: [.asciiLower, .sentenceEnd, .closing]),
            next == " " || !after.isDisjoint(with: [.opening, .closing])
        {
            return true
        }
        if let tails = sequences[scalar] {
            for tail in tails where index + tail.count < text.count {
                if tail.indices.allSatisfy({ tail[$0].contains(text[index + 1 + $0]) }) {
                    return true
                }
            }
        }

        guard index + 2 < text.count else { return false }
        let third = text[index + 2]
        if !here.isDisjoint(with: accented), !after.isDisjoint(with: [.opening, .closing]),
            isWord(third)
        {
            return true
        }
        if !after.isDisjoint(with: cyrillicMiddle) || next == "°" || next == "µ" {
            if cyrillic.contains(scalar), cyrillic.contains(third) { return true }
            if next != "µ", greek.contains(scalar), greek.contains(third) { return true }
        }
        guard index + 3 < text.count else { return false }
        if arabicHead.contains(scalar), arabicHead.contains(third),
            isArabicTail(next), isArabicTail(text[index + 3])
        {
            return true
        }
        return index + 6 < text.count && text[index..<index + 5].elementsEqual(doubled)
            && text[index + 5] != "\n"
            && (text[index + 6] == " "
                || !classes(of: text[index + 6]).isDisjoint(with: letter))
    }

    private static func isArabicTail(_ scalar: Unicode.Scalar) -> Bool {
        !classes(of: scalar).isDisjoint(with: arabicTail) || arabicExtra.contains(scalar)
    }

    /// Whether it is a letter, a number or an underscore, like `\w` in a regular expression.
    private static func isWord(_ scalar: Unicode.Scalar) -> Bool {
        if scalar == "_" || scalar.properties.numericType != nil { return true }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter:
            return true
        default:
            return false
        }
    }
}
