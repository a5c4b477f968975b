// Reads SentencePiece model files (`spiece.model`, `tokenizer.model`).

import Ground
import SystemPackage

/// The parts of the message `ModelProto` that a unigram tokenizer needs, and the
/// `tokenizer_config.json` beside it in Hugging Face's folders, which has special tokens that the
/// model lacks.
/// Source: https://github.com/google/sentencepiece/blob/v0.2.0/src/sentencepiece_model.proto
struct SentencePieceModel {
    private enum PieceType: UInt64 {
        case normal = 1, unknown, control, userDefined, unused, byte
    }

    private var pieces: [(piece: String, score: Double)] = []
    private var types: [UInt64] = []
    private var modelType: UInt64 = 1
    private var byteFallback = false
    private var treatsSpaceAsSuffix = false
    private var characterMap: [UInt8] = []

    /// Reads the file as transformers converts it to a fast tokenizer (`T5Converter`): the same
    /// normalization, all pieces in the lattice, control and user-defined pieces as special tokens.
    static func read(_ bytes: [UInt8], path: String) throws(TokenizerError) -> TokenizerFile {
        var model = SentencePieceModel()
        var reader = ProtobufReader(bytes, file: path)
        try model.read(&reader)
        guard !model.pieces.isEmpty else {
            throw TokenizerError(
                .malformed, file: path, expected: "a SentencePiece model or a tokenizer.json",
                found: "\(bytes.count) bytes without a piece")
        }
        guard model.modelType == 1, !model.treatsSpaceAsSuffix else {
            throw TokenizerError(
                .unsupported, file: path, expected: "a unigram model with spaces as prefixes",
                found: "model type \(model.modelType), "
                    + "spaces as suffixes \(model.treatsSpaceAsSuffix)")
        }
        guard let unknown = model.types.firstIndex(of: PieceType.unknown.rawValue) else {
            throw TokenizerError(
                .malformed, file: path, expected: "one piece of type UNKNOWN", found: "none")
        }
        var normalization: [NormalizationStep] = []
        if !model.characterMap.isEmpty {
            guard let map = CharacterMap(model.characterMap) else {
                throw TokenizerError(
                    .malformed, file: path, expected: "a complete precompiled_charsmap",
                    found: "\(model.characterMap.count) bytes")
            }
            normalization.append(.characterMap(map))
        }
        normalization.append(.strip(left: false, right: true))
        normalization.append(.replaceSpaces(replacement: "\u{2581}"))

        let special = model.types.indices.filter {
            [PieceType.control.rawValue, PieceType.userDefined.rawValue].contains(model.types[$0])
        }
        var file = TokenizerFile(
            pieces: model.pieces, unknownID: Int32(unknown), byteFallback: model.byteFallback,
            specialTokens: special.map {
                SpecialToken(content: model.pieces[$0].piece, id: Int32($0))
            },
            normalization: normalization, metaspace: Metaspace())
        let config = FilePath(path).folder.appending("tokenizer_config.json")
        if config.fileType != nil { try HuggingFaceConfig.extend(&file, from: config.string) }
        return file
    }

    private mutating func read(_ reader: inout ProtobufReader) throws(TokenizerError) {
        while let field = try reader.next() {
            switch field.number {
            case 1:
                var piece = try reader.message(field)
                try readPiece(&piece)
            case 2:
                var trainer = try reader.message(field)
                while let field = try trainer.next() {
                    switch field.number {
                    case 3: modelType = try trainer.varint(field)
                    case 24: treatsSpaceAsSuffix = try trainer.varint(field) != 0
                    case 35: byteFallback = try trainer.varint(field) != 0
                    default: try trainer.skip(field)
                    }
                }
            case 3:
                var normalizer = try reader.message(field)
                while let field = try normalizer.next() {
                    switch field.number {
                    case 2: characterMap = Array(try normalizer.bytes(field))
                    default: try normalizer.skip(field)
                    }
                }
            default:
                try reader.skip(field)
            }
        }
    }

    private mutating func readPiece(_ reader: inout ProtobufReader) throws(TokenizerError) {
        var piece = ""
        var score: Float = 0
        var type = PieceType.normal.rawValue
        while let field = try reader.next() {
            switch field.number {
            case 1: piece = try reader.string(field)
            case 2: score = try reader.float(field)
            case 3: type = try reader.varint(field)
            default: try reader.skip(field)
            }
        }
        pieces.append((piece, Double(score)))
        types.append(type)
    }
}

/// Reads the protobuf wire format; each length is checked against the bytes that are left.
/// Source: https://protobuf.dev/programming-guides/encoding/
private struct ProtobufReader {
    struct Field {
        let number: UInt64
        let wireType: UInt64
    }

    private let data: [UInt8]
    private let file: String
    private var position: Int
    private let end: Int

    init(_ data: [UInt8], file: String) {
        self.init(data, file: file, range: 0..<data.count)
    }

    private init(_ data: [UInt8], file: String, range: Range<Int>) {
        self.data = data
        self.file = file
        position = range.lowerBound
        end = range.upperBound
    }

    /// The next field's tag, or nil at the end of the message.
    mutating func next() throws(TokenizerError) -> Field? {
        guard position < end else { return nil }
        let tag = try varint()
        guard tag >> 3 > 0 else { throw malformed("a field number above 0", "tag \(tag)") }
        return Field(number: tag >> 3, wireType: tag & 7)
    }

    mutating func varint(_ field: Field) throws(TokenizerError) -> UInt64 {
        try expect(0, field)
        return try varint()
    }

    mutating func float(_ field: Field) throws(TokenizerError) -> Float {
        try expect(5, field)
        let range = try advance(by: 4)
        return Float(bitPattern: data[range].reversed().reduce(0) { $0 << 8 | UInt32($1) })
    }

    mutating func bytes(_ field: Field) throws(TokenizerError) -> ArraySlice<UInt8> {
        data[try range(field)]
    }

    mutating func string(_ field: Field) throws(TokenizerError) -> String {
        let start = position
        guard let string = String(validating: try bytes(field), as: UTF8.self) else {
            throw malformed("a piece in UTF-8", "other bytes", at: start)
        }
        return string
    }

    mutating func message(_ field: Field) throws(TokenizerError) -> ProtobufReader {
        ProtobufReader(data, file: file, range: try range(field))
    }

    mutating func skip(_ field: Field) throws(TokenizerError) {
        switch field.wireType {
        case 0: _ = try varint()
        case 1: _ = try advance(by: 8)
        case 2: _ = try range(field)
        case 5: _ = try advance(by: 4)
        default: throw malformed("a wire type of 0, 1, 2 or 5", "\(field.wireType)")
        }
    }

    private mutating func range(_ field: Field) throws(TokenizerError) -> Range<Int> {
        try expect(2, field)
        let length = try varint()
        guard let length = Int(exactly: length) else {
            throw malformed("at most \(end - position) more bytes", "a length of \(length)")
        }
        return try advance(by: length)
    }

    private mutating func varint() throws(TokenizerError) -> UInt64 {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 64, by: 7) {
            let byte = data[try advance(by: 1).lowerBound]
            value |= UInt64(byte & 0x7F) << shift
            if byte < 0x80 { return value }
        }
        throw malformed("a variable-length integer of at most 10 bytes", "a longer one")
    }

    private mutating func advance(by count: Int) throws(TokenizerError) -> Range<Int> {
        guard count <= end - position else {
            throw malformed("\(count) more bytes", "\(end - position)")
        }
        defer { position += count }
        return position..<(position + count)
    }

    private func expect(_ wireType: UInt64, _ field: Field) throws(TokenizerError) {
        guard field.wireType == wireType else {
            throw malformed(
                "wire type \(wireType) for field \(field.number)", "\(field.wireType)")
        }
    }

    private func malformed(
        _ expected: String, _ found: String, at position: Int? = nil
    ) -> TokenizerError {
        TokenizerError(
            .malformed, file: file,
            expected: "a SentencePiece model with \(expected) at byte \(position ?? self.position)",
            found: found)
    }
}
