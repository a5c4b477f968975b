// The contents of a tokenizer file, independent of its format.

import Ground
import SystemPackage

/// A special token, which is matched in the text before any normalization.
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
    /// Replaces two or more spaces in a row.
    case replaceSpaces(replacement: String)
    case replace(literal: String, replacement: String)

    /// By which factor a text can become longer.
    var growth: Double {
        switch self {
        case .characterMap(let map): Double(max(1, map.longestReplacement))
        case .strip: 1
        case .replaceSpaces(let replacement): max(1, Double(replacement.utf8.count) / 2)
        case .replace(let literal, let replacement):
            max(1, Double(replacement.utf8.count) / Double(literal.utf8.count))
        }
    }
}

/// How the normalized text is split into words.
struct Metaspace: Equatable, Sendable {
    enum Prepend: Equatable, Sendable { case always, first, never }

    /// U+2581, which stands for a space in the pieces.
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

    /// Reads `path`. A file that begins with `{` is JSON: no SentencePiece model does.
    static func read(_ path: String) throws(TokenizerError) -> TokenizerFile {
        try read(try contents(of: path), path: path)
    }

    /// - Parameter path: the file that `bytes` are from; the configuration of a SentencePiece model is looked for beside it.
    static func read(_ bytes: [UInt8], path: String) throws(TokenizerError) -> TokenizerFile {
        let first = bytes.first { !Array(" \t\r\n".utf8).contains($0) }
        var file =
            first == UInt8(ascii: "{")
            ? try HuggingFaceTokenizer.read(bytes, path: path)
            : try SentencePieceModel.read(bytes, path: path)
        file.specialTokens.removeAll { $0.content.isEmpty }
        try file.check(path)
        return file
    }

    /// In bytes. Pieces and special tokens of real tokenizers are not a quarter as long. The limit matters because time
    /// grows with the longest one: each place of a text may be compared with it.
    private static let longestPiece = 512
    /// The normalization of umT5 has three steps and makes no text more than 66 times as long.
    private static let stepLimit = 16
    private static let growthLimit = 256.0

    /// Refuses files that would lead to ids outside the vocabulary, or to time and memory out of proportion to the text.
    private func check(_ path: String) throws(TokenizerError) {
        func refuse(_ expected: String, _ found: String) -> TokenizerError {
            TokenizerError(.malformed, file: path, expected: expected, found: found)
        }
        if let bad = pieces.firstIndex(where: { !$0.score.isFinite }) {
            throw refuse("finite scores", "\(pieces[bad].score) for piece \(bad)")
        }
        guard pieces.indices.contains(Int(unknownID)) else {
            throw refuse("an unknown token among \(pieces.count) pieces", "id \(unknownID)")
        }
        if let bad = specialTokens.first(where: { $0.id < 0 }) {
            throw refuse("ids from 0 on", "\(bad.id) for the special token '\(bad.content)'")
        }
        let longest = max(
            pieces.map(\.piece.utf8.count).max() ?? 0,
            specialTokens.map(\.content.utf8.count).max() ?? 0)
        guard longest <= Self.longestPiece else {
            throw refuse("pieces of at most \(Self.longestPiece) bytes", "one of \(longest)")
        }
        guard normalization.count <= Self.stepLimit else {
            throw refuse(
                "at most \(Self.stepLimit) steps of normalization", "\(normalization.count)")
        }
        let growth = normalization.reduce(1) { $0 * $1.growth }
        guard growth <= Self.growthLimit else {
            throw refuse(
                "a normalization that makes no text more than \(Int(Self.growthLimit)) times as long",
                "one that can make it \(growth) times as long")
        }
    }

    /// All bytes of the file at `path`.
    static func contents(of path: String) throws(TokenizerError) -> [UInt8] {
        let file: MappedFile
        do { file = try MappedFile(FilePath(path)) } catch {
            throw TokenizerError(
                .unreadable, file: path, expected: "a readable file", found: error.reason)
        }
        // The largest tokenizers in use have about 30 MB.
        guard file.bytes.count <= sizeLimit else {
            throw TokenizerError(
                .unsupported, file: path, expected: "a tokenizer of at most \(sizeLimit) bytes",
                found: "\(file.bytes.count) bytes")
        }
        return Array(file.bytes)
    }

    private static let sizeLimit = 1 << 26
}
