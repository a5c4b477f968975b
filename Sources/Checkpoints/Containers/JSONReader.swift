/// A strict JSON pull parser for headers that may be hostile: it keeps only what is asked for.

import Ground

/// Reads one JSON text from start to end. Nesting, and thus recursion, is limited.
struct JSONReader {
    struct Failure: Error, Equatable {
        let reason: String
        let position: Int
    }

    static let maximumDepth = 32
    private var reader: ByteReader
    private var depth = 0

    init(_ bytes: UnsafeRawBufferPointer) { reader = ByteReader(bytes) }

    private func fail(_ reason: String) -> Failure {
        Failure(reason: reason, position: reader.position)
    }

    private var next: UInt8? {
        reader.remaining > 0 ? reader.bytes[reader.position] : nil
    }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D {
            _ = reader.take(1)
        }
    }

    private mutating func skip(_ character: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: character) else { return false }
        _ = reader.take(1)
        return true
    }

    private mutating func expect(_ character: Unicode.Scalar) throws(Failure) {
        guard skip(character) else { throw fail("'\(character)' expected") }
    }

    /// Checks that only white space follows.
    mutating func end() throws(Failure) {
        skipSpace()
        guard reader.remaining == 0 else { throw fail("text after the end") }
    }

    /// Reads an object; `member` must read the value of the given key. A key may occur only once.
    mutating func object(
        _ member: (_ key: String, inout JSONReader) throws(Failure) -> Void
    ) throws(Failure) {
        try enter("{")
        defer { depth -= 1 }
        if skip("}") { return }
        var keys: Set<String> = []
        repeat {
            let key = try string()
            guard keys.insert(key).inserted else { throw fail("the key '\(key)' occurs twice") }
            try expect(":")
            try member(key, &self)
        } while skip(",")
        try expect("}")
    }

    /// Reads an array; `element` must read one value.
    mutating func array(_ element: (inout JSONReader) throws(Failure) -> Void) throws(Failure) {
        try enter("[")
        defer { depth -= 1 }
        if skip("]") { return }
        repeat { try element(&self) } while skip(",")
        try expect("]")
    }

    private mutating func enter(_ character: Unicode.Scalar) throws(Failure) {
        try expect(character)
        guard depth < Self.maximumDepth else { throw fail("nested too deeply") }
        depth += 1
    }

    /// Reads a whole number in 0 ... Int.max.
    mutating func count() throws(Failure) -> Int {
        skipSpace()
        var value = 0
        let start = reader.position
        while let byte = next, byte >= 0x30, byte <= 0x39 {
            let (scaled, overflowed) = value.multipliedReportingOverflow(by: 10)
            let (sum, overflowedAgain) = scaled.addingReportingOverflow(Int(byte - 0x30))
            guard !overflowed, !overflowedAgain else { throw fail("the number is too large") }
            value = sum
            _ = reader.take(1)
        }
        let digits = reader.position - start
        guard digits > 0, digits == 1 || reader.bytes[start] != 0x30,
            next != UInt8(ascii: "."), next != UInt8(ascii: "e"), next != UInt8(ascii: "E")
        else { throw fail("a whole number, 0 or more, expected") }
        return value
    }

    mutating func string() throws(Failure) -> String {
        try expect("\"")
        let start = reader.position
        var isPlain = true
        while let byte = next, byte != UInt8(ascii: "\"") {
            guard byte >= 0x20 else { throw fail("a control character in a string") }
            if byte == UInt8(ascii: "\\") {
                isPlain = false
                _ = reader.take(1)
            }
            guard reader.take(1) != nil else { throw fail("an unterminated string") }
        }
        let range = start..<reader.position
        try expect("\"")
        if isPlain {
            guard let text = reader.text(range) else { throw fail("a string that is not UTF-8") }
            return text
        }
        return try unescaped(range)
    }

    private func unescaped(_ range: Range<Int>) throws(Failure) -> String {
        var inner = ByteReader(reader.slice(range))
        var bytes: [UInt8] = []
        bytes.reserveCapacity(range.count)
        func hex() throws(Failure) -> UInt32 {
            guard let digits = inner.take(4), let text = inner.text(digits),
                text.utf8.allSatisfy({ $0 != UInt8(ascii: "+") && $0 != UInt8(ascii: "-") }),
                let value = UInt32(text, radix: 16)
            else { throw fail("a bad \\u escape") }
            return value
        }
        while let byte = inner.integer(UInt8.self) {
            guard byte == UInt8(ascii: "\\") else {
                bytes.append(byte)
                continue
            }
            switch inner.integer(UInt8.self) {
            case UInt8(ascii: "n"): bytes.append(0x0A)
            case UInt8(ascii: "t"): bytes.append(0x09)
            case UInt8(ascii: "r"): bytes.append(0x0D)
            case UInt8(ascii: "b"): bytes.append(0x08)
            case UInt8(ascii: "f"): bytes.append(0x0C)
            case let same? where [0x22, 0x5C, 0x2F].contains(same): bytes.append(same)
            case UInt8(ascii: "u"):
                var value = try hex()
                if value & 0xFC00 == 0xD800 {
                    guard inner.integer(UInt8.self) == UInt8(ascii: "\\"),
                        inner.integer(UInt8.self) == UInt8(ascii: "u")
                    else { throw fail("half of a surrogate pair") }
                    let low = try hex()
                    guard low & 0xFC00 == 0xDC00 else { throw fail("half of a surrogate pair") }
                    value = 0x10000 + (value & 0x3FF) << 10 + (low & 0x3FF)
                }
                guard let scalar = Unicode.Scalar(value) else {
                    throw fail("half of a surrogate pair")
                }
                bytes.append(contentsOf: Character(scalar).utf8)
            default: throw fail("an unknown escape")
            }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw fail("a string that is not UTF-8")
        }
        return text
    }

    /// Reads a value of any kind and drops it.
    mutating func skipValue() throws(Failure) {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): try object { _, reader throws(Failure) in try reader.skipValue() }
        case UInt8(ascii: "["): try array { reader throws(Failure) in try reader.skipValue() }
        case UInt8(ascii: "\""): _ = try string()
        default: _ = try word()
        }
    }

    /// Reads a value of any kind.
    mutating func value() throws(Failure) -> JSONValue {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"):
            var members: [String: JSONValue] = [:]
            try object { key, reader throws(Failure) in members[key] = try reader.value() }
            return .object(members)
        case UInt8(ascii: "["):
            var list: [JSONValue] = []
            try array { reader throws(Failure) in list.append(try reader.value()) }
            return .list(list)
        case UInt8(ascii: "\""): return .text(try string())
        default: return try word()
        }
    }

    /// Reads true, false, null or a number.
    private mutating func word() throws(Failure) -> JSONValue {
        let start = reader.position
        while let byte = next, ![0x2C, 0x5D, 0x7D, 0x20, 0x09, 0x0A, 0x0D].contains(byte) {
            _ = reader.take(1)
        }
        let text = reader.text(start..<reader.position) ?? ""
        switch text {
        case "true": return .bool(true)
        case "false": return .bool(false)
        case "null": return .null
        default:
            guard text.utf8.allSatisfy({ "+-.0123456789eE".utf8.contains($0) }),
                let number = Double(text), number.isFinite
            else { throw fail("a value expected") }
            return .number(number)
        }
    }
}

/// A whole, small JSON text: configurations in headers and in files of their own.
enum JSONValue: Equatable {
    case null
    case bool(Bool)
    case number(Double)
    case text(String)
    case list([JSONValue])
    case object([String: JSONValue])

    /// nil if the text is not JSON.
    init?(parsing text: [UInt8]) {
        let value = text.withUnsafeBytes { bytes -> JSONValue? in
            var reader = JSONReader(bytes)
            do throws(JSONReader.Failure) {
                let value = try reader.value()
                try reader.end()
                return value
            } catch {
                return nil
            }
        }
        guard let value else { return nil }
        self = value
    }

    var number: Double? { if case .number(let number) = self { number } else { nil } }
    var bool: Bool? { if case .bool(let bool) = self { bool } else { nil } }
    var text: String? { if case .text(let text) = self { text } else { nil } }
    var object: [String: JSONValue]? {
        if case .object(let members) = self { members } else { nil }
    }
    /// A member of an object; nil if this is not an object.
    subscript(_ key: String) -> JSONValue? {
        if case .object(let members) = self { members[key] } else { nil }
    }
}
