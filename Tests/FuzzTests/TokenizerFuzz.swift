// Damaged tokenizer files are refused, or give ids of their vocabulary in little time.

import FoundationEssentials
import Testing

@testable import Tokenizers

@Suite("Fuzzing tokenizers")
struct TokenizerFuzz {
    private let prompts = ["A big red ball.", "ａｂ １ ﷺ é\u{301}  x", "<extra_id_0></s>\u{0}"]

    private func use(_ file: TokenizerFile) {
        guard let tokenizer = try? Tokenizer(file, path: "fuzz") else { return }
        for prompt in prompts {
            let tokens = tokenizer.encode(prompt: prompt, length: 32)
            #expect(tokens.ids.count == 32)
            #expect(tokens.ids.allSatisfy { $0 >= 0 && Int($0) < tokenizer.vocabularySize })
        }
    }

    @Test(
        "tokenizer.json and SentencePiece models", arguments: ["tokenizer.json", "tokenizer.model"])
    func files(name: String) throws {
        let corpus = corpus { $0 == name }
        #expect(corpus.count == 1)
        for bytes in corpus { use(try TokenizerFile.read(bytes, path: "/nonexistent/\(name)")) }
        fuzz(corpus) { bytes in
            if let file = try? TokenizerFile.read(bytes, path: "/nonexistent/\(name)") { use(file) }
        }
    }

    @Test("character maps")
    func characterMaps() throws {
        // A trie of one entry, `a` to `bc`, in the units of darts-clone.
        func unit(_ value: UInt32) -> [UInt8] {
            (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        }
        var units = [UInt32](repeating: 0, count: 256)
        units[0] = 1 << 10
        units[1 ^ 0x61] = 0x61 | 1 << 8 | (200 ^ 1 ^ 0x61) << 10
        units[200] = 1 << 31
        let blob = unit(UInt32(units.count * 4)) + units.flatMap(unit) + Array("bc\0".utf8)
        #expect(CharacterMap(blob)?.normalize(Array("xax".utf8)) == Array("xbcx".utf8))
        let text = Array(prompts.joined().utf8)
        fuzz([blob]) { bytes in
            guard let map = CharacterMap(bytes) else { return }
            #expect(map.normalize(text).count <= text.count * max(4, map.longestReplacement))
        }
    }
}
