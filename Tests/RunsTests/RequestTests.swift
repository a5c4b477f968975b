/// Requests that cannot be carried out, each with one line; requests that are stored and read again.

import FoundationEssentials
import Pipelines
import Testing

/// A folder that goes with the value.
final class TemporaryFolder: Sendable {
    let path: String

    init() throws {
        path =
            FileManager.default.temporaryDirectory.path
            + "/pipelines-\(UInt64.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: nil)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

struct RequestTests {
    private func line(_ change: (inout VideoRequest) -> Void) -> String? {
        var request = tinyRequest()
        change(&request)
        do throws(RequestError) {
            try request.validate()
            return nil
        } catch {
            return error.description
        }
    }

    @Test func everyMistakeHasOneLine() {
        #expect(line { _ in } == nil)
        #expect(line { $0.prompt = " \n" }?.contains("empty") == true)
        #expect(line { $0.width = 250 }?.contains("nearest: 256") == true)
        #expect(line { $0.height = 4096 }?.contains("at most 2048") == true)
        #expect(line { $0.frames = 10 }?.contains("9 or 13") == true)
        #expect(line { $0.frames = 0 }?.contains("nearest: 1") == true)
        #expect(line { $0.frames = 513 }?.contains("at most 509") == true)
        #expect(line { $0.steps = 5 }?.contains("1 to 4") == true)
        #expect(line { $0.sigmaMax = 3 }?.contains("sigma_max") == true)
        #expect(line { $0.topK = 0 }?.contains("sla_topk") == true)
        #expect(line { $0.topK = .nan } != nil)
        #expect(line { $0.samples = 0 }?.contains("1 to 64") == true)
        #expect(line { $0.guidance = 3 }?.contains("distilled") == true)
        #expect(line { $0.guidance = -1 } != nil)
        #expect(line { $0.framesPerSecond = 0 } != nil)
        #expect(line { $0.sampler = .wanUniPC }?.contains("leave --sigma_max out") == true)
        #expect(
            line { $0.loras = [RequestedLoRA("a", strength: .nan)] }?.contains("strength") == true)
        for change in [{ $0.width = 250 }, { $0.frames = 10 }] as [(inout VideoRequest) -> Void] {
            #expect(line(change)?.contains("\n") == false)
        }
    }

    @Test func aStoredRunIsReadBack() throws {
        var request = tinyRequest("a \"quoted\" prompt, 中文, and 🎈")
        request.negativePrompt = "blur"
        let run = StoredRun(program: "turbodiffusion 0", request: request, models: try nano())
        #expect(!run.json.contains("\n"))
        #expect(try StoredRun(json: run.json, path: "x.mp4") == run)
        #expect(throws: RequestError.self) { try StoredRun(json: "made by hand", path: "x.mp4") }
    }

    @Test func modelFoldersAreChecked() throws {
        let folder = try TemporaryFolder()
        #expect(throws: ModelSetError.self) { try ModelSet(folder: folder.path) }
        try #"{"latent_mean": [1, 2]}"#.write(
            toFile: folder.path + "/config.json", atomically: true, encoding: .utf8)
        #expect(throws: ModelSetError.self) { try ModelSet(folder: folder.path) }
        let models = try nano()
        #expect(models.defaults.width == 256 && models.defaults.frames == 33)
        #expect(!models.defaults.roundTimesteps)
    }

    @Test("Files of the wrong kind and damaged ones are told by name")
    func wrongFiles() async throws {
        var swapped = try nano()
        swapped.vae = swapped.textEncoder
        await #expect(throws: (any Error).self) {
            try await frames(of: tinyRequest(), pipeline(swapped))
        }

        let folder = try TemporaryFolder()
        let damaged = folder.path + "/vae.safetensors"
        var bytes = Array(FileManager.default.contents(atPath: try nano().vae) ?? Data())
        bytes.replaceSubrange(bytes.count - 2..<bytes.count, with: [0xC0, 0x7F])
        try Data(bytes).write(to: URL(filePath: damaged))
        var models = try nano()
        models.vae = damaged
        let broken = models
        do {
            _ = try await frames(of: tinyRequest(), pipeline(broken))
            Issue.record("a NaN in the last weight went unnoticed")
        } catch let error as NonFiniteError {
            #expect(error.tensor != nil)
            #expect(error.description.contains("damaged"))
        }
    }

    @Test func aTextModelTakesNoPicture() async throws {
        var request = tinyRequest()
        request.image = "/no/such/picture.png"
        let missing = request
        await #expect(throws: (any Error).self) {
            try await frames(of: missing, pipeline(try nano()))
        }
    }
}
