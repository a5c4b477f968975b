/// What a decoder refused, as a user reads it.

extension DecodingError {
    /// One line: the place in the file, and what is wrong there.
    public var line: String {
        func place(_ path: [any CodingKey]) -> String {
            path.isEmpty
                ? "it"
                : "'"
                    + path.map { $0.intValue.map(String.init) ?? $0.stringValue }
                    .joined(separator: ".") + "'"
        }
        switch self {
        case .keyNotFound(let key, let context):
            return "\(place(context.codingPath + [key])) is missing"
        case .typeMismatch(let type, let context), .valueNotFound(let type, let context):
            return "\(place(context.codingPath)) is of another type, expected \(words(type))"
        case .dataCorrupted(let context):
            // Decoders do not tell the place of a number that its type cannot hold.
            return context.codingPath.isEmpty
                ? "it is not JSON, or a number in it is too large, or not whole where it should be"
                : "\(place(context.codingPath)): \(context.debugDescription)"
        @unknown default: return "\(self)"
        }
    }
}

/// A type as a user knows it.
private func words(_ type: Any.Type) -> String {
    switch type {
    case is Bool.Type: "true or false"
    case is String.Type: "a text"
    case is any BinaryInteger.Type: "a whole number"
    case is any BinaryFloatingPoint.Type: "a number"
    default: "\(type)".hasPrefix("Array") ? "a list" : "names with values"
    }
}
