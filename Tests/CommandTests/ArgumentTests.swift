/// Command lines before and as they are parsed: spellings, values, help.

import ArgumentParser
import Devices
import FoundationEssentials
import Testing

@testable import turbodiffusion

let projectFolder = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

@Suite struct SpellingTests {
    @Test(
        "options with underscores or dashes, values with a dash in front",
        arguments: [
            (["t2v", "--dit_path", "a_b"], ["t2v", "--dit-path", "a_b"]),
            (["--dit_path=a_b"], ["--dit-path=a_b"]),
            (["--prompt", "- a cat"], ["--prompt=- a cat"]),
            (["--prompt", "-5 degrees, snow"], ["--prompt=-5 degrees, snow"]),
            (["--prompt", "--a_b c"], ["--prompt=--a_b c"]),
            (["--seed", "-1"], ["--seed=-1"]),
            (["--prompt", "-cat"], ["--prompt", "-cat"]),
            (["t2v", "- a cat", "--seed", "3"], ["t2v", "--seed", "3", "--", "- a cat"]),
            (["x", "--", "--a_b"], ["x", "--", "--a_b"]),
            (["-o", "t.csv", "-h"], ["-o", "t.csv", "-h"]),
        ])
    func normalized(arguments: [String], result: [String]) {
        #expect(TurboDiffusion.normalized(arguments) == result)
    }

    @Test("a prompt that begins with a dash reaches the request")
    func prompts() throws {
        for arguments in [["--prompt", "- a cat"], ["- a cat"], ["--prompt=- a cat"]] {
            let command = try TextToVideoCommand.parse(TurboDiffusion.normalized(arguments))
            #expect(try command.options.prompt == "- a cat")
        }
    }
}

@Suite struct ValueTests {
    @Test(
        "amounts of memory",
        arguments: [
            ("16GiB", 16 << 30), ("12 GiB", 12 << 30), ("512M", 512 << 20), ("1.5g", 3 << 29),
            ("8e9", 8_000_000_000), ("2GB", 2_000_000_000), ("1048576", 1 << 20),
            ("1tib", 1 << 40),
        ])
    func bytes(text: String, bytes: Int) throws {
        #expect(try ByteCount(text).bytes == bytes)
    }

    @Test(
        "amounts that are invalid, or probably a mistake",
        arguments: ["", "GiB", "-1GiB", "0", "16", "1023K", "1e40", "nan", "inf", "12XB"])
    func notBytes(text: String) {
        #expect(throws: ValidationError.self) { try ByteCount(text) }
    }

    @Test("two numbers with an x between them")
    func pairs() {
        #expect(pair("832x480")! == (832, 480) && pair("64X128")! == (64, 128))
        for text in [
            "", "x", "64", "64x", "x64", "64xx64", "x64x64", "64x64x64", "64x6.4", "64×64",
        ] {
            #expect(pair(text) == nil, "\(text)")
        }
    }

    @Test("LoRA files with strengths")
    func loras() {
        #expect(LoRAArgument(argument: "a.safetensors")?.strength == 1)
        #expect(LoRAArgument(argument: "a:0.5")?.path == "a")
        #expect(LoRAArgument(argument: "a:-0.5")?.strength == -0.5)
        #expect(LoRAArgument(argument: "c:/a")?.path == "c:/a")
        #expect(LoRAArgument(argument: ":0.5") == nil)
        #expect(LoRAArgument(argument: "a:nan") == nil)
    }

    @Test("devices")
    func devices() {
        #expect(DeviceChoice(argument: "cuda") == .cuda(ordinal: 0))
        #expect(DeviceChoice(argument: "cuda:3") == .cuda(ordinal: 3))
        #expect(DeviceChoice(argument: "cuda:-1") == nil)
        #expect(DeviceChoice(argument: "gpu") == nil)
    }
}

@Suite struct HelpTests {
    /// Every command by its name, those of commands included.
    private static let commands: [(name: String, command: any ParsableCommand.Type)] = {
        func all(_ command: any ParsableCommand.Type, _ path: [String])
            -> [(String, any ParsableCommand.Type)]
        {
            [(path.isEmpty ? "turbodiffusion" : path.joined(separator: "-"), command)]
                + command.configuration.subcommands.flatMap { sub in
                    all(sub, path + [sub.configuration.commandName ?? sub._commandName])
                }
        }
        return all(TurboDiffusion.self, [])
    }()

    /// `TURBODIFFUSION_RECORD=1` writes the files anew.
    @Test("help screens are those in Tests/CommandTests/Help")
    func snapshots() throws {
        let folder = projectFolder + "/Tests/CommandTests/Help"
        let isRecording = ProcessInfo.processInfo.environment["TURBODIFFUSION_RECORD"] == "1"
        for (name, command) in Self.commands {
            let help = TurboDiffusion.helpMessage(for: command, columns: 100) + "\n"
            let path = "\(folder)/\(name).txt"
            if isRecording {
                try Data(help.utf8).write(to: URL(fileURLWithPath: path))
            } else {
                let known = FileManager.default.contents(atPath: path).map {
                    String(decoding: $0, as: UTF8.self)
                }
                #expect(help == known, "\(name)")
            }
        }
        let names = try FileManager.default.contentsOfDirectory(atPath: folder)
        #expect(Set(names) == Set(Self.commands.map { $0.name + ".txt" }))
    }
}
