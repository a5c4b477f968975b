// What users write and what others packed for them: config.toml, shards of samples.

import FoundationEssentials
import Testing

@testable import Catalog
@testable import Training

@Suite("Fuzzing settings and data sets")
struct SettingsFuzz {
    @Test("config.toml")
    func configuration() {
        let text = """
            # a comment
            [folders]
            models = "/data/models"
            comfyui = "~/ComfyUI/models"

            [defaults]
            device = "cuda:1"  # another
            memory_limit = '16GiB'

            [hub]
            connections = 4

            [models."my own"]
            like = "Wan2.1-14B"
            transformer = "me/my-wan@v1.0:caf\\u00e9.safetensors"

            [recipes.mixed]
            like = "Wan2.1-14B"
            base = "me/a:b.safetensors"
            quantize = true
            """
        func settings(_ text: String) throws -> Settings {
            try Settings(
                environment: { ["HOME": "/home/x", "TURBODIFFUSION_CONFIG": "/x.toml"][$0] },
                read: { (_) throws(SettingsError) in text })
        }
        var parsed = 0
        fuzz([Array(text.utf8)]) { bytes in
            let text = String(decoding: bytes, as: UTF8.self)
            if (try? TOMLDocument(text)) != nil { parsed += 1 }
            _ = try? settings(text)
        }
        #expect(parsed > 0)
    }

    @Test("YAML of a run's settings")
    func yaml() {
        let text = """
            # a run
            recipe: rcm
            preset: 14b
            dataset: [data/it's.tar, "a \\"b\\".tar"]
            optimizer: {learning_rate: 2e-6, beta1: 0}
            rcm:
              guidance: 5  # the teacher's
              consistency_times: {logNormal: {mean: 0.7,
                deviation: 1.6}}
            list:
            - 'it''s'
            - two: 2
              three: ~
            """
        var parsed = 0
        fuzz([Array(text.utf8)]) { bytes in
            guard let value = try? YAMLReader.read(String(decoding: bytes, as: UTF8.self)) else {
                return
            }
            parsed += 1
            // What was read is JSON that is read again as the same.
            #expect((try? YAMLReader.read(value.json))?.json == value.json)
        }
        #expect(parsed > 0)
    }

    @Test("shards of samples")
    func shards() throws {
        let path = temporaryPath() + ".tar"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let tensors = ["latent.pt", "embed.pt"].map { name in
            tarMember("a/0001.\(name)", Array("PK\u{3}\u{4} no tensor".utf8))
        }
        let shard =
            tensors.flatMap { $0 } + tarMember("a/0001.prompt.txt", Array("a ball".utf8))
            + [UInt8](repeating: 0, count: 1024)
        var opened = 0
        fuzz([shard]) { bytes in
            _ = FileManager.default.createFile(atPath: path, contents: Data(bytes))
            guard let shards = try? TarShards([path]) else { return }
            opened += 1
            for index in shards.samples.indices { _ = try? shards.read(index) }
        }
        #expect(opened > 0)
    }
}
