/// Prompts × seeds: what is asked for, and how the videos are called.

import ArgumentParser
import FoundationEssentials
import Runs
import Testing

@testable import turbodiffusion

@Suite struct BatchTests {
    private func items(_ arguments: String...) throws -> [BatchItem] {
        let words = TurboDiffusion.normalized(arguments)
        return try TextToVideoCommand.parse(words).generation.items { 99 }
    }

    private func file(_ text: String) throws -> String {
        let path =
            FileManager.default.temporaryDirectory.path
            + "/prompts-\(UInt64.random(in: 0 ... .max))"
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        return path
    }

    @Test("every prompt with every seed, in order, under names of their own")
    func order() throws {
        let path = try file("# two prompts\nA red ball, at night!\n\r\n   A cone\n")
        defer { try? FileManager.default.removeItem(atPath: path) }
        let found = try items("--prompts", path, "--seeds", "3,0-1")
        #expect(
            found.map(\.path) == [
                "output/1-a-red-ball-at-night-3.mp4", "output/1-a-red-ball-at-night-0.mp4",
                "output/1-a-red-ball-at-night-1.mp4", "output/2-a-cone-3.mp4",
                "output/2-a-cone-0.mp4", "output/2-a-cone-1.mp4",
            ])
        #expect(found[4].prompt == "A cone" && found[4].seed == .number(0))
        #expect(
            try items("--prompts", path, "--save_path", "x/{seed}-{n}/").map(\.path) == [
                "x/0-1/", "x/0-2/",
            ])
        #expect(
            try items("--prompts", path, "--seed", "random").map(\.seed) == [
                .number(99), .number(99),
            ])
        #expect(try items("a cone", "--seeds", "1,2", "--save_path", "{seed}.gif").count == 2)
    }

    @Test("what cannot be done for several videos is refused")
    func refusals() throws {
        let path = try file("a\nb\n")
        let empty = try file("# none\n\n")
        let binary = path + ".bin"
        try Data([0x61, 0xFF, 0xFE]).write(to: URL(fileURLWithPath: binary))
        defer {
            for path in [path, empty, binary] { try? FileManager.default.removeItem(atPath: path) }
        }
        func message(_ arguments: String...) throws -> String {
            let words = TurboDiffusion.normalized(arguments)
            let generation = try TextToVideoCommand.parse(words).generation
            let error = #expect(throws: UserError.self) { try generation.items { 0 } }
            return error?.description ?? ""
        }
        #expect(try message("--prompts", path, "--save_path", "a.mp4").contains("needs {n}"))
        #expect(
            try message("a", "--seeds", "1,2", "--save_path", "{n}.mp4").contains("needs {seed}"))
        #expect(try message("--prompts", empty).contains("holds no prompts"))
        #expect(try message("--prompts", binary).contains("UTF-8"))
        #expect(try message("--prompts", "/gone/p.txt") == "no such file: /gone/p.txt")
        #expect(try message("x", "--prompts", path).contains("exclude each other"))
        #expect(try message("x", "--seed", "1", "--seeds", "2").contains("exclude each other"))
        #expect(try message("x", "--seeds", "2", "--latents", "l").contains("--latents"))
        #expect(try message("--prompts", path, "--save_latents", "l").contains("--save_latents"))
    }

    @Test("lists of seeds")
    func seeds() {
        #expect(SeedList("7")?.seeds == [7] && SeedList("0-3, 7,2")?.seeds == [0, 1, 2, 3, 7])
        for text in ["", ",", "1-", "-1", "3-1", "a", "1-2-3", "0-99999999999", "1,,2"] {
            #expect(SeedList(text) == nil, "\(text)")
        }
    }

    @Test("names that files can have")
    func slugs() {
        #expect(Batch.slug("A red/ball: 50% \"shiny\"") == "a-red-ball-50-shiny")
        #expect(Batch.slug("../../etc/passwd") == "etc-passwd" && Batch.slug("…!") == "video")
        #expect(Batch.slug(String(repeating: "word ", count: 20)).count <= 40)
        #expect(Batch.slug(String(repeating: "x", count: 99)).count == 40)
        #expect(Batch.slug("红色小球") == "红色小球")
    }
}
