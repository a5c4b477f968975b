/// The part of TOML 1.0 that a configuration needs: tables, and keys with strings, whole numbers and truth values.

/// Why a text is no such configuration.
public struct TOMLError: Error, Sendable, Hashable, CustomStringConvertible {
    /// From 1.
    public let line: Int
    public let reason: String

    public var description: String { "line \(line): \(reason)" }
}

/// A text that has been read. Everything else that TOML has (arrays, inline tables, dates, numbers with a point, dotted
/// keys, texts of several lines) is refused by its line.
struct TOMLDocument: Sendable, Hashable {
    enum Value: Sendable, Hashable {
        case string(String)
        case integer(Int)
        case boolean(Bool)

        /// As it is written in a message.
        var text: String {
            switch self {
            case .string(let text): text
            case .integer(let number): "\(number)"
            case .boolean(let value): "\(value)"
            }
        }
    }

    struct Entry: Sendable, Hashable {
        var key: String
        var value: Value
        var line: Int
    }

    struct Table: Sendable, Hashable {
        /// `[models.my-own]` is `["models", "my-own"]`; empty for what stands before the first table.
        var path: [String]
        var line: Int
        var entries: [Entry] = []

        subscript(_ key: String) -> Entry? { entries.first { $0.key == key } }
    }

    private(set) var tables: [Table] = []

    init(_ text: String) throws(TOMLError) {
        var table = Table(path: [], line: 1)
        // "\r\n" is one character of Swift and one end of a line of TOML.
        let lines = text.split(omittingEmptySubsequences: false) { $0 == "\n" || $0 == "\r\n" }
        for (index, content) in lines.enumerated() {
            var line = LineReader(content, number: index + 1)
            line.skipSpace()
            if line.isAtEnd { continue }
            if line.take("[") {
                if line.peek == "[" {
                    throw line.error("arrays of tables ([[…]]) are not supported")
                }
                let path = try line.keys(until: "]")
                try line.end()
                tables.append(table)
                guard !tables.contains(where: { $0.path == path }) else {
                    throw line.error("the table [\(path.joined(separator: "."))] is there already")
                }
                table = Table(path: path, line: index + 1)
                continue
            }
            let keys = try line.keys(until: "=")
            guard keys.count == 1 else {
                throw line.error(
                    "dotted keys are not supported: write a table, [\(keys.dropLast().joined(separator: "."))]"
                )
            }
            guard table[keys[0]] == nil else {
                throw line.error("'\(keys[0])' is there already")
            }
            let value = try line.value()
            try line.end()
            table.entries.append(Entry(key: keys[0], value: value, line: index + 1))
        }
        tables.append(table)
        if tables[0].entries.isEmpty { tables.removeFirst() }
    }

    func table(_ path: String...) -> Table? { tables.first { $0.path == path } }
}

/// Reads one line from left to right.
private struct LineReader {
    private let characters: [Character]
    private var position = 0
    private let number: Int

    init(_ line: Substring, number: Int) {
        characters = Array(line)
        self.number = number
    }

    func error(_ reason: String) -> TOMLError { TOMLError(line: number, reason: reason) }

    var peek: Character? { position < characters.count ? characters[position] : nil }

    /// Whether nothing but a comment is left.
    var isAtEnd: Bool { peek == nil || peek == "#" }

    mutating func skipSpace() { while peek == " " || peek == "\t" { position += 1 } }

    mutating func take(_ character: Character) -> Bool {
        guard peek == character else { return false }
        position += 1
        return true
    }

    mutating func end() throws(TOMLError) {
        skipSpace()
        guard isAtEnd else {
            throw error("'\(String(characters[position...].prefix(20)))' is more than was expected")
        }
    }

    /// Names with points between them, and the character that ends them.
    mutating func keys(until last: Character) throws(TOMLError) -> [String] {
        var keys: [String] = []
        while true {
            skipSpace()
            keys.append(try key())
            skipSpace()
            if take(last) { return keys }
            guard take(".") else {
                throw error("expected '\(last)' after '\(keys.joined(separator: "."))'")
            }
        }
    }

    private mutating func key() throws(TOMLError) -> String {
        if peek == "\"" || peek == "'" { return try string() }
        var key = ""
        while let character = peek, Self.isBare(character) {
            key.append(character)
            position += 1
        }
        guard !key.isEmpty else {
            throw error("expected a name or [table]")
        }
        return key
    }

    private static func isBare(_ character: Character) -> Bool {
        character.isASCII && (character.isLetter || character.isNumber) || character == "_"
            || character == "-"
    }

    mutating func value() throws(TOMLError) -> TOMLDocument.Value {
        skipSpace()
        switch peek {
        case nil, "#": throw error("expected a value after '='")
        case "\"", "'": return .string(try string())
        case "[": throw error("arrays are not supported")
        case "{": throw error("inline tables are not supported: write a table, [name]")
        default: break
        }
        var word = ""
        while let character = peek, !" \t#,]}".contains(character) {
            word.append(character)
            position += 1
        }
        if word == "true" || word == "false" { return .boolean(word == "true") }
        if let number = Self.integer(word) { return .integer(number) }
        throw error(
            "'\(word)' is no value: expected \"text\", a whole number, true or false")
    }

    /// As TOML has it: no zeros in front, underscores only between digits.
    private static func integer(_ word: String) -> Int? {
        let digits = word.drop { $0 == "+" || $0 == "-" }
        guard word.count - digits.count <= 1, digits.first?.isASCII == true,
            digits.allSatisfy({ $0.isASCII && $0.isNumber || $0 == "_" }),
            digits.first != "_", digits.last != "_", !digits.contains("__"),
            digits.first != "0" || digits.count == 1
        else { return nil }
        return Int(word.filter { $0 != "_" })
    }

    private mutating func string() throws(TOMLError) -> String {
        let quote = characters[position]
        if characters[position...].prefix(3).allSatisfy({ $0 == quote }),
            characters.count - position >= 3
        {
            throw error("texts of several lines are not supported")
        }
        position += 1
        var text = ""
        while let character = peek {
            position += 1
            if character == quote { return text }
            if character == "\\", quote == "\"" {
                text.unicodeScalars.append(try escape())
                continue
            }
            guard
                character.unicodeScalars.allSatisfy({
                    $0 == "\t" || $0.value >= 32 && $0.value != 127
                })
            else { throw error("a text holds a control character") }
            text.append(character)
        }
        throw error("a text has no \(quote) at its end")
    }

    private mutating func escape() throws(TOMLError) -> Unicode.Scalar {
        let simple: [Character: Unicode.Scalar] = [
            "b": "\u{8}", "t": "\t", "n": "\n", "f": "\u{C}", "r": "\r", "\"": "\"", "\\": "\\",
        ]
        guard let character = peek else { throw error("a text ends with \\") }
        position += 1
        if let scalar = simple[character] { return scalar }
        let count = character == "u" ? 4 : character == "U" ? 8 : 0
        let digits = String(characters[position...].prefix(count))
        guard count > 0, digits.count == count, digits.allSatisfy(\.isHexDigit),
            let scalar = UInt32(digits, radix: 16).flatMap(Unicode.Scalar.init)
        else { throw error("'\\\(character)' is no escape of TOML") }
        position += count
        return scalar
    }
}
