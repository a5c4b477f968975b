// Ids and cleaned text against the reference's, from both kinds of tokenizer file.

import FoundationEssentials
import Glibc
import Testing
import Tokenizers

private struct Cases: Decodable {
    struct Case: Decodable {
        var text: String
        var cleaned: String
        var ids: [Int32]
        var ids_byte_fallback: [Int32]
    }
    var seq_len: Int
    var cases: [Case]
}

private func folder(_ layout: String) -> String {
    let tests = #filePath.split(separator: "/").dropLast(2).joined(separator: "/")
    return "/\(tests)/Golden/tokenizer/\(layout)"
}

private func cases(_ layout: String) throws -> Cases {
    let path = folder(layout) + "/cases.json"
    let data = try #require(FileManager.default.contents(atPath: path))
    return try JSONDecoder().decode(Cases.self, from: data)
}

@Suite("Tokenizer")
struct TokenizerTests {
    @Test("ids from tokenizer.json equal the reference's", arguments: ["umt5"])
    func tokenizerJSON(layout: String) throws {
        let tokenizer = try Tokenizer(path: folder(layout) + "/tokenizer.json")
        let cases = try cases(layout)
        #expect(cases.cases.count > 100)
        for test in cases.cases {
            let tokens = tokenizer.encode(prompt: test.cleaned, length: cases.seq_len)
            #expect(
                Array(tokens.ids.prefix(tokens.count)) == test.ids, "\(test.text.debugDescription)")
            #expect(tokens.ids.count == cases.seq_len)
            #expect(tokens.ids.dropFirst(tokens.count).allSatisfy { $0 == tokenizer.padID })
        }
    }

    @Test("ids from a SentencePiece model with byte fallback", arguments: ["umt5"])
    func sentencePiece(layout: String) throws {
        let tokenizer = try Tokenizer(path: folder(layout) + "/spiece.model")
        let cases = try cases(layout)
        for test in cases.cases {
            let tokens = tokenizer.encode(prompt: test.cleaned, length: cases.seq_len)
            #expect(
                Array(tokens.ids.prefix(tokens.count)) == test.ids_byte_fallback,
                "\(test.text.debugDescription)")
        }
    }

    @Test("prompts are cleaned as by ftfy", arguments: ["umt5"])
    func cleaning(layout: String) throws {
        for test in try cases(layout).cases {
            #expect(
                PromptCleaner.clean(test.text) == test.cleaned, "\(test.text.debugDescription)")
        }
    }

    @Test("a prompt that is too long is cut, and says by how much")
    func cut() throws {
        let tokenizer = try Tokenizer(path: folder("umt5") + "/tokenizer.json")
        let whole = tokenizer.ids("a red ball ".repeated(100))
        let tokens = tokenizer.encode(prompt: "a red ball ".repeated(100), length: 32)
        #expect(tokens.count == 32)
        #expect(Array(tokens.ids.prefix(31)) == Array(whole.prefix(31)))
        #expect(tokens.ids.last == tokenizer.endID)
        #expect(tokens.dropped > 0)
    }

    @Test("time is linear in the length", arguments: ["ab c", "aaaa", "é&amp;", "\u{3042}\u{300}"])
    func linearTime(pattern: String) throws {
        let tokenizer = try Tokenizer(path: folder("umt5") + "/tokenizer.json")
        func seconds(_ bytes: Int) -> Double {
            let text = pattern.repeated(bytes / pattern.utf8.count)
            return (0..<3).map { _ in
                let start = processorSeconds()
                _ = tokenizer.encode(prompt: text)
                return processorSeconds() - start
            }.min()!
        }
        let short = seconds(60_000)
        let long = seconds(960_000)
        #expect(
            long < 16 * short * 4 + 0.05, "16 times the text took \(long / short) times as long")
    }

    @Test("files that are not tokenizers are refused with a reason")
    func refusals() {
        #expect(throws: TokenizerError.self) { try Tokenizer(path: "/nonexistent/spiece.model") }
        #expect(throws: TokenizerError.self) { try Tokenizer(path: #filePath) }
        #expect(throws: TokenizerError.self) { try Tokenizer(path: folder("umt5") + "/cases.json") }
    }
}

/// Of this thread: what else the machine does is not counted.
private func processorSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

extension String {
    fileprivate func repeated(_ count: Int) -> String { String(repeating: self, count: count) }
}
