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
            return "\(place(context.codingPath)) is of another type, expected \(type)"
        case .dataCorrupted(let context):
            // Decoders do not tell the place of a number that its type cannot hold.
            return context.codingPath.isEmpty
                ? "it is not JSON, or a number in it is too large, or not whole where it should be"
                : "\(place(context.codingPath)): \(context.debugDescription)"
        @unknown default: return "\(self)"
        }
    }
}
