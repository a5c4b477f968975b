/// Models that nobody publishes and that are sums of those that somebody does.

import Checkpoints
import Families

/// How the transformers of a model are made: base + Σ weight · (to − from), then quantised.
public struct Recipe: Sendable, Hashable {
    /// The change from one checkpoint to another, added to a third.
    public struct Difference: Sendable, Hashable {
        public var from, to: Published
        public var weight: Float

        public init(from: Published, to: Published, weight: Float) {
            self.from = from
            self.to = to
            self.weight = weight
        }
    }

    /// One transformer.
    public struct Sum: Sendable, Hashable {
        public var base: Published
        /// Added in this order; tensors that only a `to` has are taken from it.
        public var differences: [Difference]

        public init(base: Published, differences: [Difference]) {
            self.base = base
            self.differences = differences
        }
    }

    /// By the file that is made.
    public var sums: [ModelFile: Sum]
    /// What is known of it, for people.
    public var note: String

    public init(sums: [ModelFile: Sum], note: String) {
        self.sums = sums
        self.note = note
    }

    /// Every checkpoint that is needed, each once, in the order of use.
    public var parts: [Published] {
        var parts: [Published] = []
        for file in ModelFile.allCases {
            guard let sum = sums[file] else { continue }
            for part in [sum.base] + sum.differences.flatMap({ [$0.from, $0.to] })
            where !parts.contains(part) { parts.append(part) }
        }
        return parts
    }

    /// Where a file is made, inside the folder of models.
    static func path(_ name: String, _ file: ModelFile) -> String {
        "recipes/\(name)/\(file.rawValue).safetensors"
    }
}

extension Catalog {
    static let apache = "Apache-2.0"

    // MARK: Where the authors publish
    // Names and places: README.md of thu-ml/TurboDiffusion and Wan.md of NVlabs/rcm, "Checkpoints Downloading".

    static let vae = Published("Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth")
    static let textEncoder = Published(
        "Wan-AI/Wan2.1-T2V-1.3B", "models_t5_umt5-xxl-enc-bf16.pth")
    static let tokenizer = Published("google/umt5-xxl", "spiece.model")

    /// What all Wan models have in common.
    static let shared: [ModelFile: FileSource] = [
        .vae: .hub(vae), .textEncoder: .hub(textEncoder), .tokenizer: .hub(tokenizer),
    ]

    static func turbo(_ repository: String, high: String? = nil, low: String? = nil)
        -> [ModelFile: FileSource]
    {
        shared.merging(
            turboFiles(repository, high ?? repository, low, ending: "-quant.pth")
        ) { $1 }
    }

    static func turboPlain(_ repository: String, high: String? = nil, low: String? = nil)
        -> [ModelFile: FileSource]
    {
        turboFiles(repository, high ?? repository, low, ending: ".pth")
    }

    private static func turboFiles(
        _ repository: String, _ high: String, _ low: String?, ending: String
    ) -> [ModelFile: FileSource] {
        let place = "TurboDiffusion/\(repository)"
        var files: [ModelFile: FileSource] = [
            .transformer: .hub(Published(place, high + ending))
        ]
        if let low { files[.lowNoiseTransformer] = .hub(Published(place, low + ending)) }
        return files
    }

    /// A transformer as Wan's authors publish it, in pieces.
    static func wanShards(_ repository: String, _ folder: String = "") -> Published {
        Published(
            "Wan-AI/\(repository)", "\(folder)diffusion_pytorch_model.safetensors.index.json")
    }

    // MARK: Sums

    private static let wan14B = wanShards("Wan2.1-T2V-14B")
    private static let rcm14B = Published("worstcoder/rcm-Wan", "rCM_Wan2.1_T2V_14B_480p.pt")
    private static let turbo14B = Published(
        "TurboDiffusion/TurboWan2.1-T2V-14B-480P", "TurboWan2.1-T2V-14B-480P.pth")

    /// rCM's change on both experts, with the weights by which its authors made Wan2.2-I2V-A14B-high-rCM4.0-merged and
    /// -low-rCM1.0-merged (Wan.md of NVlabs/rcm); then, where wanted, what training of SLA has changed.
    private static func sums(_ repository: String, sparse: Bool) -> [ModelFile: Recipe.Sum] {
        let experts: [(ModelFile, String, Float)] = [
            (.transformer, "high_noise_model/", 4), (.lowNoiseTransformer, "low_noise_model/", 1),
        ]
        var sums: [ModelFile: Recipe.Sum] = [:]
        for (file, folder, weight) in experts {
            var differences = [Recipe.Difference(from: wan14B, to: rcm14B, weight: weight)]
            if sparse {
                differences.append(Recipe.Difference(from: rcm14B, to: turbo14B, weight: 1))
            }
            sums[file] = Recipe.Sum(
                base: wanShards(repository, folder), differences: differences)
        }
        return sums
    }

    private static func made(_ name: String) -> [ModelFile: FileSource] {
        shared.merging([
            .transformer: .made(Recipe.path(name, .transformer)),
            .lowNoiseTransformer: .made(Recipe.path(name, .lowNoiseTransformer)),
        ]) { $1 }
    }

    private static let parts = "Apache-2.0 (Wan, TurboDiffusion); rCM: see worstcoder/rcm-Wan"

    static let knownRecipes: [Entry] = [
        Entry(
            "TurboWan2.2-T2V-A14B", .wan21, .named([:]), resolution: "480p",
            transformer: .wan21T2V14B, sources: made("TurboWan2.2-T2V-A14B"), licence: parts,
            recipe: Recipe(
                sums: sums("Wan2.2-T2V-A14B", sparse: true),
                note:
                    "rCM's change on both experts (4.0 and 1.0, as its authors did for pictures), and that of SLA (1.0)"
            )),
        Entry(
            "rCM-Wan2.2-T2V-A14B", .wan21, .named([:]), resolution: "480p",
            transformer: .wan21T2V14B, sources: made("rCM-Wan2.2-T2V-A14B"), licence: parts,
            recipe: Recipe(
                sums: sums("Wan2.2-T2V-A14B", sparse: false),
                note:
                    "rCM's change alone (4.0 and 1.0, as its authors did for pictures): run it with --attention_type original"
            )),
        Entry(
            "rCM-Wan2.2-I2V-A14B", .wan22I2V, .named([:]), resolution: "720p",
            transformer: .wan22I2VA14B, sources: made("rCM-Wan2.2-I2V-A14B"), licence: parts,
            recipe: Recipe(
                sums: sums("Wan2.2-I2V-A14B", sparse: false),
                note:
                    "rCM's change alone, as its authors made it (4.0 and 1.0): run it with --attention_type original"
            )),
    ]
}
