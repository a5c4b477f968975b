// What can be wrong with a tokenizer file.

import Ground

/// A tokenizer file that cannot be used: which file, what was expected and what was found.
public struct TokenizerError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// The file could not be read.
        case unreadable
        /// The file is damaged, or not of the format that its first bytes indicate.
        case malformed
        /// The file is valid, but asks for something that this tokenizer does not do.
        case unsupported
    }

    public let kind: Kind
    /// The path of the file, as given.
    public let file: String
    public let expected: String
    public let found: String

    init(_ kind: Kind, file: String, expected: String, found: String) {
        self.kind = kind
        self.file = file
        self.expected = expected
        self.found = found
    }

    /// One line without control characters, as much of it may come from the file.
    public var description: String {
        let advice =
            switch kind {
            case .unreadable: "Check the path and its permissions."
            case .malformed: "The file may be truncated: copy or download it again."
            case .unsupported: "Use the tokenizer files that came with the text encoder."
            }
        return "\(file): expected \(expected), found \(found). \(advice)".printable
    }
}
