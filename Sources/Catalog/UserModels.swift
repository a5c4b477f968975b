/// Models and recipes of a user's configuration: `[models.NAME]` and `[recipes.NAME]`.

import Checkpoints
import Families

extension Catalog.Entry {
    private static let fileKeys: [(String, ModelFile)] = [
        ("transformer", .transformer), ("low_noise_transformer", .lowNoiseTransformer),
        ("text_encoder", .textEncoder), ("tokenizer", .tokenizer), ("vae", .vae),
    ]

    /// - Parameters:
    ///   - table: `[models.NAME]` or `[recipes.NAME]`.
    ///   - own: those before it.
    init(_ table: TOMLDocument.Table, knowing own: [Catalog.Entry]) throws(TOMLError) {
        let (kind, name) = (table.path[0], table.path[1])
        func refuse(_ line: Int, _ reason: String) -> TOMLError {
            TOMLError(line: line, reason: reason)
        }
        guard !name.isEmpty, name.utf8.count <= 64, name.first != ".", name.first != "-",
            name.utf8.allSatisfy({ byte in
                let character = Character(Unicode.Scalar(byte))
                return character.isASCII && (character.isLetter || character.isNumber)
                    || "._-".contains(character)
            })
        else {
            throw refuse(
                table.line, "'\(name)' is no name of a model: letters, digits, '.', '_' and '-'")
        }
        let all = Catalog.known + Catalog.knownRecipes + own
        if let other = all.first(where: { $0.name.lowercased() == name.lowercased() }) {
            throw refuse(table.line, "there is a model \(other.name) already")
        }
        func text(_ key: String) throws(TOMLError) -> String? {
            guard let entry = table[key] else { return nil }
            guard case .string(let text) = entry.value, !text.isEmpty else {
                throw refuse(entry.line, "'\(key)' is \(entry.value.text), expected a text")
            }
            return text
        }
        func published(_ key: String) throws(TOMLError) -> Published? {
            guard let value = try text(key) else { return nil }
            guard let published = Published(value) else {
                throw refuse(
                    table[key]?.line ?? table.line,
                    "'\(key)' is '\(value)': expected OWNER/NAME:FILE or OWNER/NAME@REVISION:FILE")
            }
            return published
        }
        func allow(_ keys: [String]) throws(TOMLError) {
            for entry in table.entries where !keys.contains(entry.key) {
                throw refuse(
                    entry.line,
                    "'\(entry.key)' is unknown in [\(kind).\(name)]: expected \(keys.joined(separator: ", "))"
                )
            }
        }
        let licence = try text("licence")
        if let folder = try text("folder") {
            guard kind == "models", let repository = Published(folder + ":config.json") else {
                throw refuse(
                    table["folder"]?.line ?? table.line,
                    "'folder' is '\(folder)': expected OWNER/NAME or OWNER/NAME@REVISION of a model"
                )
            }
            try allow(["folder", "licence"])
            self.init(
                name, .wan21, .repository(repository), transformer: .nano, licence: licence)
            return
        }
        let like = try text("like") ?? "Wan2.1-1.3B"
        let bases = all.filter { if case .named = $0.files { true } else { false } }
        guard let base = bases.first(where: { $0.name.lowercased() == like.lowercased() }) else {
            throw refuse(
                table["like"]?.line ?? table.line,
                "'like' is '\(like)': expected \(bases.map(\.name).joined(separator: ", "))")
        }
        let fileKeys = Self.fileKeys.map(\.0)
        var sources = Catalog.shared
        for (key, file) in Self.fileKeys {
            if let place = try published(key) { sources[file] = .hub(place) }
        }
        var recipe: Recipe?
        if kind == "recipes" {
            try allow(
                ["like", "licence", "base", "from", "to", "weight", "low_noise_base"]
                    + ["low_noise_weight"] + fileKeys.suffix(3))
            func weight(_ key: String) throws(TOMLError) -> Float {
                guard let entry = table[key] else { return 1 }
                guard let number = Float(entry.value.text), number.isFinite else {
                    throw refuse(
                        entry.line, "'\(key)' is '\(entry.value.text)': expected a number")
                }
                return number
            }
            guard let from = try published("from"), let to = try published("to"),
                let first = try published("base")
            else {
                throw refuse(table.line, "a recipe needs 'base', 'from' and 'to'")
            }
            func sum(_ base: Published, _ weight: Float) -> Recipe.Sum {
                Recipe.Sum(
                    base: base,
                    differences: [Recipe.Difference(from: from, to: to, weight: weight)])
            }
            var sums = [ModelFile.transformer: sum(first, try weight("weight"))]
            if let second = try published("low_noise_base") {
                sums[.lowNoiseTransformer] = sum(second, try weight("low_noise_weight"))
            }
            for file in sums.keys { sources[file] = .made(Recipe.path(name, file)) }
            recipe = Recipe(sums: sums, note: "of the configuration")
        } else {
            try allow(["like", "licence", "folder"] + fileKeys)
            guard sources[.transformer] != nil else {
                throw refuse(table.line, "[\(kind).\(name)] needs 'transformer' or 'folder'")
            }
        }
        guard base.hasTwoExperts == (sources[.lowNoiseTransformer] != nil) else {
            throw refuse(
                table.line,
                base.hasTwoExperts
                    ? "\(base.name) has two experts: a low-noise one is missing"
                    : "\(base.name) has one transformer: a low-noise one has no place")
        }
        self.init(
            name, base.family, .named([:]), resolution: base.resolution,
            transformer: base.transformer, textEncoder: base.textEncoder, vae: base.vae,
            sources: sources, licence: licence, recipe: recipe)
    }
}
