// Tokenizer files that nobody should have: refused in one line, in time and memory that follow the file's size.

import FoundationEssentials
import Glibc
import Testing

@testable import Tokenizers

private let folder =
    "/\(#filePath.split(separator: "/").dropLast(2).joined(separator: "/"))/Golden/tokenizer/umt5"

/// A tokenizer of a few pieces, with parts of one's own.
private func tokenizer(
    ids: [(String, Int)] = [("<pad>", 0), ("</s>", 1)], normalizers: [String] = [],
    pieces: [String] = ["a", "b"], unknown: Int = 2
) -> [UInt8] {
    let tokens = ids.map { #"{"id": \#($1), "content": "\#($0)"}"# }.joined(separator: ", ")
    let vocabulary = (["<pad>", "</s>", "<unk>", "\u{2581}"] + pieces)
        .map { #"["\#($0)", -1.5]"# }.joined(separator: ", ")
    return Array(
        """
        {"added_tokens": [\(tokens)],
         "normalizer": {"type": "Sequence", "normalizers": [\(normalizers.joined(separator: ", "))]},
         "pre_tokenizer": {"type": "Metaspace"},
         "model": {"type": "Unigram", "unk_id": \(unknown), "vocab": [\(vocabulary)]}}
        """.utf8)
}

private func replace(_ literal: String, _ content: String) -> String {
    #"{"type": "Replace", "pattern": {"String": "\#(literal)"}, "content": "\#(content)"}"#
}

@Suite("Hostile tokenizer files")
struct HostileTests {
    private func read(_ bytes: [UInt8]) throws -> TokenizerFile {
        try TokenizerFile.read(bytes, path: "tokenizer.json")
    }

    @Test("the undamaged tokenizer is read")
    func sound() throws {
        let file = try read(tokenizer(normalizers: [replace("a", "aaaa")]))
        #expect(file.pieces.count == 6)
        #expect(file.specialTokens.map(\.id) == [0, 1])
    }

    @Test("ids below 0", arguments: [-1, -2_147_483_648])
    func negativeIDs(id: Int) throws {
        #expect {
            try read(tokenizer(ids: [("<pad>", 0), ("</s>", id)]))
        } throws: { "\($0)".contains("\(id) for the special token '</s>'") }
        #expect(throws: TokenizerError.self) { try read(tokenizer(unknown: id)) }
    }

    @Test("an unknown token that is not a piece", arguments: [6, 2_147_483_647, 1 << 40])
    func unknownID(id: Int) {
        #expect(throws: TokenizerError.self) { try read(tokenizer(unknown: id)) }
    }

    @Test("normalizations that make texts too long or take too much time")
    func growth() {
        let spaces = String(repeating: "x", count: 600)
        for normalizers in [
            Array(repeating: replace("a", "aa"), count: 9),
            Array(repeating: replace("ab", "ababab"), count: 6),
            [replace("a", String(repeating: "a", count: 257))],
            [#"{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\#(spaces)"}"#],
            [#"{"type": "Precompiled", "precompiled_charsmap": "\#(characterMap(300))"}"#],
            Array(repeating: #"{"type": "Strip"}"#, count: 1000),
        ] {
            #expect("\(normalizers[0].prefix(80))") {
                try read(tokenizer(normalizers: normalizers))
            } throws: { "\($0)".contains("times as long") || "\($0)".contains("steps") }
        }
    }

    /// A map without entries, but with one replacement of `length` bytes.
    private func characterMap(_ length: Int) -> String {
        Data([8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0x61, count: length))
            .base64EncodedString()
    }

    @Test("pieces and special tokens longer than any real one")
    func longPieces() {
        let long = String(repeating: "a", count: 513)
        #expect(throws: TokenizerError.self) { try read(tokenizer(pieces: [long])) }
        #expect(throws: TokenizerError.self) {
            try read(tokenizer(ids: [("<pad>", 0), ("</s>", 1), (long, 7)]))
        }
    }

    @Test("a pipe is refused at once")
    func pipe() throws {
        let path = "/tmp/turbodiffusion-pipe-\(getpid()).json"
        try #require(mkfifo(path, 0o600) == 0)
        defer { unlink(path) }
        #expect { try Tokenizer(path: path) } throws: { "\($0)".contains("not a regular file") }
    }

    @Test("the umT5 tokenizer stays far from the limits")
    func reserve() throws {
        let file = try TokenizerFile.read(folder + "/tokenizer.json")
        #expect(file.normalization.reduce(1) { $0 * $1.growth } < 64)
    }
}
