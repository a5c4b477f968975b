// What can be wrong with a tokenizer file.

import Ground

/// A tokenizer file that cannot be used: which file, what was expected and what was found.
public struct TokenizerError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// The file could not be read.
        case unreadable
        /// The file is damaged, or not what its first bytes promise.
        case malformed
        /// The file is sound, but asks for something this tokenizer does not do.
        case unsupported
    }

    public let kind: Kind
    /// The path as it was given.
    public let file: String
    public let expected: String
    public let found: String

    init(_ kind: Kind, file: String, expected: String, found: String) {
        self.kind = kind
        self.file = file
        self.expected = expected
        self.found = found
    }

    /// On one line, without control characters: much of it is what the file says.
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
