/// The configuration: its text, its values and where they are from, models and recipes of a user.

import Checkpoints
import Families
import FoundationEssentials
import Testing

@testable import Catalog

@Suite struct TOMLTests {
    @Test("tables, texts, numbers, truth values and comments")
    func values() throws {
        let text = """
            # a comment
            top = 1
            [folders]   # more
            models = "/a b/\\u00e4\\t\\"" # text
            raw = 'C:\\x # no comment'
            "quoted key" = -1_000
            empty = ""
              [ models . "my.own" ]
            on = true
            off = false
            plus = +7\r
            zero = 0
            """
        let document = try TOMLDocument(text)
        #expect(document.tables.map(\.path) == [[], ["folders"], ["models", "my.own"]])
        #expect(document.table()?["top"]?.value == .integer(1))
        let folders = try #require(document.table("folders"))
        #expect(folders["models"]?.value == .string("/a b/ä\t\"") && folders["models"]?.line == 4)
        #expect(folders["raw"]?.value == .string("C:\\x # no comment"))
        #expect(folders["quoted key"]?.value == .integer(-1000))
        #expect(folders["empty"]?.value == .string(""))
        let own = try #require(document.table("models", "my.own"))
        #expect(own["on"]?.value == .boolean(true) && own["off"]?.value == .boolean(false))
        #expect(own["plus"]?.value == .integer(7) && own["zero"]?.value == .integer(0))
        #expect(try TOMLDocument("").tables == [])
    }

    @Test(
        "everything else is refused by its line",
        arguments: [
            ("a = 1\nb = [1]", 2, "arrays"), ("a = {x = 1}", 1, "inline tables"),
            ("a.b = 1", 1, "dotted keys"), ("[[a]]", 1, "arrays of tables"),
            ("a = \"\"\"x\"\"\"", 1, "several lines"), ("a = '''x'''", 1, "several lines"),
            ("a = 1.5", 1, "no value"), ("a = 0x10", 1, "no value"), ("a = 01", 1, "no value"),
            ("a = 1__0", 1, "no value"), ("a = 2026-01-01", 1, "no value"),
            ("a = yes", 1, "no value"), ("a = --1", 1, "no value"),
            ("a = 99999999999999999999", 1, "no value"), ("a =", 1, "expected a value"),
            ("a = # x", 1, "expected a value"), ("a", 1, "expected '='"), ("= 1", 1, "a name"),
            ("a = \"x", 1, "at its end"), ("a = \"\\q\"", 1, "escape"),
            ("a = \"\\uD800\"", 1, "escape"), ("a = \"x\ny\"", 1, "at its end"),
            ("a = \"\u{1}\"", 1, "control"), ("a = 1 b = 2", 1, "more than"),
            ("a = 1\na = 2", 2, "there already"), ("[a]\n[b]\n[a]", 3, "there already"),
            ("[a", 1, "expected ']'"), ("[]", 1, "a name"), ("[a] x", 1, "more than"),
            ("\u{FEFF}a = 1", 1, "a name"), ("ä = 1", 1, "a name"),
        ])
    func refused(text: String, line: Int, reason: String) {
        let error = #expect(throws: TOMLError.self) { try TOMLDocument(text) }
        #expect(error?.line == line && error?.reason.contains(reason) == true, "\(error as Any)")
    }

    @Test("damaged texts are read or refused, whatever they are")
    func damaged() throws {
        let text = Array(
            "[models.a]\nb = \"c\\u0041\" # d\ne = -12\nf = 'g'\n[h.\"i\"]\nj = true\n".utf8)
        var random = SystemRandomNumberGenerator()
        for _ in 0..<3000 {
            var bytes = text
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[place] = .random(in: 0...255, using: &random)
                case 1: bytes.insert(.random(in: 0...127, using: &random), at: place)
                default: bytes.removeSubrange(place...)
                }
                if bytes.isEmpty { break }
            }
            let lines = bytes.count { $0 == 10 } + 1
            do { _ = try TOMLDocument(String(decoding: bytes, as: UTF8.self)) } catch {
                #expect((1...lines).contains(error.line))
            }
        }
    }
}

private func settings(_ text: String?, _ variables: [String: String] = [:]) throws -> Settings {
    try Settings(environment: { (["HOME": "/home/u"].merging(variables) { $1 })[$0] }) { _ in text }
}

@Suite struct SettingsTests {
    @Test("a variable comes before the file, the file before what is usual")
    func sources() throws {
        let text = """
            [folders]
            models = "~/m"
            comfyui = "/c"
            [defaults]
            memory_limit = "12GiB"
            """
        let own = try settings(text)
        let path = "/home/u/.config/turbodiffusion/config.toml"
        #expect(own.file == path)
        #expect(own[.models] == .init(text: "/home/u/m", source: .file(path, line: 2)))
        #expect(own[.memoryLimit] == .init(text: "12GiB", source: .file(path, line: 5)))
        #expect("\(own[.comfyUI]!.source)" == path + ":3")
        #expect(own[.endpoint] == .init(text: "https://huggingface.co", source: .usual))
        #expect(own[.model] == nil && own[.device] == nil)
        let more = try settings(
            text, ["TURBODIFFUSION_MODELS": "/v", "HF_ENDPOINT": "http://m", "HF_HOME": "/hf"])
        #expect(more[.models] == .init(text: "/v", source: .environment("TURBODIFFUSION_MODELS")))
        #expect(more[.endpoint]?.source == .environment("HF_ENDPOINT"))
        #expect(more[.hubCache] == .init(text: "/hf/hub", source: .environment("HF_HOME")))
        let none = try settings(nil, ["XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "relative"])
        #expect(none[.models]?.text == "/d/turbodiffusion/models")
        #expect(none[.hubCache]?.text == "/home/u/.cache/huggingface/hub")
        #expect(none[.checkpoints]?.text == "checkpoints")
        #expect(try settings(nil, ["TURBODIFFUSION_MODELS": ""])[.models]?.source == .usual)
    }

    @Test("a file that is named must be there")
    func named() {
        #expect(throws: SettingsError.self) { try settings(nil, ["TURBODIFFUSION_CONFIG": "/x"]) }
    }

    @Test(
        "what cannot be used is refused by file and line",
        arguments: [
            ("[folder]\nmodels = \"/a\"", ":1: [folder] is unknown"),
            ("[folders]\nmodel = \"/a\"", ":2: 'model' is unknown in [folders]"),
            ("[folders]\nmodels = \"a\"", ":2: 'models' is 'a': expected a folder"),
            ("[folders]\nmodels = true", ":2: 'models' is true"),
            ("a = 1", ":1: a key before the first table"),
            ("[hub]\nconnections = 99", "connections is '99'"),
            ("[hub]\nendpoint = \"\"", ":2: 'endpoint' is empty"),
            ("[folders]\nmodels = [1]", ":2: arrays are not supported"),
        ])
    func refused(text: String, line: String) {
        let error = #expect(throws: SettingsError.self) { try settings(text) }
        #expect(error?.description.contains(line) == true, "\(error as Any)")
    }
}

@Suite struct OwnModelTests {
    @Test("models of a user: like a known one, with files of their own")
    func models() throws {
        let text = """
            [models.my-14B]
            like = "wan2.1-14b"
            transformer = "me/repo@v1:dir/t.safetensors"
            vae = "me/repo:vae.pth"
            licence = "MIT"
            [models.whole]
            folder = "me/folder"
            """
        let models = try settings(text).models
        #expect(models.map(\.name) == ["my-14B", "whole"] && models[0].licence == "MIT")
        #expect(models[0].transformer == .wan21T2V14B && !models[0].hasTwoExperts)
        #expect(
            models[0].sources[.transformer]
                == .hub(Published("me/repo", "dir/t.safetensors", revision: "v1")))
        #expect(models[0].sources[.textEncoder] == .hub(Catalog.textEncoder))
        #expect(models[1].files == .repository(Published("me/folder", "config.json")))
    }

    @Test(
        "descriptions that are none",
        arguments: [
            ("[models.nano]\nfolder = \"a/b\"", "there is a model nano already"),
            ("[models.\"a b\"]\nfolder = \"a/b\"", "no name of a model"),
            ("[models.x]\ntransformer = \"file.pth\"", "expected OWNER/NAME:FILE"),
            ("[models.x]\ntransformer = 1", "expected a text"),
            ("[models.x]\nlicence = \"MIT\"", "needs 'transformer' or 'folder'"),
            ("[models.x]\nlike = \"y\"\ntransformer = \"a/b:c\"", "'like' is 'y'"),
            ("[models.x]\nlike = \"Wan2.2-A14B\"\ntransformer = \"a/b:c\"", "two experts"),
            (
                "[models.x]\ntransformer = \"a/b:c\"\nlow_noise_transformer = \"a/b:d\"",
                "one transformer"
            ),
            ("[models.x]\ntransformer = \"a/b:c\"\nsize = 3", "'size' is unknown"),
            ("[recipes.x]\nbase = \"a/b:c\"", "needs 'base', 'from' and 'to'"),
            (
                "[recipes.x]\nbase = \"a/b:c\"\nfrom = \"a/b:d\"\nto = \"a/b:e\"\nweight = \"x\"",
                "expected a number"
            ),
        ])
    func refused(text: String, line: String) {
        let error = #expect(throws: SettingsError.self) { try settings(text) }
        #expect(error?.description.contains(line) == true, "\(error as Any)")
    }

    @Test("recipes: weights of the authors, each part once")
    func recipes() throws {
        let catalog = Catalog.published
        let turbo = try #require(catalog.entry(named: "TurboWan2.2-T2V-A14B")?.recipe)
        #expect(turbo.sums[.transformer]?.differences.map(\.weight) == [4, 1])
        #expect(turbo.sums[.lowNoiseTransformer]?.differences.map(\.weight) == [1, 1])
        #expect(turbo.parts.count == 5 && Set(turbo.parts).count == 5)
        let own = try settings(
            """
            [recipes.mix]
            base = "a/b:c"
            from = "a/b:d"
            to = "a/b:e"
            weight = "0.5"
            """
        ).models
        #expect(own.first?.recipe?.sums[.transformer]?.differences.first?.weight == 0.5)
        #expect(own.first?.sources[.transformer] == .made("recipes/mix/transformer.safetensors"))
    }
}

@Suite struct LibraryTests {
    private let published = Published("Wan-AI/n", "dir/t.pth")

    @Test(
        "files are found in the original's folder, downloads, the hub's cache, ComfyUI: in this order"
    )
    func order() throws {
        let folder = try Folder()
        let library = Library(
            models: folder.path + "/m", checkpoints: folder.path + "/c",
            hubCache: folder.path + "/h", comfyUI: folder.path + "/u")
        func find(_ file: ModelFile = .transformer) -> String? {
            library.find(.hub(published), for: file)
        }
        #expect(find() == nil)
        let snapshot = "h/models--Wan-AI--n/snapshots/abc/dir/t.pth"
        folder.write("h/models--Wan-AI--n/refs/main", "abc\n")
        for place in ["u/diffusion_models/t.pth", snapshot, "m/Wan-AI/n/dir/t.pth", "c/t.pth"] {
            folder.write(place)
            #expect(find() == folder.path + "/" + place)
        }
        // Of others a name says nothing: it counts only with its repository.
        let other = FileSource.hub(Published("me/n", "t.pth"))
        #expect(library.find(other, for: .transformer) == nil)
        folder.write("m/me/n/t.pth")
        #expect(library.find(other, for: .transformer) == folder.path + "/m/me/n/t.pth")
        #expect(find(.vae) != nil)
        #expect(library.find(.made("recipes/x/t"), for: .transformer) == nil)
        folder.write("m/recipes/x/t")
        #expect(library.find(.made("recipes/x/t"), for: .transformer) != nil)
    }

    @Test("a reference of the cache that leads elsewhere is none")
    func hostile() throws {
        let folder = try Folder()
        folder.write("h/models--Wan-AI--n/refs/main", "../../../x")
        folder.write("x/dir/t.pth")
        let library = Library(hubCache: folder.path + "/h")
        #expect(library.find(.hub(published), for: .transformer) == nil)
    }

    @Test("a model by name is made of what is found, wherever it is")
    func byName() throws {
        let folder = try Folder()
        var catalog = Catalog.published
        catalog.library = Library(
            models: folder.path + "/m", checkpoints: folder.path + "/c",
            comfyUI: folder.path + "/u")
        let repository = "m/TurboDiffusion/TurboWan2.1-T2V-1.3B-480P"
        folder.write(repository + "/TurboWan2.1-T2V-1.3B-480P-quant.pth")
        folder.write("u/vae/wan_2.1_vae.safetensors")
        folder.write("m/google/umt5-xxl/spiece.model")
        folder.write("c/models_t5_umt5-xxl-enc-bf16.pth")
        let models = try catalog.open(ModelChoice("Wan2.1-1.3B"))
        try models.checkPresence(of: ModelFile.allCases)
        #expect(models.vae.hasSuffix("wan_2.1_vae.safetensors"))
        #expect(models.tokenizer.hasSuffix("google/umt5-xxl/spiece.model"))
        #expect(models.textEncoder == folder.path + "/c/models_t5_umt5-xxl-enc-bf16.pth")
        let other = try catalog.open(ModelChoice("TurboWan2.2-T2V-A14B"))
        #expect(other.lowNoiseTransformer?.hasSuffix("low-noise-transformer.safetensors") == true)
    }

    @Test("a default model is taken where it fits")
    func standard() throws {
        var catalog = Catalog(entries: Catalog.known)
        catalog.defaultName = "wan2.1-14b"
        #expect(
            try catalog.open(ModelChoice(conditioning: Family.Conditioning.none)).name
                == "Wan2.1-14B")
        #expect(try catalog.open(ModelChoice(conditioning: .firstFrame)).name == "Wan2.2-A14B")
        let folder = try Folder()
        folder.write("own/config.json", "{}")
        catalog.defaultName = folder.path + "/own"
        #expect(try catalog.open(ModelChoice()).name == "own")
        #expect(try catalog.open(ModelChoice("nano")).name == "nano")
        #expect(try catalog.open(ModelChoice(conditioning: .firstFrame)).name == "Wan2.2-A14B")
        #expect(
            try catalog.open(ModelChoice(files: [.transformer: "t"])).name == "Wan2.1-1.3B")
    }

    @Test("a default that is no model is told with its place")
    func unknownStandard() throws {
        var catalog = Catalog(entries: Catalog.known)
        let place = try #require(try settings("[defaults]\nmodel = 5")[.model])
        (catalog.defaultName, catalog.defaultPlace) = (place.text, "\(place.source)")
        let error = #expect(throws: CatalogError.self) { try catalog.open(ModelChoice()) }
        #expect(
            error?.description.contains("config.toml:2: 'model' is '5', expected nano, ") == true)
        #expect(try catalog.open(ModelChoice("nano")).name == "nano")
        #expect(try catalog.open(ModelChoice(files: [.transformer: "t"])).name == "Wan2.1-1.3B")
    }

    @Test("a model in a repository's folder that is not here is told by its name")
    func repository() throws {
        let folder = try Folder()
        var catalog = Catalog(entries: [
            Catalog.Entry(
                "own", .wan21, .repository(Published("o/n", "config.json")), transformer: .nano)
        ])
        catalog.library = Library(models: folder.path)
        #expect(throws: CatalogError.notHere(model: "own")) { try catalog.open(ModelChoice("own")) }
        folder.write("o/n/config.json", #"{"files": {"transformer": "t.pth"}}"#)
        let models = try catalog.open(ModelChoice("own"))
        #expect(models.name == "own" && models.transformer == folder.path + "/o/n/t.pth")
    }

    @Test("names in indices and configurations")
    func names() {
        let index =
            #"{"metadata": {"total_size": 1}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#
        #expect(Catalog.pieceNames(index: Array(index.utf8)) == ["1.safetensors", "2.safetensors"])
        #expect(Catalog.pieceNames(index: Array("[]".utf8)) == nil)
        let configuration = #"{"files": {"transformer": "t", "text_encoder": "e", "vae": "v"}}"#
        #expect(Catalog.fileNames(configuration: Array(configuration.utf8)) == ["t", "e", "v"])
        #expect(Catalog.fileNames(configuration: Array("{}".utf8)) == nil)
    }
}
