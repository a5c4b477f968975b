/// What a video says of its making, and making it again.

import Catalog
import Families
import FoundationEssentials
import Glibc
import Runs
import Testing

@testable import Delivery

@Suite struct FileIdentityTests {
    @Test("a pipe or a device in a file's place is refused, and never waited for")
    func pipes() throws {
        let folder = try Folder()
        try #require(mkfifo(folder / "pipe", 0o600) == 0)
        for path in [folder / "pipe", "/dev/zero"] {
            #expect(throws: StoredRunError.unreadable(path: path, reason: "not a regular file")) {
                try FileIdentity(path: path)
            }
        }
        // Of a folder they are no part.
        _ = try FileIdentity(path: folder / "")
    }

    @Test("name, size and content tell files apart; the folder does not")
    func content() throws {
        let folder = try Folder()
        try folder.make("other")
        var bytes = (0..<1_000_000).map { UInt8(truncatingIfNeeded: $0 / 7) }
        let first = try FileIdentity(path: folder.write("a.bin", bytes))
        #expect(first.name == "a.bin" && first.bytes == 1_000_000 && first.fingerprint.count == 16)
        #expect(try FileIdentity(path: folder.write("other/a.bin", bytes)) == first)
        for index in [0, 999_999] {
            bytes[index] ^= 1
            let changed = try FileIdentity(path: folder.write("a.bin", bytes))
            #expect(changed.fingerprint != first.fingerprint && changed.bytes == first.bytes)
            bytes[index] ^= 1
        }
    }

    @Test("a folder stands for the files in it, an index for its folder")
    func folders() throws {
        let folder = try Folder()
        try folder.make("model")
        folder.write("model/1.safetensors", [1])
        folder.write("model/m.index.json", [2, 3])
        let whole = try FileIdentity(path: folder / "model")
        #expect(whole.bytes == 3)
        let index = try FileIdentity(path: folder / "model/m.index.json")
        #expect(index.fingerprint == whole.fingerprint)
        folder.write("model/1.safetensors", [9])
        #expect(try FileIdentity(path: folder / "model").fingerprint != whole.fingerprint)
        #expect(throws: StoredRunError.self) { try FileIdentity(path: folder / "missing") }
    }
}

@Suite struct StoredRunTests {
    private let catalog = Catalog(entries: [], places: [projectFolder])

    private func stored(_ request: Request = tinyRequest(), _ options: RunOptions = RunOptions())
        throws -> StoredRun
    {
        let models = try nano()
        return try StoredRun(
            Run(request, models, options), of: models, program: "turbodiffusion 1", crf: 20)
    }

    @Test("what is written is read back; it contains no path of this machine")
    func roundTrip() throws {
        let first = try stored()
        let again = try StoredRun(json: first.json, path: "v.mp4")
        #expect(again == first)
        #expect(again.model == "nano" && again.crf == 20)
        #expect(Set(again.files.keys) == [.transformer, .textEncoder, .tokenizer, .vae])
        #expect(!first.json.contains(projectFolder) && !first.json.contains("\n"))
    }

    @Test("the model is found by its name and compared")
    func models() throws {
        var run = try stored()
        let models = try run.models(changedBy: ModelChoice(), in: catalog)
        #expect(models == (try nano()))
        let folder = try Folder()
        let other = folder.write("other.pth")
        let changed = try run.models(
            changedBy: ModelChoice(files: [.transformer: other]), in: catalog)
        #expect(changed.transformer == other && changed.vae == models.vae)

        run.files[.vae]?.fingerprint = "0000000000000000"
        #expect(
            throws: StoredRunError.modelFile(.vae, name: "vae.safetensors", path: models.vae)
        ) { try run.models(changedBy: ModelChoice(), in: catalog) }
        // Another model was asked for by name.
        _ = try run.models(changedBy: ModelChoice(projectFolder + "/Models/nano"), in: catalog)
        run = try stored()
        run.files[.transformer]?.name = "elsewhere.pth"
        #expect(
            throws: StoredRunError.modelFile(.transformer, name: "elsewhere.pth", path: nil)
        ) { try run.models(changedBy: ModelChoice(), in: catalog) }
        run.model = "gone"
        #expect(throws: CatalogError.self) {
            try run.models(changedBy: ModelChoice(), in: catalog)
        }
    }

    @Test("latents and embeddings must be given, unless what they replace has changed")
    func inputs() throws {
        let folder = try Folder()
        var run = try stored()
        run.inputs[.text] = try FileIdentity(path: folder.write("t.safetensors"))
        #expect(throws: StoredRunError.input(.text, name: "t.safetensors", path: nil)) {
            try run.checkInputs(of: run.request, .init())
        }
        try run.checkInputs(of: run.request, .init(text: "other"))
        var request = run.request
        request.prompt = "another"
        try run.checkInputs(of: request, .init())
        run.inputs = [.latents: try FileIdentity(path: folder.write("l.safetensors"))]
        #expect(throws: StoredRunError.input(.latents, name: "l.safetensors", path: nil)) {
            try run.checkInputs(of: request, .init())
        }
        try run.checkInputs(of: request, .init(latents: "l"))
    }

    @Test("pictures and LoRAs must be the same as before")
    func pictures() throws {
        let folder = try Folder()
        var run = try stored()
        let path = folder.write("p.png")
        run.request.image = path
        run.inputs = [.image: try FileIdentity(path: path)]
        run.request.loras = [RequestedLoRA(folder.write("style.safetensors"))]
        run.loras = [try FileIdentity(path: folder / "style.safetensors")]
        try run.checkInputs(of: run.request, .init())
        folder.write("style.safetensors", [2])
        #expect(
            throws: StoredRunError.lora(
                name: "style.safetensors", path: folder / "style.safetensors")
        ) { try run.checkInputs(of: run.request, .init()) }
        var request = run.request
        request.loras = []
        folder.write("p.png", [2])
        #expect(throws: StoredRunError.input(.image, name: "p.png", path: path)) {
            try run.checkInputs(of: request, .init())
        }
        request.image = "other.png"
        try run.checkInputs(of: request, .init())
    }

    @Test("what a video says opens no file of another folder, and leaves no LoRA out")
    func distrust() throws {
        let folder = try Folder()
        var run = try stored()
        let secret = try FileIdentity(path: folder.write("secret"))
        run.files[.vae] = secret
        run.files[.vae]?.name =
            String(repeating: "../", count: 32) + (folder / "secret").dropFirst()
        #expect {
            try run.models(changedBy: ModelChoice(), in: catalog)
        } throws: {
            guard case .modelFile(.vae, _, path: nil)? = $0 as? StoredRunError else { return false }
            return true
        }
        run = try stored()
        run.request.loras = [RequestedLoRA("a"), RequestedLoRA("b")]
        run.loras = [secret]
        #expect(
            throws: StoredRunError.unreadable(
                path: "v.mp4", reason: "its request has 2 LoRAs, but it describes 1")
        ) { try StoredRun(json: run.json, path: "v.mp4") }
    }

    @Test("text of another program")
    func foreign() {
        for text in ["", "{}", "made with love", #"{"program": "x", "request": {}}"#] {
            #expect(throws: StoredRunError.noRequest(path: "v.mp4")) {
                try StoredRun(json: text, path: "v.mp4")
            }
        }
    }
}

@Suite struct LegacyTests {
    /// Metadata of a video that version 0.1.0 made.
    private func text() throws -> String {
        let path = projectFolder + "/Tests/DeliveryTests/video-0.1.0.json"
        return String(
            decoding: try #require(FileManager.default.contents(atPath: path)), as: UTF8.self)
    }

    @Test("a request of version 0.1.0, with the models as it named them")
    func request() throws {
        let run = try StoredRun(json: try text(), path: "v.mp4")
        #expect(run.program == "turbodiffusion 0.1.0" && !run.takesPicture)
        var expected = Request(
            prompt: "a red ball on a green floor", width: 64, height: 64, frames: 5, seed: 3,
            sampling: .distilled(.init(steps: 2, sigmaMax: 80)),
            arithmetic: Arithmetic(attention: .sla, topK: 0.2))
        expected.boundary = 0.875
        #expect(run.request == expected)
        let models = try run.models(changedBy: ModelChoice(), in: Catalog(entries: []))
        #expect(models.vae == "Models/nano/vae.safetensors")
        let family = try nano().family
        #expect(models.family.statistics == family.statistics)
        #expect(models.family.heads == 2 && !models.family.roundsTimesteps)
        #expect(models.family.geometry == family.geometry)
        let named = try run.models(
            changedBy: ModelChoice(projectFolder + "/Models/nano"), in: Catalog(entries: []))
        #expect(named == (try nano()))
    }

    @Test(
        "numbers that no model can have are refused",
        arguments: [
            (#""textLength":512"#, #""textLength":0"#), (#""textLength":512"#, #""textLength":-1"#),
            (#""textLength":512"#, #""textLength":1099511627776"#),
            (#""latentMean":["#, #""latentMean":[0,"#), (#""heads":2"#, #""heads":0"#),
        ])
    func hostile(old: String, new: String) throws {
        let parts = try text().split(separator: old, maxSplits: 1, omittingEmptySubsequences: false)
        try #require(parts.count == 2)
        #expect(throws: CatalogError.self) {
            try StoredRun(json: parts.joined(separator: new), path: "v.mp4")
        }
    }

    @Test("an unknown sampler is refused")
    func sampler() throws {
        let parts = try text().split(
            separator: #""sampler":"rcm""#, omittingEmptySubsequences: false)
        #expect(throws: StoredRunError.noRequest(path: "v.mp4")) {
            try StoredRun(json: parts.joined(separator: #""sampler":"dpm""#), path: "v.mp4")
        }
    }
}
