/// A reader of plain YAML, the part of it that settings need; JSON is part of that.

import Ground

/// A value of a file of settings.
indirect enum PlainValue: Hashable, Sendable {
    case null
    case bool(Bool)
    /// As JSON writes it.
    case number(String)
    case text(String)
    case list([PlainValue])
    /// In the file's order; no key twice.
    case map([Entry])

    struct Entry: Hashable, Sendable {
        var key: String
        var value: PlainValue
        var line: Int
    }

    /// In JSON, for a decoder.
    var json: String {
        switch self {
        case .null: "null"
        case .bool(let value): value ? "true" : "false"
        case .number(let text): text
        case .text(let text): jsonString(text)
        case .list(let values): "[" + values.map(\.json).joined(separator: ",") + "]"
        case .map(let entries):
            "{" + entries.map { jsonString($0.key) + ":" + $0.value.json }.joined(separator: ",")
                + "}"
        }
    }
}

/// What is wrong with a text, and in which line.
struct YAMLError: Error, Hashable {
    let line: Int
    let reason: String
}

/// Reads block and flow collections of scalars, comments and quoted texts. Anchors, tags, texts over several lines,
/// several documents and complex keys are refused.
struct YAMLReader {
    private struct Line {
        var number, indent: Int
        /// Without indentation and comment; not empty.
        var text: Substring.UnicodeScalarView
    }
    private var lines: [Line] = []
    private var position = 0
    private static let deepest = 32

    /// Follows quotes along a line. They begin where a value or a key can begin, not within a word.
    private struct Quotes {
        private var quote: Unicode.Scalar?
        private var isEscaped = false
        /// The quote that has just ended: twice within quotes it is one.
        private var ended: Unicode.Scalar?
        /// What was followed last.
        private(set) var before: Unicode.Scalar = " "
        var isOpen: Bool { quote != nil }

        /// Whether the next scalar is outside of quotes and is none.
        mutating func isOutside(_ scalar: Unicode.Scalar) -> Bool {
            defer { before = scalar }
            if let open = quote {
                if isEscaped {
                    isEscaped = false
                } else if scalar == "\\", open == "\"" {
                    isEscaped = true
                } else if scalar == open {
                    (quote, ended) = (nil, scalar)
                }
                return false
            }
            defer { ended = nil }
            guard scalar == "\"" || scalar == "'",
                " [{,:".unicodeScalars.contains(before) || scalar == ended
            else { return true }
            quote = scalar
            return false
        }
    }

    /// - Throws: ``YAMLError``.
    static func read(_ text: String) throws(YAMLError) -> PlainValue {
        var reader = try YAMLReader(text)
        guard let first = reader.lines.first else { return .map([]) }
        let value = try reader.block(indent: first.indent, depth: 0)
        if reader.position < reader.lines.count {
            throw reader.fault("expected nothing more at this indentation")
        }
        return value
    }

    private init(_ text: String) throws(YAMLError) {
        var scalars = text.unicodeScalars[...]
        // Some editors begin a file with a byte-order mark.
        if scalars.first == "\u{FEFF}" { scalars.removeFirst() }
        for (index, whole) in scalars.split(separator: "\n", omittingEmptySubsequences: false)
            .enumerated()
        {
            let number = index + 1
            var rest = whole.drop { $0 == " " }
            let indent = whole.count - rest.count
            if let first = rest.first, first == "\t" {
                throw YAMLError(line: number, reason: "a tab; indent with spaces")
            }
            rest = try Self.withoutComment(rest, number)
            while let last = rest.last, last.properties.isWhitespace { rest.removeLast() }
            if rest.isEmpty || String(rest) == "---" && lines.isEmpty { continue }
            if String(rest) == "---" || String(rest) == "..." {
                throw YAMLError(line: number, reason: "a second document; one is read")
            }
            lines.append(Line(number: number, indent: indent, text: rest))
        }
    }

    /// A comment begins with # at the start or after white space, outside of quotes.
    private static func withoutComment(
        _ line: Substring.UnicodeScalarView, _ number: Int
    ) throws(YAMLError) -> Substring.UnicodeScalarView {
        var quotes = Quotes()
        for index in line.indices {
            let isAfterSpace = quotes.before.properties.isWhitespace
            if quotes.isOutside(line[index]), line[index] == "#", isAfterSpace {
                return line[..<index]
            }
        }
        if quotes.isOpen {
            throw YAMLError(line: number, reason: "a quoted text that does not end in its line")
        }
        return line
    }

    private func fault(_ reason: String) -> YAMLError {
        let index = min(position, lines.count - 1)
        return YAMLError(line: lines.isEmpty ? 1 : lines[index].number, reason: reason)
    }

    // MARK: Blocks

    private mutating func block(indent: Int, depth: Int) throws(YAMLError) -> PlainValue {
        guard depth < Self.deepest else { throw fault("more than \(Self.deepest) levels") }
        let line = lines[position]
        if Self.isItem(line.text) { return try sequence(indent: indent, depth: depth) }
        if line.text.first != "{", line.text.first != "[", Self.colon(line.text) != nil {
            return try mapping(indent: indent, depth: depth)
        }
        position += 1
        return try inline(line.text, line.number, depth: depth)
    }

    private static func isItem(_ text: Substring.UnicodeScalarView) -> Bool {
        text.first == "-" && (text.count == 1 || text.dropFirst().first == " ")
    }

    private mutating func sequence(indent: Int, depth: Int) throws(YAMLError) -> PlainValue {
        var values: [PlainValue] = []
        while position < lines.count, lines[position].indent == indent,
            Self.isItem(lines[position].text)
        {
            let rest = lines[position].text.dropFirst().drop { $0 == " " }
            if rest.isEmpty {
                position += 1
                values.append(try nested(under: indent, depth: depth) ?? .null)
            } else {
                // What follows stands where it stands: "- a: 1" begins a mapping there.
                lines[position].indent += lines[position].text.count - rest.count
                lines[position].text = rest
                values.append(try block(indent: lines[position].indent, depth: depth + 1))
            }
        }
        try checkEnd(indent)
        return .list(values)
    }

    private mutating func mapping(indent: Int, depth: Int) throws(YAMLError) -> PlainValue {
        var entries: [PlainValue.Entry] = []
        var known: Set<String> = []
        while position < lines.count, lines[position].indent == indent {
            let line = lines[position]
            guard !Self.isItem(line.text), let colon = Self.colon(line.text) else {
                throw fault("expected 'key: value'")
            }
            let key = try Self.key(line.text[..<colon], line.number)
            guard known.insert(key).inserted else {
                throw fault("the key '\(key.printable)' occurs twice")
            }
            let rest = line.text[line.text.index(after: colon)...].drop { $0 == " " }
            position += 1
            let value =
                rest.isEmpty
                ? try nested(under: indent, depth: depth) ?? .null
                : try inline(rest, line.number, depth: depth)
            entries.append(PlainValue.Entry(key: key, value: value, line: line.number))
        }
        try checkEnd(indent)
        return .map(entries)
    }

    private func checkEnd(_ indent: Int) throws(YAMLError) {
        if position < lines.count, lines[position].indent > indent {
            throw fault("indented further than what it belongs to")
        }
    }

    /// What is indented further; a list may stand at its key's own indentation.
    private mutating func nested(under indent: Int, depth: Int) throws(YAMLError) -> PlainValue? {
        guard position < lines.count else { return nil }
        let line = lines[position]
        guard line.indent > indent || line.indent == indent && Self.isItem(line.text) else {
            return nil
        }
        return try block(indent: line.indent, depth: depth + 1)
    }

    /// The colon that ends a key: followed by a space or the end, outside of quotes and brackets.
    private static func colon(_ text: Substring.UnicodeScalarView)
        -> Substring.UnicodeScalarView.Index?
    {
        var quotes = Quotes()
        for index in text.indices {
            if quotes.isOutside(text[index]), text[index] == ":" {
                let next = text.index(after: index)
                if next == text.endIndex || text[next] == " " { return index }
            }
        }
        return nil
    }

    private static func key(_ text: Substring.UnicodeScalarView, _ line: Int) throws(YAMLError)
        -> String
    {
        var flow = FlowReader(text, line)
        guard case .text(let key) = try flow.scalar(stops: "", isKey: true), !key.isEmpty else {
            throw YAMLError(line: line, reason: "expected the name of a setting before ':'")
        }
        try flow.end()
        return key
    }

    // MARK: Within a line

    /// A scalar, or a flow collection, which may go on in the next lines.
    private mutating func inline(
        _ text: Substring.UnicodeScalarView, _ line: Int, depth: Int
    ) throws(YAMLError) -> PlainValue {
        guard text.first == "[" || text.first == "{" else {
            var flow = FlowReader(text, line)
            let value = try flow.scalar(stops: "")
            try flow.end()
            return value
        }
        var whole = String(text)
        // Quoted texts end in their lines, so lines can be counted one by one.
        var open = Self.openings(text)
        while open > 0, position < lines.count {
            open += Self.openings(lines[position].text)
            whole += " " + String(lines[position].text)
            position += 1
        }
        var flow = FlowReader(whole.unicodeScalars[...], line)
        let value = try flow.value(depth: depth)
        try flow.end()
        return value
    }

    /// How many more brackets open than close, outside of quotes.
    private static func openings(_ text: Substring.UnicodeScalarView) -> Int {
        var (open, quotes) = (0, Quotes())
        for scalar in text where quotes.isOutside(scalar) {
            switch scalar {
            case "[", "{": open += 1
            case "]", "}": open -= 1
            default: break
            }
        }
        return open
    }

    /// Flow collections and scalars.
    private struct FlowReader {
        private var rest: Substring.UnicodeScalarView
        private let line: Int

        init(_ text: Substring.UnicodeScalarView, _ line: Int) { (rest, self.line) = (text, line) }

        private func fault(_ reason: String) -> YAMLError { YAMLError(line: line, reason: reason) }

        private mutating func skipSpace() { rest = rest.drop { $0.properties.isWhitespace } }

        private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
            skipSpace()
            guard rest.first == scalar else { return false }
            rest.removeFirst()
            return true
        }

        mutating func end() throws(YAMLError) {
            skipSpace()
            if !rest.isEmpty { throw fault("'\(String(rest).printable)' after the end of a value") }
        }

        mutating func value(depth: Int) throws(YAMLError) -> PlainValue {
            guard depth < YAMLReader.deepest else { throw fault("too many levels") }
            if take("[") {
                var values: [PlainValue] = []
                while !take("]") {
                    values.append(try value(depth: depth + 1))
                    if !take(",") {
                        guard take("]") else { throw fault("expected ',' or ']'") }
                        break
                    }
                }
                return .list(values)
            }
            if take("{") {
                var entries: [PlainValue.Entry] = []
                var known: Set<String> = []
                while !take("}") {
                    skipSpace()
                    guard case .text(let key) = try scalar(stops: ",}:", isKey: true), !key.isEmpty
                    else {
                        throw fault("expected a key")
                    }
                    guard take(":") else { throw fault("expected ':' after '\(key.printable)'") }
                    guard known.insert(key).inserted else {
                        throw fault("the key '\(key.printable)' occurs twice")
                    }
                    entries.append(
                        PlainValue.Entry(
                            key: key, value: try value(depth: depth + 1), line: line))
                    if !take(",") {
                        guard take("}") else { throw fault("expected ',' or '}'") }
                        break
                    }
                }
                return .map(entries)
            }
            skipSpace()
            return try scalar(stops: ",]}")
        }

        /// - Parameters:
        ///   - stops: what ends a plain scalar.
        ///   - isKey: whether it is a text in any case.
        mutating func scalar(stops: String, isKey: Bool = false) throws(YAMLError) -> PlainValue {
            guard let first = rest.first else { return isKey ? .text("") : .null }
            if first == "\"" || first == "'" { return .text(try quoted(first)) }
            if "&*!|>%@`?".unicodeScalars.contains(first) {
                throw fault(
                    "'\(String(first))' begins something that is not read here: only plain and "
                        + "quoted values, lists and mappings are")
            }
            let plain = rest.prefix { !stops.unicodeScalars.contains($0) }
            rest = rest[plain.endIndex...]
            var text = String(plain)
            while text.last?.isWhitespace == true { text.removeLast() }
            return isKey ? .text(text) : Self.meaning(text)
        }

        private mutating func quoted(_ quote: Unicode.Scalar) throws(YAMLError) -> String {
            rest.removeFirst()
            var text = ""
            while let scalar = rest.popFirst() {
                if scalar == quote {
                    // Two single quotes are one.
                    guard quote == "'", rest.first == "'" else { return text }
                    rest.removeFirst()
                    text.unicodeScalars.append(scalar)
                } else if scalar == "\\", quote == "\"" {
                    text.unicodeScalars.append(try escape())
                } else {
                    text.unicodeScalars.append(scalar)
                }
            }
            throw fault("a quoted text without an end")
        }

        private mutating func escape() throws(YAMLError) -> Unicode.Scalar {
            switch rest.popFirst() {
            case "n": return "\n"
            case "t": return "\t"
            case "r": return "\r"
            case "b": return "\u{8}"
            case "f": return "\u{C}"
            case "u":
                let digits = String(rest.prefix(4))
                rest = rest.dropFirst(4)
                guard digits.count == 4, let code = UInt32(digits, radix: 16),
                    let scalar = Unicode.Scalar(code)
                else { throw fault("\\u needs four hexadecimal digits of a character") }
                return scalar
            case let other? where "\"\\/ ".unicodeScalars.contains(other): return other
            default: throw fault("an escape that is not known")
            }
        }

        /// The core schema of YAML 1.2.
        private static func meaning(_ text: String) -> PlainValue {
            switch text {
            case "", "~", "null", "Null", "NULL": return .null
            case "true", "True", "TRUE": return .bool(true)
            case "false", "False", "FALSE": return .bool(false)
            default: break
            }
            guard let first = text.utf8.first,
                (0x30...0x39).contains(first) || "+-.".utf8.contains(first),
                text.utf8.allSatisfy({ (0x30...0x39).contains($0) || "+-.eE".utf8.contains($0) })
            else { return .text(text) }
            if let whole = Int(text) { return .number("\(whole)") }
            if let whole = UInt64(text) { return .number("\(whole)") }
            if let number = Double(text), number.isFinite { return .number("\(number)") }
            return .text(text)
        }
    }
}
