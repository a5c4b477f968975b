/// The body of a request, whatever its type, as one object of fields.

import Ground

/// A field's value: JSON, or a file of a form.
enum FieldValue: Sendable, Hashable {
    case json(JSON)
    case file([UInt8])
}

/// Fields by name. `a[b]=1` of a form is as `{"a": {"b": "1"}}`, and `a[]=1` as `{"a": ["1"]}`.
struct Body: Sendable, Hashable {
    var fields: [String: FieldValue] = [:]

    /// - Throws: `APIError` for a type that is none of the three, and for bytes that are not what the type says.
    init(_ bytes: [UInt8], contentType: String?) throws(APIError) {
        let type = contentType?.split(separator: ";").first?.trimmed.lowercased() ?? ""
        if let contentType, let boundary = Multipart.boundary(of: contentType) {
            for part in try Multipart.parts(bytes, boundary: boundary) {
                if part.filename != nil {
                    try add(file: part.bytes, to: part.name)
                } else {
                    try add(text: try Self.text(part.bytes, part.name), to: part.name)
                }
            }
        } else if type == "application/x-www-form-urlencoded" {
            for pair in bytes.split(separator: 0x26) where !pair.isEmpty {
                let sides = pair.split(
                    separator: 0x3D, maxSplits: 1, omittingEmptySubsequences: false)
                let name = try Self.text(percentDecoded(sides[0], plusIsSpace: true), "a name")
                let value = sides.count > 1 ? percentDecoded(sides[1], plusIsSpace: true) : []
                try add(text: try Self.text(value, name), to: name)
            }
        } else if type == "application/json" || type.hasSuffix("+json")
            || (type.isEmpty && !bytes.isEmpty)
        {
            guard let json = try? JSON(parsing: bytes) else {
                throw .invalid("invalid_body", "the body is not JSON")
            }
            guard case .object(let members) = json else {
                throw .invalid("invalid_body", "the body must be a JSON object")
            }
            fields = members.mapValues(FieldValue.json)
        } else if !bytes.isEmpty {
            throw .invalid(
                "invalid_body",
                "expected a body of application/json, multipart/form-data or application/x-www-form-urlencoded, not "
                    + (type.isEmpty ? "without a type" : type))
        }
        try spreadContainers()
    }

    /// Fields that hold further fields: what is said outside of them wins.
    private mutating func spreadContainers() throws(APIError) {
        for name in ["extra_body", "extra_params", "video_params"] {
            guard let value = fields.removeValue(forKey: name) else { continue }
            var json = value
            // A form has them as text.
            if case .json(.string(let text)) = value,
                let parsed = try? JSON(parsing: Array(text.utf8))
            {
                json = .json(parsed)
            }
            switch json {
            case .json(.object(let members)):
                for (key, value) in members where fields[key] == nil { fields[key] = .json(value) }
            case .json(.null): break
            default: throw .value(name, "something else", expected: "an object of fields")
            }
        }
    }

    private mutating func add(file: [UInt8], to name: String) throws(APIError) {
        guard fields[name] == nil else { throw Self.twice(name) }
        fields[name] = .file(file)
    }

    private mutating func add(text: String, to name: String) throws(APIError) {
        guard let bracket = name.firstIndex(of: "["), name.hasSuffix("]"),
            bracket != name.startIndex
        else {
            guard fields[name] == nil else { throw Self.twice(name) }
            fields[name] = .json(.string(text))
            return
        }
        let base = String(name[..<bracket])
        let inner = String(name[name.index(after: bracket)...].dropLast())
        guard !inner.contains("]") else {
            throw .invalid("unknown_field", "no field has the form of '\(name)'", param: name)
        }
        switch (fields[base], inner) {
        case (nil, ""): fields[base] = .json([.string(text)])
        case (.json(.array(let values)), ""): fields[base] = .json(.array(values + [.string(text)]))
        case (nil, _): fields[base] = .json(.object([inner: .string(text)]))
        case (.json(.object(var members)), _) where members[inner] == nil:
            members[inner] = .string(text)
            fields[base] = .json(.object(members))
        default: throw Self.twice(name)
        }
    }

    private static func twice(_ name: String) -> APIError {
        .invalid("invalid_body", "'\(name)' is given twice", param: name)
    }

    private static func text(_ bytes: [UInt8], _ name: String) throws(APIError) -> String {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw .invalid("invalid_body", "\(name) is not UTF-8", param: name)
        }
        return text
    }
}

/// `%41` is `A`, and in forms `+` a space.
func percentDecoded(_ bytes: some Collection<UInt8>, plusIsSpace: Bool) -> [UInt8] {
    func digit(_ byte: UInt8) -> UInt8? {
        Character(UnicodeScalar(byte)).hexDigitValue.map { UInt8($0) }
    }
    let bytes = Array(bytes)
    var result: [UInt8] = []
    var index = 0
    while index < bytes.count {
        let byte = bytes[index]
        if byte == 0x25, index + 2 < bytes.count, let high = digit(bytes[index + 1]),
            let low = digit(bytes[index + 2])
        {
            result.append(high << 4 | low)
            index += 3
        } else {
            result.append(byte == 0x2B && plusIsSpace ? 0x20 : byte)
            index += 1
        }
    }
    return result
}

/// Of a part of a path.
func percentDecoded(_ text: String) -> String {
    String(decoding: percentDecoded(text.utf8, plusIsSpace: false), as: UTF8.self)
}
