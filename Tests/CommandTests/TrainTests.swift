/// Which settings a training run has, and which folders it takes.

import ArgumentParser
import FoundationEssentials
import Ground
import SystemPackage
import Tensors
import Testing
import Training

@testable import turbodiffusion

@Suite final class TrainTests {
    private let folder = FilePath(
        FileManager.default.temporaryDirectory.path + "/train-\(UInt64.random(in: 0 ... .max))")

    deinit { try? FileManager.default.removeItem(atPath: folder.string) }

    private func message(_ body: () async throws -> Void) async -> String {
        do {
            try await body()
            return ""
        } catch { return TurboDiffusion.message(for: error) }
    }

    @Test("the second of two experts is trained as the first one was, if it has not begun")
    func secondExpert() throws {
        let high = folder.appending("high")
        var stored = TrainingSettings(.lora)
        (stored.rank, stored.iterations) = (2, 3)
        stored.expert = .high
        var files = TrainingFiles()
        files.model = "its model"
        try RunFolder(high.string, kept: 1).write(stored, files)
        let command = try TrainLoRACommand.parse([
            "--expert", "both", "--resume", "--iterations", "5", "--output", folder.string,
        ])
        let runs = command.runs
        #expect(runs.map(\.expert) == [.high, .low])
        for (run, expert) in runs {
            let (settings, files) = try run.settings { try command.apply(to: &$0, expert) }
            #expect(settings.rank == 2 && settings.iterations == 5 && settings.expert == expert)
            #expect(files.model == "its model")
        }
    }

    @Test("checkpoints without settings are a run that is there; no folder is no name")
    func folders() async throws {
        let checkpoints = folder.appending("checkpoints")
        try checkpoints.makeFolders()
        try PendingFile.write(
            [1], to: checkpoints.appending("iter_000000002.safetensors"), overwrite: false)
        let new = try TrainLoRACommand.parse(["--output", folder.string])
        let refusal = await message { _ = try new.runs[0].run.settings { _ in } }
        #expect(refusal.contains("but not its settings.json"))
        #expect(throws: (any Error).self) { try TrainLoRACommand.parse(["--output", ""]) }
    }

    @Test("texts of any length are no faults of a data set, other sizes are")
    func checking() async throws {
        try folder.makeFolders()
        func check(_ samples: [(latents: Shape, text: Shape)]) async throws {
            let shard = folder.appending("\(samples.count).tar")
            let writer = try ShardWriter(shard)
            for (number, sample) in samples.enumerated() {
                try writer.add(
                    number, latents: .zeros(sample.latents, .f32), text: .zeros(sample.text, .f32),
                    prompt: "a ball")
            }
            try writer.finish()
            try await DatasetCheckCommand.parse([shard.string]).run()
        }
        let latents: Shape = [4, 1, 4, 4]
        try await check([(latents, [9, 8]), (latents, [20, 8])])
        await #expect(throws: ExitCode.self) {
            try await check([(latents, [9, 8]), ([4, 1, 4, 2], [9, 8]), (latents, [9, 7])])
        }
    }

    @Test("a caption that is no text is refused")
    func captions() throws {
        try folder.makeFolders()
        let caption = folder.appending("clip.txt")
        try PendingFile.write(Array("caf".utf8) + [0xE9], to: caption, overwrite: false)
        let command = try DatasetEncodeCommand.parse(["clip.mp4", "--output", "a.tar"])
        #expect { _ = try command.caption(self.folder.appending("clip.mp4").string) } throws: {
            "\($0)".contains("clip.txt: captions must be UTF-8 text")
        }
    }

    @Test("a validation that is refused leaves no run")
    func refusedValidation() async throws {
        try folder.makeFolders()
        let shard = folder.appending("a.tar")
        let writer = try ShardWriter(shard)
        let text = Tensor([Float](repeating: 1, count: 3 * 256), [3, 256])
        try writer.add(0, latents: .zeros([16, 1, 4, 4], .f32), text: text, prompt: "a ball")
        try writer.finish()
        let output = folder.appending("run")
        let command = try TrainLoRACommand.parse([
            "--dataset", shard.string, "--output", output.string, "--iterations", "1",
            "--batch-size", "1", "--rank", "1", "--validate-every", "1", "--classifier", "gone",
            "--captions", folder.appending("gone.json").string, "--device", "cpu", "--threads", "1",
            "--quiet",
        ])
        let refusal = await message { try await command.run() }
        #expect(refusal.contains("gone.json"), "\(refusal)")
        #expect(!output.appending("settings.json").exists)
    }
}
