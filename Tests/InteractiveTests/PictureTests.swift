// Pictures in terminals, commands and completion.

import FoundationEssentials
import Media
import Testing

@testable import Interactive

@Suite("pictures in a terminal")
struct PictureTests {
    /// Red above blue, left half; white above black, right half.
    private let image = RGBImage(
        width: 2, height: 2, pixels: [255, 0, 0, 255, 255, 255, 0, 0, 255, 0, 0, 0])

    @Test(
        "a terminal is known by what it says of itself",
        arguments: [
            (["TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"], PictureKind.kitty),
            (["TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"], .iterm2),
            (["TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"], .iterm2),
            (["TERM": "foot"], .sixel), (["TERM": "xterm-256color"], .blocks),
            (["TERM": "xterm-256color", "COLORTERM": "truecolor"], .truecolor),
            (["TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "x"], .blocks),
            (["TERM": "dumb"], .off), ([:], .off),
        ] as [([String: String], PictureKind)])
    func kinds(environment: [String: String], kind: PictureKind) {
        #expect(PictureKind { environment[$0] } == kind)
    }

    @Test("half blocks show two rows of pixels in one of text")
    func blocks() {
        let (text, rows) = PictureKind.blocks.text(image, columns: 80)
        #expect(rows == 1)
        #expect(text == "\u{1B}[38;5;196;48;5;21m▀\u{1B}[38;5;231;48;5;16m▀\u{1B}[0m\r\n")
        let full = PictureKind.truecolor.text(image, columns: 80).text
        #expect(full.hasPrefix("\u{1B}[38;2;255;0;0;48;2;0;0;255m▀"))
    }

    @Test("kitty gets all pixels, in chunks of 4096 characters")
    func kitty() throws {
        let large = RGBImage(
            width: 64, height: 48, pixels: (0..<64 * 48 * 3).map { UInt8($0 & 0xFF) })
        let (text, rows) = PictureKind.kitty.text(large, columns: 80)
        #expect(rows == 24)
        let chunks = text.split(separator: "\u{1B}_G").map {
            $0.split(separator: ";", maxSplits: 1)
        }
        #expect(chunks[0][0] == "a=T,q=2,f=24,s=64,v=48,c=64,r=24,m=1")
        #expect(chunks.dropFirst().dropLast().allSatisfy { $0[0] == "m=1" })
        #expect(chunks.last?[0] == "m=0")
        let content = chunks.map { $0[1].prefix { $0 != "\u{1B}" } }.joined()
        #expect(chunks.allSatisfy { $0[1].prefix { $0 != "\u{1B}" }.count <= 4096 })
        #expect(Data(base64Encoded: content) == Data(large.pixels))
    }

    @Test("iTerm2 gets a PNG file")
    func iterm() throws {
        let text = PictureKind.iterm2.text(image, columns: 80).text
        let content = try #require(text.split(separator: ":").last).prefix { $0 != "\u{07}" }
        #expect(Data(base64Encoded: String(content)) == Data(image.png))
    }

    @Test("sixels give back the picture, in 216 colours")
    func sixel() throws {
        let large = RGBImage(width: 5, height: 6, red: 255, green: 51, blue: 0)
        let (text, rows) = PictureKind.sixel.text(large, columns: 80)
        #expect(rows == 3)
        // 5 x 8 pixels wide, 3 rows of 16 pixels high; 255 = 5 / 5 and 51 = 1 / 5 of full.
        #expect(text.hasPrefix("\u{1B}P0;1q\"1;1;40;48#0;2;0;0;0"))
        #expect(text.hasSuffix("\u{1B}\\\r\n"))
        let bands = text.split(separator: "#186!40~$-", omittingEmptySubsequences: false)
        #expect(bands.count == 9)
        #expect(bands[1...7].joined().isEmpty)
    }
}

@Suite("commands")
struct CommandTests {
    @Test("lines with a slash")
    func lines() throws {
        #expect(try Command("/set steps=3") == .set(.steps, "3"))
        #expect(try Command("/SET --num-steps 3") == .set(.steps, "3"))
        #expect(try Command("/set prompt a b  c") == .set(.prompt, "a b  c"))
        #expect(try Command("/set") == .show)
        #expect(try Command("/cancel all") == .cancel(.all))
        #expect(try Command("/cancel 2") == .cancel(.number(2)))
        #expect(try Command("/vary") == .vary(1))
        #expect(try Command("/q") == .quit)
        #expect(try Command("/reset seed") == .reset(.seed))
        #expect(throws: SettingError.self) { try Command("/") }
        #expect(throws: SettingError.self) { try Command("/vary 1001") }
    }

    @Test("every command is in the help, and is read")
    func help() throws {
        for entry in Command.table {
            let words = ["set": "seed 1", "save": "x", "load": "x"][entry.name] ?? ""
            #expect(throws: Never.self) { try Command("/\(entry.name) \(words)") }
            #expect(Command.help(nil).contains { $0.contains("/\(entry.name)") })
        }
        for setting in Setting.allCases {
            #expect(Command.help("set").contains { $0.contains(setting.rawValue) })
        }
    }

    @Test("words are completed where one can be known")
    func completion() {
        func words(_ line: String) -> [String] {
            Command.completions(of: line) { $0 == "mo" ? ["models/"] : [] }.words
        }
        #expect(words("/se") == ["/set "])
        #expect(words("/set num_s") == ["num_samples ", "num_steps "])
        #expect(words("/set attention_type s") == ["sla", "sagesla"])
        #expect(words("/load mo") == ["models/"])
        #expect(words("a prompt") == [])
    }
}
