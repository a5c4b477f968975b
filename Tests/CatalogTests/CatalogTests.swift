/// Names, folders and single files → the files of a model and its family.

import Checkpoints
import Families
import FoundationEssentials
import Models
import Tensors
import Testing

@testable import Catalog

let projectFolder = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

/// A folder that vanishes with the test.
final class Folder {
    let path =
        FileManager.default.temporaryDirectory.path + "/catalog-\(UInt64.random(in: 0 ... .max))"

    init() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }

    func write(_ name: String, _ text: String = "") {
        let parent = (path + "/" + name).split(separator: "/").dropLast().joined(separator: "/")
        try? FileManager.default.createDirectory(
            atPath: "/" + parent, withIntermediateDirectories: true)
        _ = FileManager.default.createFile(atPath: path + "/" + name, contents: Data(text.utf8))
    }
}

@Suite struct PublishedModelTests {
    // Without what the machine's user has configured.
    let catalog = Catalog(entries: Catalog.known)

    @Test("names are found in any case; unknown ones are refused with a list of known ones")
    func names() throws {
        #expect(
            catalog.names == [
                "nano", "Wan2.1-1.3B", "Wan2.1-14B", "Wan2.1-14B-720P", "Wan2.2-A14B",
                "Wan2.2-T2V-A14B",
            ])
        #expect(catalog.entry(named: "wan2.1-14b")?.name == "Wan2.1-14B")
        #expect(try catalog.open(ModelChoice("NANO")).name == "nano")
        let error = #expect(throws: CatalogError.self) { try catalog.open(ModelChoice("Wan9")) }
        guard case .unknown("Wan9", catalog.names, let folders)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(folders.prefix(2) == ["Wan9", "Models/Wan9"])
    }

    @Test(
        "without a name, the first model that fits the given files",
        arguments: [
            (ModelChoice(conditioning: Family.Conditioning.none), "nano"),
            (ModelChoice(conditioning: Family.Conditioning.none, files: [.vae: "v.pth"]), "nano"),
            (
                ModelChoice(conditioning: Family.Conditioning.none, files: [.transformer: "t"]),
                "Wan2.1-1.3B"
            ),
            (
                ModelChoice(
                    conditioning: Family.Conditioning.none,
                    files: [.transformer: "t", .lowNoiseTransformer: "l"]), "Wan2.2-T2V-A14B"
            ),
            (ModelChoice(conditioning: .firstFrame), "Wan2.2-A14B"),
        ])
    func standard(choice: ModelChoice, name: String) throws {
        #expect(try catalog.open(choice).name == name)
    }

    @Test("defaults of each model")
    func defaults() throws {
        func family(_ name: String) throws -> Family { try catalog.open(ModelChoice(name)).family }
        for name in ["Wan2.1-1.3B", "Wan2.1-14B", "Wan2.2-T2V-A14B"] {
            let family = try family(name)
            #expect(family.conditioning == .none && family.inputChannels == 16)
            #expect((family.defaults.width, family.defaults.height) == (832, 480))
            #expect(family.defaults.distilled == .init(steps: 4, sigmaMax: 80))
            #expect(family.defaults.boundary == 0.875 && family.roundsTimesteps)
        }
        let picture = try family("Wan2.2-A14B")
        #expect(picture.conditioning == .firstFrame && picture.inputChannels == 36)
        #expect((picture.defaults.width, picture.defaults.height) == (1280, 720))
        #expect(picture.defaults.distilled.sigmaMax == 200 && picture.defaults.boundary == 0.9)
        let nano = try family("nano")
        #expect((nano.defaults.width, nano.defaults.height, nano.defaults.frames) == (256, 144, 33))
        #expect(nano.defaults.attention == .sla && nano.defaults.topK == 0.2)
        #expect(!nano.roundsTimesteps && nano.heads == 2)
        #expect(nano.defaults.flow == .init(.euler, steps: 50, shift: 3, guidance: 3.5))
        #expect(nano.statistics.mean.first == -0.20614097)
    }

    @Test(
        "single files: named ones first, then existing ones; a tokenizer beside its text encoder"
    )
    func singleFiles() throws {
        let folder = try Folder()
        for name in ["a.pth", "b-low.pth", "t5/enc.pth", "t5/umt5-xxl/spiece.model", "vae.pth"] {
            folder.write(name)
        }
        let models = try catalog.open(
            ModelChoice(
                "Wan2.2-A14B", conditioning: .firstFrame,
                files: [
                    .transformer: folder.path + "/a.pth",
                    .lowNoiseTransformer: folder.path + "/b-low.pth",
                    .textEncoder: folder.path + "/t5/enc.pth",
                ]))
        #expect(models.tokenizer == folder.path + "/t5/umt5-xxl/spiece.model")
        #expect(models.vae == "checkpoints/Wan2.1_VAE.pth")
        try models.checkPresence(of: [.transformer, .lowNoiseTransformer, .textEncoder, .tokenizer])
        #expect(
            throws: CatalogError.missingFile(
                .vae, model: "Wan2.2-A14B", path: "checkpoints/Wan2.1_VAE.pth")
        ) { try models.checkPresence(of: ModelSet.files(for: [.decoder])) }
        #expect(
            ModelSet.files(for: [.imageEncoder, .textEncoder, .decoder]) == [
                .vae, .textEncoder, .tokenizer,
            ])
    }

    @Test("a model of the other kind is refused")
    func conditioning() {
        #expect(throws: CatalogError.conditioning(model: "Wan2.2-A14B", takesPicture: true)) {
            try catalog.open(ModelChoice("Wan2.2-A14B", conditioning: Family.Conditioning.none))
        }
        #expect(throws: CatalogError.conditioning(model: "nano", takesPicture: false)) {
            try catalog.open(ModelChoice("nano", conditioning: .firstFrame))
        }
    }

    @Test("a family is added by one entry")
    func ownEntry() throws {
        let family = Family(name: "tiny", geometry: LatentGeometry(channels: 4, patch: 1))
        let tiny = Catalog.Entry(
            "tiny", family,
            .named([.transformer: ["t"], .textEncoder: ["e"], .tokenizer: ["k"], .vae: ["v"]]),
            transformer: .nano)
        let models = try Catalog(entries: [tiny]).open(ModelChoice())
        #expect(models.family == family && models.lowNoiseTransformer == nil)
        #expect(
            [models.transformer, models.textEncoder, models.tokenizer, models.vae] == [
                "t", "e", "k", "v",
            ])
    }
}

@Suite struct FolderTests {
    @Test("named files replace the folder's, with and without a picture")
    func ownFiles() throws {
        let folder = try Folder()
        folder.write(
            "mine/config.json",
            #"{"files": {"transformer": "t.pth", "low_noise_transformer": "l.pth"}, "sampler": {"sigma_max": 120}}"#
        )
        for conditioning in [Family.Conditioning.none, .firstFrame] {
            let models = try Catalog(entries: [], places: []).open(
                ModelChoice(
                    folder.path + "/mine", conditioning: conditioning,
                    files: [.textEncoder: "E", .tokenizer: "K", .vae: "V"]))
            #expect([models.textEncoder, models.tokenizer, models.vae] == ["E", "K", "V"])
            #expect(models.name == "mine" && models.transformer.hasSuffix("/mine/t.pth"))
            #expect(models.lowNoiseTransformer?.hasSuffix("/mine/l.pth") == true)
            #expect(models.family.conditioning == conditioning)
            #expect(models.family.defaults.distilled.sigmaMax == 120)
            #expect(models.family.defaults.attention == .original)
        }
    }

    @Test("a model is found in a Models folder by its name")
    func places() throws {
        let folder = try Folder()
        folder.write("Models/mine/config.json", "{}")
        let models = try Catalog(entries: [], places: [folder.path]).open(ModelChoice("mine"))
        #expect(models.name == "mine")
        #expect(models.transformer == folder.path + "/Models/mine/student_sla_quant.pth")
    }

    @Test("geometry, conditioning and samplers come from the file")
    func geometry() throws {
        let numbers = [Float](repeating: 1, count: 8)
        let folder = try Folder()
        folder.write(
            "config.json",
            """
            {"name": "other", "model": {
              "vae": {"z_dim": 8, "dim_mult": [1, 2, 4], "temperal_downsample": [false, true]},
              "dit": {"patch_size": [1, 1, 1], "in_dim": 18, "num_heads": 3}},
             "latent_mean": \(numbers), "latent_std": \(numbers), "text_len": 64,
             "teacher_sampler": {"type": "unipc", "steps": 20, "shift": 7, "cfg": 2}}
            """)
        let family = try Catalog.modelSet(folder: folder.path).family
        #expect(
            family.geometry
                == LatentGeometry(
                    channels: 8, stride: Extent(t: 2, h: 4, w: 4), patch: 1))
        #expect(family.conditioning == .firstFrame && family.name == "other")
        #expect(family.textLength == 64 && family.heads == 3)
        #expect((family.defaults.width, family.defaults.height) == (512, 480))
        #expect(family.defaults.flow == .init(.unipc, steps: 20, shift: 7, guidance: 2))
    }

    @Test(
        "numbers that no model can have are refused with their key",
        arguments: [
            (#"{"text_len": 0}"#, "text_len"), (#"{"text_len": -1}"#, "text_len"),
            (#"{"text_len": 1099511627776}"#, "text_len"),
            (#"{"width": 9223372036854775807}"#, "width"), (#"{"num_frames": 0}"#, "num_frames"),
            (#"{"fps": 1000}"#, "fps"), (#"{"latent_mean": []}"#, "latent_mean"),
            (#"{"latent_std": [1, 2]}"#, "latent_std"),
            (#"{"model": {"vae": {"z_dim": 48}}}"#, "latent_mean"),
            (#"{"model": {"dit": {"in_dim": 17}}}"#, "in_dim"),
            (#"{"model": {"dit": {"patch_size": [1, 2, 3]}}}"#, "patch_size"),
            (
                #"{"model": {"dit": {"patch_size": [1, 9223372036854775807, 9223372036854775807]}}}"#,
                "patch_size"
            ),
            (#"{"model": {"vae": {"z_dim": -1}}}"#, "z_dim"),
            (#"{"model": {"dit": {"num_heads": 0}}}"#, "num_heads"),
            (#"{"sla": {"topk": 0}}"#, "sla.topk"),
            (#"{"sampler": {"num_steps": 9}}"#, "sampler.num_steps"),
            (#"{"teacher_sampler": {"type": "dpm"}}"#, "teacher_sampler.type"),
            (#"{"files": {"vae": "vae.pth\u0000.pth"}}"#, "files"),
            (#"{"teacher_sampler": {"shift": 1e300}}"#, "teacher_sampler.shift"),
            (
                #"{"model": {"vae": {"z_dim": 1}}, "latent_mean": [1e38], "latent_std": [1]}"#,
                "latent_mean"
            ),
            (
                #"{"model": {"vae": {"z_dim": 1}}, "latent_mean": [0], "latent_std": [3e38]}"#,
                "latent_std"
            ),
            (
                #"{"model": {"vae": {"z_dim": 1}}, "latent_mean": [0], "latent_std": [1e-5]}"#,
                "latent_std"
            ),
        ])
    func values(text: String, key: String) throws {
        let folder = try Folder()
        folder.write("config.json", text)
        let error = #expect(throws: CatalogError.self) {
            try Catalog.modelSet(folder: folder.path)
        }
        guard case .value(folder.path + "/config.json", key, _, _)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
    }

    @Test("a file that is not JSON, or has values of other types, gives a one-line error")
    func unreadable() throws {
        let folder = try Folder()
        for (text, words) in [
            ("", "it is not JSON"), ("[", "it is not JSON"),
            (#"{"width": "wide"}"#, "'width' is of another type, expected a whole number"),
            (#"{"text_len": 1.5}"#, "not whole where it should be"),
            (#"{"fps": 1e39}"#, "a number in it is too large"),
        ] {
            folder.write("config.json", text)
            let error = #expect(throws: CatalogError.self) {
                try Catalog.modelSet(folder: folder.path)
            }
            let line = try #require(error?.description)
            #expect(!line.contains("\n") && line.contains(words), "\(text): \(line)")
        }
    }
}
