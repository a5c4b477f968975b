// What a stranger says of a model and of a video: the numbers are used or refused, and planned without a trap.

import Catalog
import Families
import FoundationEssentials
import Models
import Runs
import Testing

@testable import Delivery

@Suite("Fuzzing descriptions of models and videos")
struct ModelFuzz {
    /// Plans what the model makes by itself.
    private func plan(_ models: ModelSet) {
        guard let run = try? Run(Request("a ball", for: models.family), models) else { return }
        _ = try? Plan(run)
    }

    @Test("config.json")
    func configurations() throws {
        let folder = temporaryPath()
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        for name in [
            "student_sla_quant.pth", "text_encoder.safetensors", "tokenizer.model",
            "vae.safetensors",
        ] {
            try FileManager.default.createSymbolicLink(
                atPath: "\(folder)/\(name)", withDestinationPath: "\(nano)/\(name)")
        }
        let original = [UInt8](
            try #require(FileManager.default.contents(atPath: nano + "/config.json")))
        var (number, planned) = (0, 0)
        fuzz([original]) { bytes in
            _ = FileManager.default.createFile(
                atPath: folder + "/config.json", contents: Data(bytes))
            number += 1
            guard let models = try? Catalog.published.open(ModelChoice(folder)) else { return }
            #expect(models.family.geometry.channels > 0 && models.family.textLength > 0)
            // A plan takes as long as a thousand other inputs.
            if number % 50 == 1 {
                plan(models)
                planned += 1
            }
        }
        #expect(planned > 0)
    }

    @Test("the request in a video, of this version and of the first")
    func requests() throws {
        let path = nano + "/config.json"
        let models = try Catalog.published.open(ModelChoice(nano))
        let run = try Run(
            Request(prompt: "a red \"ball\"\n一", width: 64, height: 64, frames: 9, seed: 5), models)
        let now = Array(try StoredRun(run, of: models, program: "test 1", crf: 12).json.utf8)
        let first = [UInt8](
            try #require(
                FileManager.default.contents(
                    atPath: "/" + #filePath.split(separator: "/").dropLast(2).joined(separator: "/")
                        + "/DeliveryTests/video-0.1.0.json")))
        var read = 0
        fuzz([now, first]) { bytes in
            let text = String(decoding: bytes, as: UTF8.self)
            guard let stored = try? StoredRun(json: text, path: path) else { return }
            read += 1
            let models = (try? stored.models(changedBy: ModelChoice(), in: .published)) ?? models
            _ = try? Run(stored.request, models)
        }
        #expect(read > 0)
    }
}
