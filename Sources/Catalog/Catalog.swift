/// The published models by name, and what is known about each before a file is opened.

public import Checkpoints
public import Families

/// A table of models.
public struct Catalog: Sendable {
    /// One model.
    public struct Entry: Sendable, Hashable {
        /// Where the files of a model are looked for by default.
        public enum Files: Sendable, Hashable {
            /// In a folder with the model's name and a `config.json`, whose values override the entry's family.
            case folder
            /// Candidates for each file; the first that exists is taken. Without a candidate for the tokenizer, it is
            /// looked for beside the text encoder.
            case named([ModelFile: [String]])
            /// A repository of the hub with a `config.json`, as a folder.
            case repository(Published)
        }

        public var name: String
        public var family: Family
        public var files: Files
        /// The named resolution to which an aspect ratio applies; nil: only the family's own size.
        public var resolution: String?
        // Sizes of the parts, for runs with random weights.
        public var transformer: WanTransformerArchitecture
        public var textEncoder: UMT5Architecture
        public var vae: WanVAEArchitecture
        /// Where each file comes from.
        public var sources: [ModelFile: FileSource] = [:]
        /// The same files without quantisation, where the others have it.
        public var plainSources: [ModelFile: FileSource] = [:]
        /// As its authors say.
        public var licence: String?
        /// How its transformers are made, where nobody publishes them.
        public var recipe: Recipe?

        public init(
            _ name: String, _ family: Family, _ files: Files, resolution: String? = nil,
            transformer: WanTransformerArchitecture, textEncoder: UMT5Architecture = .xxl,
            vae: WanVAEArchitecture = WanVAEArchitecture(),
            sources: [ModelFile: FileSource] = [:], plain: [ModelFile: FileSource] = [:],
            licence: String? = nil, recipe: Recipe? = nil
        ) {
            self.sources = sources
            plainSources = plain
            self.licence = licence
            self.recipe = recipe
            self.name = name
            self.family = family
            self.files = files
            self.resolution = resolution
            self.transformer = transformer
            self.textEncoder = textEncoder
            self.vae = vae
        }

        /// What the file of a part holds, told by its sizes alone. Distilled transformers have the linear branch of SLA.
        public func outline(_ part: ModelPart) -> DetectedModel {
            switch part {
            case .textEncoder: return .umT5(textEncoder)
            case .imageEncoder, .decoder: return .wanVAE(vae)
            case .transformer, .lowNoiseTransformer:
                var sizes = transformer
                sizes.hasSparseLinearAttention = true
                return .wanTransformer(sizes)
            }
        }

        /// Whether its sizes are told only by a `config.json` of the hub.
        public var isRepository: Bool {
            if case .repository = files { true } else { false }
        }

        public var hasTwoExperts: Bool {
            if case .named(let files) = files {
                files[.lowNoiseTransformer] != nil || sources[.lowNoiseTransformer] != nil
            } else {
                false
            }
        }
    }

    public var entries: [Entry]
    /// Models that are made, not published. They are found by name.
    public var recipes: [Entry] = []
    /// Where files may be.
    public var library = Library()
    /// The model where none is named; nil: the first that fits.
    public var defaultName: String?
    /// Where that is said, for messages.
    var defaultPlace = "the default"
    /// Folders that may contain a folder `Models`.
    var places: [String]

    /// - Parameters:
    ///   - entries: the models, the default ones first.
    ///   - places: folders in which a `Models` folder is looked for; nil: the working folder, the program's own, and
    ///     those above it.
    public init(entries: [Entry], places: [String]? = nil) {
        self.entries = entries
        self.places = places ?? Self.usualPlaces
    }

    public var names: [String] { entries.map(\.name) }

    /// The model with a name; case does not matter.
    public func entry(named name: String) -> Entry? {
        (entries + recipes).first { $0.name.lowercased() == name.lowercased() }
    }
}

extension Catalog {
    /// The models that this program and its user's configuration know by name.
    public static let published: Catalog = {
        var catalog = Catalog(entries: known)
        catalog.recipes = knownRecipes
        let settings = Settings.current
        catalog.library = Library(settings)
        if let model = settings[.model] {
            (catalog.defaultName, catalog.defaultPlace) = (model.text, "\(model.source)")
        }
        for own in settings.models where own.recipe == nil { catalog.entries.append(own) }
        for own in settings.models where own.recipe != nil { catalog.recipes.append(own) }
        return catalog
    }()

    /// Those of this program.
    static let known = [
        Entry(
            "nano", nano, .folder, transformer: .nano, textEncoder: .nano,
            vae: WanVAEArchitecture(dim: 24), licence: apache),
        Entry(
            "Wan2.1-1.3B", .wan21, wanFiles(["TurboWan2.1-T2V-1.3B-480P"]), resolution: "480p",
            transformer: .wan21T2V1B, sources: turbo("TurboWan2.1-T2V-1.3B-480P"),
            plain: turboPlain("TurboWan2.1-T2V-1.3B-480P"), licence: apache),
        Entry(
            "Wan2.1-14B", .wan21,
            wanFiles(["TurboWan2.1-T2V-14B-480P", "TurboWan2.1-T2V-14B-720P"]),
            resolution: "480p", transformer: .wan21T2V14B,
            sources: turbo("TurboWan2.1-T2V-14B-480P"),
            plain: turboPlain("TurboWan2.1-T2V-14B-480P"), licence: apache),
        Entry(
            "Wan2.1-14B-720P", wan21At720, wanFiles(["TurboWan2.1-T2V-14B-720P"]),
            resolution: "720p", transformer: .wan21T2V14B,
            sources: turbo("TurboWan2.1-T2V-14B-720P"),
            plain: turboPlain("TurboWan2.1-T2V-14B-720P"), licence: apache),
        Entry(
            "Wan2.2-A14B", .wan22I2V,
            wanFiles(
                ["TurboWan2.2-I2V-A14B-high-720P"], low: ["TurboWan2.2-I2V-A14B-low-720P"]),
            resolution: "720p", transformer: .wan22I2VA14B,
            sources: turbo(
                "TurboWan2.2-I2V-A14B-720P", high: "TurboWan2.2-I2V-A14B-high-720P",
                low: "TurboWan2.2-I2V-A14B-low-720P"),
            plain: turboPlain(
                "TurboWan2.2-I2V-A14B-720P", high: "TurboWan2.2-I2V-A14B-high-720P",
                low: "TurboWan2.2-I2V-A14B-low-720P"), licence: apache),
        Entry(
            "Wan2.2-T2V-A14B", .wan21,
            wanFiles(
                ["Wan2.2-T2V-A14B/high_noise_model"], low: ["Wan2.2-T2V-A14B/low_noise_model"]),
            resolution: "480p", transformer: .wan21T2V14B,
            sources: shared.merging([
                .transformer: .hub(wanShards("Wan2.2-T2V-A14B", "high_noise_model/")),
                .lowNoiseTransformer: .hub(wanShards("Wan2.2-T2V-A14B", "low_noise_model/")),
            ]) { $1 }, licence: apache),
    ]

    private static let nano: Family = {
        var family = Family(name: "nano", roundsTimesteps: false)
        (family.defaults.width, family.defaults.height) = (256, 144)
        family.defaults.frames = 33
        (family.defaults.attention, family.defaults.topK) = (.sla, 0.2)
        return family
    }()

    private static let wan21At720: Family = {
        var family = Family.wan21
        (family.defaults.width, family.defaults.height) = (1280, 720)
        return family
    }()

    /// Where the original's scripts look for checkpoints.
    public static let checkpointFolder = "checkpoints"

    private static func wanFiles(_ transformers: [String], low: [String]? = nil) -> Entry.Files {
        func inFolder(_ names: [String]) -> [String] { names.map { checkpointFolder + "/" + $0 } }
        func ofTransformers(_ stems: [String]) -> [String] {
            inFolder(stems.flatMap { [$0 + "-quant.pth", $0 + ".pth", $0] })
        }
        return .named(
            [
                .transformer: ofTransformers(transformers),
                .textEncoder: inFolder(["models_t5_umt5-xxl-enc-bf16.pth"]),
                .vae: inFolder(["Wan2.1_VAE.pth"]),
            ].merging(low.map { [.lowNoiseTransformer: ofTransformers($0)] } ?? [:]) { $1 })
    }
}
