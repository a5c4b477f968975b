// What a tokenizer file says, whichever format it has.

import Glibc

/// A special token that is matched in the text as it was typed, before any normalization.
struct SpecialToken: Equatable, Sendable {
    var content: String
    var id: Int32
    /// Whether white space before (after) the token belongs to it.
    var takesSpaceBefore = false
    var takesSpaceAfter = false
}

/// One step of the normalization of the text between special tokens.
enum NormalizationStep: Sendable {
    /// The compiled character map of SentencePiece.
    case characterMap(CharacterMap)
    case strip(left: Bool, right: Bool)
    /// Two or more spaces in a row by `replacement`.
    case replaceSpaces(replacement: String)
    case replace(literal: String, replacement: String)
}

/// How the normalized text becomes words.
struct Metaspace: Equatable, Sendable {
    enum Prepend: Equatable, Sendable { case always, first, never }

    /// U+2581, what a space is written as in the pieces.
    static let mark: [UInt8] = [0xE2, 0x96, 0x81]

    var prepend = Prepend.always
    /// Whether a piece never spans two words.
    var splits = true
}

/// The contents of `tokenizer.json` or of a SentencePiece `.model`, checked.
struct TokenizerFile: Sendable {
    var pieces: [(piece: String, score: Double)]
    var unknownID: Int32
    var byteFallback: Bool
    var specialTokens: [SpecialToken]
    var normalization: [NormalizationStep]
    var metaspace: Metaspace?

    /// Reads `path`; a file that begins with `{` is JSON, which no SentencePiece model does.
    static func read(_ path: String) throws(TokenizerError) -> TokenizerFile {
        let bytes = try contents(of: path)
        let first = bytes.first { !Array(" \t\r\n".utf8).contains($0) }
        var file =
            first == UInt8(ascii: "{")
            ? try HuggingFaceTokenizer.read(bytes, path: path)
            : try SentencePieceModel.read(bytes, path: path)
        if let bad = file.pieces.firstIndex(where: { !$0.score.isFinite }) {
            throw TokenizerError(
                .malformed, file: path, expected: "finite scores",
                found: "\(file.pieces[bad].score) for piece \(bad)")
        }
        guard file.pieces.indices.contains(Int(file.unknownID)) else {
            throw TokenizerError(
                .malformed, file: path,
                expected: "an unknown token among \(file.pieces.count) pieces",
                found: "id \(file.unknownID)")
        }
        file.specialTokens.removeAll { $0.content.isEmpty }
        return file
    }

    /// All bytes of the file at `path`.
    static func contents(of path: String) throws(TokenizerError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw unreadable(path) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw unreadable(path) }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw TokenizerError(
                .unreadable, file: path, expected: "a file", found: "a directory or device")
        }
        // The largest tokenizers in use have some 30 MB.
        guard status.st_size <= sizeLimit else {
            throw TokenizerError(
                .unsupported, file: path, expected: "a tokenizer of at most \(sizeLimit) bytes",
                found: "\(status.st_size) bytes")
        }
        var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
        var filled = 0
        while filled < bytes.count {
            let count = bytes.withUnsafeMutableBytes { buffer in
                Glibc.read(descriptor, buffer.baseAddress! + filled, buffer.count - filled)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                throw TokenizerError(
                    .unreadable, file: path, expected: "\(bytes.count) bytes",
                    found: "the end after \(filled)")
            }
            filled += count
        }
        return bytes
    }

    private static let sizeLimit = 1 << 28

    private static func unreadable(_ path: String) -> TokenizerError {
        TokenizerError(
            .unreadable, file: path, expected: "a readable tokenizer file",
            found: String(cString: strerror(errno)))
    }
}
