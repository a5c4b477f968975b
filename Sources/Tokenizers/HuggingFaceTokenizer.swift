// Reads Hugging Face tokenizer files (`tokenizer.json`, `tokenizer_config.json`).

import FoundationEssentials

/// `tokenizer.json` of a unigram model: vocabulary, special tokens, normalizer and pre-tokenizer.
/// Components that T5, mT5 and umT5 do not use are refused by name.
/// Source: https://github.com/huggingface/tokenizers/tree/v0.21.0/tokenizers/src
enum HuggingFaceTokenizer {
    static func read(_ bytes: [UInt8], path: String) throws(TokenizerError) -> TokenizerFile {
        let file = try decode(Contents.self, bytes, path, expecting: "a Hugging Face tokenizer")
        guard file.model.type ?? "Unigram" == "Unigram" else {
            throw unsupported(path, "a Unigram model", "\(file.model.type ?? "none")")
        }
        guard let unknown = file.model.unk_id.flatMap(Int32.init(exactly:)) else {
            throw unsupported(path, "a model with an unk_id", "none")
        }
        return TokenizerFile(
            pieces: file.model.vocab.map { ($0.piece, $0.score) }, unknownID: unknown,
            byteFallback: file.model.byte_fallback ?? false,
            specialTokens: (file.added_tokens ?? []).map { token in
                SpecialToken(
                    content: token.content, id: token.id, takesSpaceBefore: token.lstrip ?? false,
                    takesSpaceAfter: token.rstrip ?? false)
            },
            normalization: try steps(of: file.normalizer, path),
            metaspace: try metaspace(of: file.pre_tokenizer, path))
    }

    fileprivate static func decode<T: Decodable>(
        _ type: T.Type, _ bytes: [UInt8], _ path: String, expecting expected: String
    ) throws(TokenizerError) -> T {
        do {
            return try JSONDecoder().decode(type, from: Data(bytes))
        } catch {
            throw TokenizerError(.malformed, file: path, expected: expected, found: summary(error))
        }
    }

    private static func summary(_ error: any Error) -> String {
        func place(_ context: DecodingError.Context) -> String {
            let keys = context.codingPath.map { $0.intValue.map(String.init) ?? $0.stringValue }
            return keys.isEmpty ? "the top level" : keys.joined(separator: ".")
        }
        switch error {
        case DecodingError.keyNotFound(let key, let context):
            return "no '\(key.stringValue)' at \(place(context))"
        case DecodingError.typeMismatch(let type, let context),
            DecodingError.valueNotFound(let type, let context):
            return "no \(type) at \(place(context))"
        case DecodingError.dataCorrupted(let context):
            return "damaged JSON at \(place(context))"
        default:
            return "\(error)"
        }
    }

    private static func steps(
        of normalizer: Contents.Normalizer?, _ path: String
    ) throws(TokenizerError) -> [NormalizationStep] {
        guard let normalizer else { return [] }
        switch normalizer.type {
        case "Sequence":
            var all: [NormalizationStep] = []
            for part in normalizer.normalizers ?? [] { all += try steps(of: part, path) }
            return all
        case "Precompiled":
            // A map of zero bytes means no map.
            guard let blob = normalizer.precompiled_charsmap, !blob.isEmpty else { return [] }
            guard let map = CharacterMap([UInt8](blob)) else {
                throw TokenizerError(
                    .malformed, file: path, expected: "a complete precompiled_charsmap",
                    found: "\(blob.count) bytes")
            }
            return [.characterMap(map)]
        case "Strip":
            return [
                .strip(left: normalizer.strip_left ?? true, right: normalizer.strip_right ?? true)
            ]
        case "Replace":
            let replacement = normalizer.content ?? ""
            if normalizer.pattern?.Regex == " {2,}" {
                return [.replaceSpaces(replacement: replacement)]
            }
            guard let literal = normalizer.pattern?.String, !literal.isEmpty else {
                throw unsupported(
                    path, "a Replace normalizer for ' {2,}' or a literal",
                    "the pattern '\(normalizer.pattern?.Regex ?? "")'")
            }
            return [.replace(literal: literal, replacement: replacement)]
        default:
            throw unsupported(
                path, "the normalizers Sequence, Precompiled, Strip and Replace", normalizer.type)
        }
    }

    private static func metaspace(
        of splitter: Contents.PreTokenizer?, _ path: String
    ) throws(TokenizerError) -> Metaspace? {
        guard let splitter else { return nil }
        guard splitter.type == "Metaspace", splitter.replacement ?? "\u{2581}" == "\u{2581}" else {
            throw unsupported(path, "the pre-tokenizer Metaspace", splitter.type)
        }
        var metaspace = Metaspace()
        metaspace.splits = splitter.split ?? true
        // Before tokenizers 0.15 there was only the flag.
        switch splitter.prepend_scheme ?? (splitter.add_prefix_space ?? true ? "always" : "never") {
        case "always": metaspace.prepend = .always
        case "first": metaspace.prepend = .first
        case "never": metaspace.prepend = .never
        case let scheme:
            throw unsupported(path, "a prepend_scheme of always, first or never", scheme)
        }
        return metaspace
    }

    private static func unsupported(_ path: String, _ expected: String, _ found: String)
        -> TokenizerError
    {
        TokenizerError(.unsupported, file: path, expected: expected, found: found)
    }

    /// The parts of the file that are read, under the file's own names.
    private struct Contents: Decodable {
        struct Model: Decodable {
            var type: String?
            var unk_id: Int?
            var byte_fallback: Bool?
            var vocab: [Entry]
        }
        /// `["piece", score]`
        struct Entry: Decodable {
            let piece: String
            let score: Double
            init(from decoder: any Decoder) throws {
                var pair = try decoder.unkeyedContainer()
                piece = try pair.decode(String.self)
                score = try pair.decode(Double.self)
            }
        }
        struct AddedToken: Decodable {
            var id: Int32
            var content: String
            var lstrip, rstrip: Bool?
        }
        struct Normalizer: Decodable {
            struct Pattern: Decodable { var Regex, String: String? }
            var type: String
            var normalizers: [Normalizer]?
            var precompiled_charsmap: Data?
            var strip_left, strip_right: Bool?
            var pattern: Pattern?
            var content: String?
        }
        struct PreTokenizer: Decodable {
            var type: String
            var replacement, prepend_scheme: String?
            var add_prefix_space, split: Bool?
        }
        var added_tokens: [AddedToken]?
        var normalizer: Normalizer?
        var pre_tokenizer: PreTokenizer?
        var model: Model
    }
}

/// `tokenizer_config.json`: the special tokens that a SentencePiece model beside it lacks
/// (`<extra_id_0>` … of the T5 family).
enum HuggingFaceConfig {
    private struct Contents: Decodable {
        struct Token: Decodable {
            var content: String
            var lstrip, rstrip: Bool?
        }
        var added_tokens_decoder: [String: Token]?
    }

    /// Adds the tokens listed in `path` to the special tokens of `file`.
    static func extend(_ file: inout TokenizerFile, from path: String) throws(TokenizerError) {
        let config = try HuggingFaceTokenizer.decode(
            Contents.self, try TokenizerFile.contents(of: path), path,
            expecting: "a Hugging Face tokenizer configuration")
        var known = Set(file.specialTokens.map(\.content))
        // In order of ids: of equal tokens the first one counts.
        let tokens = (config.added_tokens_decoder ?? [:]).compactMap { key, token in
            Int32(key).map { ($0, token) }
        }
        for (id, token) in tokens.sorted(by: { $0.0 < $1.0 }) {
            guard known.insert(token.content).inserted else { continue }
            file.specialTokens.append(
                SpecialToken(
                    content: token.content, id: id, takesSpaceBefore: token.lstrip ?? false,
                    takesSpaceAfter: token.rstrip ?? false))
        }
    }
}
