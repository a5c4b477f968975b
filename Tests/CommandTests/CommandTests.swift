/// Whole commands in this process: files, repeated videos, refusals and exit codes.

import ArgumentParser
import Catalog
import Delivery
import FoundationEssentials
import Media
import Runs
import Testing

@testable import turbodiffusion

/// A folder that vanishes with the test.
private final class Folder {
    let path =
        FileManager.default.temporaryDirectory.path + "/command-\(UInt64.random(in: 0 ... .max))"

    init() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }

    var files: [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: path).sorted()) ?? []
    }
    static func / (folder: Folder, name: String) -> String { folder.path + "/" + name }
}

/// Runs a command line.
/// - Returns: the exit code, and the line that a person reads.
private func run(_ arguments: String...) async -> (code: Int32, message: String) {
    await run(arguments)
}

private func run(_ arguments: [String]) async -> (code: Int32, message: String) {
    do {
        var command = try TurboDiffusion.parseAsRoot(TurboDiffusion.normalized(arguments))
        if var command = command as? any AsyncParsableCommand {
            try await command.run()
        } else {
            try command.run()
        }
        return (0, "")
    } catch {
        return (
            TurboDiffusion.exitCode(for: error).rawValue, TurboDiffusion.message(for: error)
        )
    }
}

private let tiny = [
    "--model", "nano", "--num_frames", "1", "--num_steps", "1", "--resolution", "32x32", "--quiet",
    "--device", "cpu", "--threads", "1",
]

private func generate(_ arguments: String...) async -> (code: Int32, message: String) {
    do {
        try await TextToVideoCommand.parse(
            TurboDiffusion.normalized(tiny + arguments)
        ).run()
        return (0, "")
    } catch {
        return (
            TurboDiffusion.exitCode(for: error).rawValue, TurboDiffusion.message(for: error)
        )
    }
}

@Suite struct CommandTests {
    @Test("a picture is made, then refused as it exists, then replaced on request")
    func files() async throws {
        let folder = try Folder()
        let path = folder / "p.png"
        #expect(await generate("a red ball", "--save_path", path).code == 0)
        let again = await generate("a red ball", "--save_path", path)
        #expect(again.code == 1 && again.message.contains("\(path) already exists"))
        #expect(again.message.contains("--force"))
        #expect(await generate("a red ball", "--save_path", path, "--force").code == 0)
        #expect(folder.files == ["p.png"])
        // Of several videos those that are there are left out, but a folder is none.
        let prompts = folder / "prompts.txt"
        try Data("a red ball\na blue cube\n".utf8).write(to: URL(fileURLWithPath: prompts))
        try FileManager.default.createDirectory(
            atPath: folder / "2.png", withIntermediateDirectories: false)
        let several = await generate("--prompts", prompts, "--save_path", folder / "{n}.png")
        #expect(several.code == 1 && several.message.contains("2.png: cannot be written: it is a"))
    }

    @Test("a video is repeated, and repeated with another seed")
    func repeating() async throws {
        let folder = try Folder()
        func picture(_ name: String) async throws -> [UInt8] {
            try await readVideo(path: folder / name).pixels
        }
        #expect(
            await generate("a red ball", "--seed", "5", "--save_path", folder / "a.png").code == 0)
        #expect(
            await run("t2v", "--from", folder / "a.png", "--quiet", "--save_path", folder / "b.png")
                .code == 0)
        #expect(try await picture("a.png") == picture("b.png"))
        #expect(
            await run(
                "t2v", "--from", folder / "a.png", "--seed", "6", "--quiet", "--save_path",
                folder / "c.png"
            ).code == 0)
        #expect(try await picture("a.png") != picture("c.png"))
        #expect(
            await generate("a red ball", "--seed", "6", "--save_path", folder / "d.png").code == 0)
        #expect(try await picture("c.png") == picture("d.png"))
        #expect(await run("inspect", folder / "c.png").code == 0)
    }

    @Test(
        "a stored conditioning replaces the picture; repeating its video asks for the files"
    )
    func pictures() async throws {
        let folder = try Folder()
        let golden = projectFolder + "/Tests/Golden"
        let models = [
            "--high_noise_model_path", golden + "/weights/wan22_i2v_d128h64.safetensors",
            "--low_noise_model_path", golden + "/weights/wan22_i2v_d128h64.safetensors",
            "--text_encoder_path", golden + "/umt5/models_t5_tiny-enc-bf16.pth",
            "--tokenizer_path", golden + "/tokenizer/umt5/tokenizer.json",
            "--vae_path", golden + "/vae/Wan2.1_VAE_tiny.pth", "--device", "cpu", "--quiet",
        ]
        let small = [
            "x", "--attention_type", "original", "--num_frames", "1", "--num_steps", "1",
            "--resolution", "64x48",
        ]
        func make(_ arguments: [String]) async -> (code: Int32, message: String) {
            await run(["i2v"] + arguments)
        }
        let first = await make(
            small + models + [
                "--image_path", projectFolder + "/docs/nano.jpg", "--save_path", folder / "a.png",
                "--save_conditioning", folder / "c.safetensors",
            ])
        #expect(first == (0, ""))
        let second = await make(
            small + models + [
                "--conditioning", folder / "c.safetensors", "--save_path", folder / "b.png",
            ])
        #expect(second == (0, ""))
        let pixels = try await readVideo(path: folder / "a.png").pixels
        #expect(try await readVideo(path: folder / "b.png").pixels == pixels)

        let lost = await make(["--from", folder / "a.png", "--save_path", folder / "d.png"])
        #expect(lost.code == 1 && lost.message.contains("--high_noise_model_path"))
        let asked = await make(
            ["--from", folder / "b.png", "--save_path", folder / "d.png"] + models)
        #expect(asked.code == 1 && asked.message.contains("--conditioning"))
        let again = await make(
            ["--from", folder / "a.png", "--save_path", folder / "d.png"] + models)
        #expect(again == (0, ""))
        #expect(try await readVideo(path: folder / "d.png").pixels == pixels)
    }

    @Test("what is not to be replaced, or cannot be written, is refused before the work")
    func results() async throws {
        let folder = try Folder()
        let (picture, table) = (folder / "p.png", folder / "t.csv")
        #expect(await generate("a red ball", "--save_path", picture).code == 0)
        #expect(FileManager.default.createFile(atPath: table, contents: Data()))
        let small = ["--model", "nano", "--stage", "load", "--device", "cpu", "--no-operations"]
        let cases: [([String], String)] = [
            (["compare", picture, picture, "--picture", picture], "--force replaces it"),
            (["compare", picture, picture, "--picture", folder / "d.jpg"], "no writer for this"),
            (["compare", "gone.pth", "gone.pth", "--picture", folder / "d.png"], "not tensors"),
            (["bench", "-o", table] + small, "it exists already; --force replaces it"),
            (["bench", "-o", folder / "no/t.csv"] + small, "there is no folder " + folder / "no"),
        ]
        for (arguments, words) in cases {
            let (code, message) = await run(arguments)
            #expect(code == 1 && message.contains(words), "\(arguments): \(message)")
        }
        #expect(folder.files == ["p.png", "t.csv"])
        #expect(
            await run("compare", picture, picture, "--picture", picture, "--force") == (0, ""))
    }

    @Test("shards are gone on with by the same settings only")
    func shards() async throws {
        let folder = try Folder()
        let prompts = folder / "prompts.txt"
        try Data("a red ball\n".utf8).write(to: URL(fileURLWithPath: prompts))
        let output = folder / "data"
        func make(_ changes: String...) async -> (code: Int32, message: String) {
            await run(
                [
                    "dataset", "make", "--prompts", prompts, "--output", output, "--device", "cpu",
                    "--num-frames", "1", "--guidance", "1", "--num-steps", "1",
                ] + changes)
        }
        #expect(await make() == (0, ""))
        #expect(await make() == (0, ""))
        let other = await make("--num-steps", "2")
        #expect(other.code == 1)
        #expect(
            other.message.contains(
                "the shards in \(output) were made with --num-steps 1, not 2: choose another"))
        #expect(await make("--seed", "1").message.contains("--seed 0, not 1"))
        try FileManager.default.removeItem(atPath: output + "/settings.json")
        #expect(await make("--num-steps", "2") == (0, ""))
    }

    @Test("a dry run writes nothing")
    func dryRun() async throws {
        let folder = try Folder()
        let saved = folder / "l.safetensors"
        #expect(
            await generate(
                "x", "--dry-run", "--save_path", folder / "p.png", "--save_latents", saved
            ).code == 0)
        #expect(folder.files.isEmpty)
    }

    @Test("errors are one line in the terms of the command line, and no file is left")
    func refusals() async throws {
        let folder = try Folder()
        let output = folder / "v.mp4"
        let cases: [([String], String)] = [
            ([""], "--prompt must be"),
            (["x", "--num_frames", "8"], "--num_frames must be 4n + 1"),
            (["x", "--fps", "0"], "--fps must be"),
            (["x", "--boundary", "nan"], "--boundary must be"),
            (["x", "--num_samples", "65"], "--num_samples must be"),
            (["x", "--resolution", "33x32"], "(--resolution) must be a multiple of 16"),
            (["x", "--sla_topk", "0"], "--sla_topk must be"),
            (["x", "--num_steps", "5"], "--num_steps must be 1 to 4"),
            (["x", "--guidance", "3"], "distilled models take no guidance"),
            (["x", "--model", "Wan9"], "no model 'Wan9'"),
            (["x", "--model", "Wan2.2-A14B"], "use 'turbodiffusion i2v'"),
            (["x", "--dit_path", "gone.pth"], "no such file: gone.pth"),
            (["x", "--text_embedding", "gone"], "no such file: gone"),
            (["x", "--lora", "gone"], "no such file: gone"),
            (["x", "--crf", "99", "--num_frames", "5"], "quality (crf) must be 0 to 51"),
            (["x", "--save_latents", folder / "l.pth"], "must end in .safetensors"),
            (["--latents", projectFolder + "/README.md"], "README.md"),
            (["x", "--from", projectFolder + "/docs/nano.jpg"], "contains no request"),
        ]
        for (arguments, words) in cases {
            do {
                try await TextToVideoCommand.parse(
                    TurboDiffusion.normalized(tiny + ["--save_path", output] + arguments)
                ).run()
                Issue.record("\(arguments) was accepted")
            } catch {
                let message = TurboDiffusion.message(for: error)
                #expect(TurboDiffusion.exitCode(for: error).rawValue == 1, "\(arguments)")
                #expect(message.contains(words), "\(arguments): \(message)")
                #expect(!message.contains("\n"))
            }
        }
        #expect(folder.files.isEmpty)
        let picture = await run("i2v", "x", "--model", "nano")
        #expect(picture.code == 1 && picture.message.contains("use 'turbodiffusion t2v'"))
    }

    @Test("numbers in GGUF's blocks that f16 does not hold are refused, not made infinite")
    func narrowBlocks() async throws {
        let folder = try Folder()
        func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
            withUnsafeBytes(of: value.littleEndian) { Array($0) }
        }
        // One tensor 'a' of one Q8_0 block: 32 codes of 127, times 1000.
        var file = Array("GGUF".utf8)
        file += bytes(UInt32(3)) + bytes(UInt64(1)) + bytes(UInt64(0))
        file += bytes(UInt64(1)) + Array("a".utf8)
        file += bytes(UInt32(1)) + bytes(UInt64(32)) + bytes(UInt32(8)) + bytes(UInt64(0))
        file += [UInt8](repeating: 0, count: (32 - file.count % 32) % 32)
        file += bytes(Float16(1000).bitPattern) + [UInt8](repeating: 127, count: 32)
        #expect(FileManager.default.createFile(atPath: folder / "a.gguf", contents: Data(file)))
        func convert(_ type: String) async -> (code: Int32, message: String) {
            await run(
                "convert", folder / "a.gguf", folder / "\(type).safetensors", "--dtype", type,
                "--quiet")
        }
        let narrow = await convert("f16")
        #expect(narrow.code == 1 && narrow.message.contains("too large for f16"))
        #expect(await convert("bf16").code == 0)
        #expect(folder.files == ["a.gguf", "bf16.safetensors"])
    }

    @Test("pieces of a checkpoint that do not make one are no folder of checkpoints")
    func pieces() async throws {
        let folder = try Folder()
        let name = "a-00001-of-00002.safetensors"
        #expect(FileManager.default.createFile(atPath: folder / name, contents: Data([1])))
        let (code, message) = await run("inspect", folder.path)
        #expect(code == 1 && message.contains("number 2 of 2 files"), "\(message)")
    }

    @Test("advice on the other command is given only by the one that does not fit")
    func conditioning() {
        let error = CatalogError.conditioning(model: "nano", takesPicture: false)
        #expect(
            "\(UserError(error, takesPicture: true))".hasSuffix("use 'turbodiffusion t2v'"))
        #expect("\(UserError(error, takesPicture: false))".hasSuffix("which it does not take"))
    }

    @Test("mistakes in the command line itself have a different exit code")
    func usage() async {
        #expect(await run("t2v", "--nonsense").code == 64)
        #expect(await run("t2v", "x", "--memory_limit", "16").code == 64)
        #expect(await run("t2v", "x", "--memory_limit", "16").message.contains("16GiB"))
        #expect(await run("t2v", "a", "b").code == 64)
        #expect(await run("--version").code == 0)
        #expect(await run("t2v", "--help").code == 0)
    }

    @Test("every error has a stable code")
    func codes() {
        func code(_ error: any Error) -> String { UserError(error, takesPicture: false).code }
        #expect(code(RequestError.missing(.image, reason: "")) == "request.missing")
        #expect(code(RunError.memory(neededBytes: 2, limitBytes: 1)) == "run.memory")
        #expect(code(OutputError.exists(path: "")) == "output")
        #expect(code(StoredRunError.noRequest(path: "")) == "repeat")
        #expect(code(MediaError.noSuchFile(path: "")) == "media")
        #expect(code(CancellationError()) == "cancelled")
    }
}
