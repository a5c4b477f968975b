/// `multipart/form-data` (RFC 7578), as HTTP clients send it.

import Glibc
import Ground

/// One part of a form.
struct FormPart: Sendable, Hashable {
    var name: String
    /// Of a part that is a file.
    var filename: String?
    var contentType: String?
    var bytes: [UInt8]
}

enum Multipart {
    /// More parts than any request has.
    static let partLimit = 256

    /// The boundary that a content type names; nil where it is another type.
    static func boundary(of contentType: String) -> String? {
        let pieces = contentType.split(separator: ";", omittingEmptySubsequences: true)
        guard pieces.first?.trimmed.lowercased() == "multipart/form-data" else { return nil }
        for piece in pieces.dropFirst() {
            guard let (name, value) = parameter(piece), name == "boundary" else { continue }
            return (1...70).contains(value.utf8.count) ? value : nil
        }
        return nil
    }

    /// - Throws: `APIError` for bytes that are no such form.
    static func parts(_ body: [UInt8], boundary: String) throws(APIError) -> [FormPart] {
        let delimiter = Array("--\(boundary)".utf8)
        guard var at = find(delimiter, in: body, from: 0), at == 0 || body[at - 1] == 0x0A else {
            throw broken("the boundary of its header is not in it")
        }
        var parts: [FormPart] = []
        while true {
            at += delimiter.count
            if body[at...].starts(with: [0x2D, 0x2D]) { return parts }
            // Padding, then the end of the line.
            while at < body.count, body[at] == 0x20 || body[at] == 0x09 { at += 1 }
            guard body[at...].starts(with: [0x0D, 0x0A]) else {
                throw broken("a boundary does not end its line")
            }
            at += 2
            guard parts.count < partLimit else {
                throw broken("it has more than \(partLimit) parts")
            }
            guard let end = find([0x0D, 0x0A] + delimiter, in: body, from: at - 2) else {
                throw broken("its last part has no end")
            }
            parts.append(try part(body, at, max(end, at)))
            at = end + 2
        }
    }

    /// The part whose lines of header begin at `start`.
    private static func part(_ body: [UInt8], _ start: Int, _ end: Int) throws(APIError) -> FormPart
    {
        var at = start
        var found = FormPart(name: "", bytes: [])
        var hasName = false
        while true {
            guard let lineEnd = find([0x0D, 0x0A], in: body, from: at), lineEnd <= end else {
                throw broken("a part has no empty line before its content")
            }
            if lineEnd == at { break }
            guard lineEnd - at <= 8192 else {
                throw broken("a line of a part's header is too long")
            }
            let line = String(decoding: body[at..<lineEnd], as: UTF8.self)
            at = lineEnd + 2
            guard let colon = line.firstIndex(of: ":") else {
                throw broken("a line of a part's header has no colon")
            }
            let value = line[line.index(after: colon)...]
            switch line[..<colon].lowercased() {
            case "content-disposition":
                for piece in pieces(value).dropFirst() {
                    guard let (name, value) = parameter(piece) else { continue }
                    if name == "name" { (found.name, hasName) = (value, true) }
                    if name == "filename" { found.filename = value }
                }
            case "content-type": found.contentType = value.trimmed
            default: break
            }
        }
        guard hasName else { throw broken("a part has no name") }
        found.bytes = at + 2 <= end ? Array(body[(at + 2)..<end]) : []
        return found
    }

    /// `; a="b;c"; d=e` by semicolons that are not quoted.
    private static func pieces(_ text: Substring) -> [Substring] {
        var pieces: [Substring] = []
        var (start, isQuoted, isEscaped) = (text.startIndex, false, false)
        for index in text.indices {
            switch text[index] {
            case _ where isEscaped: isEscaped = false
            case "\\" where isQuoted: isEscaped = true
            case "\"": isQuoted.toggle()
            case ";" where !isQuoted:
                pieces.append(text[start..<index])
                start = text.index(after: index)
            default: break
            }
        }
        return pieces + [text[start...]]
    }

    /// ` name="value"` or ` name=value`. Browsers write quotes in a value as %22, others as \".
    private static func parameter(_ piece: Substring) -> (name: String, value: String)? {
        guard let equals = piece.firstIndex(of: "=") else { return nil }
        let name = piece[..<equals].trimmed.lowercased()
        var value = piece[piece.index(after: equals)...].trimmed
        if value.count >= 2, value.first == "\"", value.last == "\"" {
            value = String(value.dropFirst().dropLast())
        }
        var text = ""
        var isEscaped = false
        for character in value {
            if character == "\\", !isEscaped {
                isEscaped = true
            } else {
                text.append(character)
                isEscaped = false
            }
        }
        return (name, text)
    }

    private static func find(_ pattern: [UInt8], in body: [UInt8], from start: Int) -> Int? {
        guard start >= 0, start <= body.count else { return nil }
        return body.withUnsafeBytes { body in
            guard let base = body.baseAddress else { return nil }
            var at = start
            while body.count - at >= pattern.count {
                let rest = body.count - pattern.count + 1 - at
                guard let found = memchr(base + at, Int32(pattern[0]), rest) else { return nil }
                at = UnsafeRawPointer(found) - base
                if memcmp(base + at, pattern, pattern.count) == 0 { return at }
                at += 1
            }
            return nil
        }
    }

    private static func broken(_ reason: String) -> APIError {
        .invalid("invalid_body", "the body is no multipart/form-data: \(reason)")
    }
}
