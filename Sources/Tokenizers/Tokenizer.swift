// The tokenizer of umT5: cleaned text to token ids.

import Ground

/// A prompt as the text encoder takes it.
public struct Tokens: Equatable, Sendable {
    /// The prompt, `</s>` and padding: as many ids as were asked for.
    public let ids: [Int32]
    /// How many of `ids` are the prompt and `</s>`.
    public let count: Int
    /// How many tokens of the prompt did not fit.
    public let dropped: Int

    init(ids: [Int32], count: Int, dropped: Int) {
        self.ids = ids
        self.count = count
        self.dropped = dropped
    }

    /// A prompt of known ids, without padding.
    public init(_ ids: [Int32]) { self.init(ids: ids, count: ids.count, dropped: 0) }
}

/// A unigram tokenizer whose special tokens, normalization and word splitting work like those of
/// Hugging Face's fast tokenizers.
public struct Tokenizer: Sendable {
    private let specialTokens: [SpecialToken]
    private let specialTrie: ByteTrie
    private let normalization: [NormalizationStep]
    private let metaspace: Metaspace?
    private let model: Unigram
    public let padID: Int32
    public let endID: Int32
    /// One more than the largest id of pieces and special tokens.
    public let vocabularySize: Int

    /// Reads a `tokenizer.json` or a SentencePiece `.model`.
    /// - Throws: ``TokenizerError`` for a file that cannot be read, is damaged or is not supported.
    public init(path: String) throws(TokenizerError) {
        try self.init(try TokenizerFile.read(path), path: path)
    }

    init(_ file: TokenizerFile, path: String) throws(TokenizerError) {
        var contents = ByteStrings()
        for token in file.specialTokens { contents.append(token.content.utf8) }
        specialTokens = file.specialTokens
        specialTrie = ByteTrie(contents)
        normalization = file.normalization
        metaspace = file.metaspace
        model = Unigram(
            pieces: file.pieces, unknownID: file.unknownID, byteFallback: file.byteFallback)
        func id(of content: String) -> Int32? {
            file.specialTokens.first { $0.content == content }?.id
                ?? file.pieces.firstIndex { $0.piece == content }.map { Int32($0) }
        }
        guard let end = id(of: "</s>") else {
            throw TokenizerError(
                .unsupported, file: path, expected: "a token </s>", found: "none")
        }
        endID = end
        padID = id(of: "<pad>") ?? 0
        vocabularySize = max(
            file.pieces.count, 1 + Int(file.specialTokens.map(\.id).max() ?? -1))
    }

    /// Cleans `prompt` and encodes it as `length` tokens: at most `length - 1` of the prompt, `</s>`, padding.
    public func encode(prompt: String, length: Int = 512) -> Tokens {
        ensure(length > 0, "encode: a length of \(length)")
        let all = ids(PromptCleaner.clean(prompt))
        let kept = all.prefix(length - 1) + [endID]
        return Tokens(
            ids: kept + [Int32](repeating: padID, count: length - kept.count), count: kept.count,
            dropped: max(0, all.count - (length - 1)))
    }

    /// The ids of `text`, not cleaned and without `</s>`. Takes time linear in its length.
    public func ids(_ text: String) -> [Int32] {
        let bytes = Array(text.utf8)
        var ids: [Int32] = []
        var segmentStart = 0
        var index = 0
        while index < bytes.count {
            guard let match = specialTrie.longestMatch(in: bytes, at: index) else {
                index += 1
                continue
            }
            let token = specialTokens[Int(match.value)]
            var segmentEnd = index
            if token.takesSpaceBefore {
                while segmentEnd > segmentStart, Self.isSpace(bytes[segmentEnd - 1]) {
                    segmentEnd -= 1
                }
            }
            encode(bytes[segmentStart..<segmentEnd], isFirst: segmentStart == 0, into: &ids)
            ids.append(token.id)
            index = match.end
            if token.takesSpaceAfter {
                while index < bytes.count, Self.isSpace(bytes[index]) { index += 1 }
            }
            segmentStart = index
        }
        encode(bytes[segmentStart...], isFirst: segmentStart == 0, into: &ids)
        return ids
    }

    /// Encodes the text between two special tokens.
    private func encode(_ segment: ArraySlice<UInt8>, isFirst: Bool, into ids: inout [Int32]) {
        guard !segment.isEmpty else { return }
        var text = Array(segment)
        for step in normalization { text = step.apply(text) }
        guard !text.isEmpty else { return }
        guard let metaspace else { return model.encode(text[...], into: &ids) }

        let mark = Metaspace.mark
        text = replacing([0x20], by: mark, in: text)
        let prepends =
            switch metaspace.prepend {
            case .always: true
            case .first: isFirst
            case .never: false
            }
        if prepends, !text.starts(with: mark) { text.insert(contentsOf: mark, at: 0) }
        guard metaspace.splits else { return model.encode(text[...], into: &ids) }
        // A word reaches from one mark to the next.
        var start = 0
        for index in text.indices
        where index > start && text[index] == mark[0] && text[index...].starts(with: mark) {
            model.encode(text[start..<index], into: &ids)
            start = index
        }
        model.encode(text[start...], into: &ids)
    }

    private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (9...13).contains(byte) }
}

extension NormalizationStep {
    /// text: UTF-8
    func apply(_ text: [UInt8]) -> [UInt8] {
        switch self {
        case .characterMap(let map):
            return map.normalize(text)
        case .strip(let left, let right):
            var scalars = Array(String(decoding: text, as: UTF8.self).unicodeScalars)[...]
            if left { scalars = scalars.drop { $0.properties.isWhitespace } }
            if right {
                while let last = scalars.last, last.properties.isWhitespace { scalars.removeLast() }
            }
            return Array(String(String.UnicodeScalarView(scalars)).utf8)
        case .replaceSpaces(let replacement):
            return Self.replacingSpaces(in: text, by: Array(replacement.utf8))
        case .replace(let literal, let replacement):
            return replacing(Array(literal.utf8), by: Array(replacement.utf8), in: text)
        }
    }

    /// Every run of two or more spaces becomes one `replacement`.
    private static func replacingSpaces(in text: [UInt8], by replacement: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(text.count)
        var index = 0
        while index < text.count {
            var end = index
            while end < text.count, text[end] == 0x20 { end += 1 }
            if end - index >= 2 {
                result += replacement
                index = end
            } else {
                result.append(text[index])
                index += 1
            }
        }
        return result
    }
}

/// `text` with every occurrence of `pattern`, from left to right, replaced.
private func replacing(_ pattern: [UInt8], by replacement: [UInt8], in text: [UInt8]) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(text.count + text.count / 4)
    var index = 0
    while index < text.count {
        if text[index] == pattern[0], text[index...].starts(with: pattern) {
            result += replacement
            index += pattern.count
        } else {
            result.append(text[index])
            index += 1
        }
    }
    return result
}
