/// From a choice of model to its files.

public import Families
import Glibc
import Ground
import SystemPackage

/// A model as a user asks for it.
public struct ModelChoice: Sendable, Hashable {
    /// The name of a published model, or a folder with a `config.json`; nil: the first model of the catalogue that fits
    /// the rest.
    public var name: String?
    /// What the model takes besides the text; nil: any.
    public var conditioning: Family.Conditioning?
    /// Files to use instead of the model's own.
    public var files: [ModelFile: String]

    public init(
        _ name: String? = nil, conditioning: Family.Conditioning? = nil,
        files: [ModelFile: String] = [:]
    ) {
        self.name = name
        self.conditioning = conditioning
        self.files = files
    }
}

extension Catalog {
    /// Finds the files of a model. Only a folder's `config.json` is read. `checkPresence` looks whether the files exist,
    /// once it is known which of them are needed.
    public func open(_ choice: ModelChoice) throws(CatalogError) -> ModelSet {
        let standardFolder = try standardFolder(for: choice)
        let known = choice.name.map(entry) ?? standard(for: choice)
        var models: ModelSet
        if let standardFolder {
            models = standardFolder
        } else if let known, case .named(let candidates) = known.files {
            models = self.models(known, candidates, choice)
        } else if let known, case .repository(let repository) = known.files {
            guard let folder = library.folder(repository) else { throw .notHere(model: known.name) }
            models = try Self.modelSet(
                folder: folder, conditioning: choice.conditioning, files: choice.files)
            models.name = known.name
        } else {
            let name = known?.name ?? choice.name ?? ""
            models = try self.models(inFolderNamed: name, choice)
        }
        if let wanted = choice.conditioning, models.family.conditioning != wanted {
            throw .conditioning(
                model: models.name, takesPicture: models.family.conditioning == .firstFrame)
        }
        for (file, path) in choice.files { models[file] = path }
        return models
    }

    /// The first model of the table that fits the files that are given.
    private func standard(for choice: ModelChoice) -> Entry? {
        let preferred = defaultName.flatMap { entry(named: $0) }.map { [$0] } ?? []
        return (preferred + entries).first { entry in
            if case .repository = entry.files, choice.files[.transformer] != nil { return false }
            let isFolder = entry.files == .folder
            return (choice.conditioning ?? .none) == entry.family.conditioning
                && (choice.files[.transformer] == nil || !isFolder)
                && (choice.files[.lowNoiseTransformer] == nil || entry.hasTwoExperts)
        }
    }

    /// The model in the folder that is the default, where that is no entry of the table and nothing else is asked for.
    /// - Throws: where there is no such folder either.
    private func standardFolder(for choice: ModelChoice) throws(CatalogError) -> ModelSet? {
        guard choice.name == nil, choice.files[.transformer] == nil, let name = defaultName,
            entry(named: name) == nil
        else { return nil }
        var own = choice
        own.conditioning = nil
        let models: ModelSet
        do { models = try self.models(inFolderNamed: name, own) } catch {
            guard case .unknown = error else { throw error }
            throw .value(
                path: defaultPlace, key: "model", found: "'\(name)'",
                expected: names.joined(separator: ", ") + " or a folder with a config.json")
        }
        return models.family.conditioning == choice.conditioning ?? Family.Conditioning.none
            ? models : nil
    }

    private func models(
        _ entry: Entry, _ candidates: [ModelFile: [String]], _ choice: ModelChoice
    ) -> ModelSet {
        /// nil where it is nowhere.
        func fromLibrary(_ file: ModelFile) -> String? {
            [entry.sources[file], entry.plainSources[file]].lazy.compactMap { $0 }.compactMap {
                library.find($0, for: file)
            }.first
        }
        func find(_ file: ModelFile) -> String {
            if let path = choice.files[file] { return path }
            let paths = (candidates[file] ?? []).map(inCheckpoints)
            return paths.first(where: exists) ?? fromLibrary(file) ?? paths.first
                ?? entry.sources[file].map(whereExpected) ?? ""
        }
        let textEncoder = find(.textEncoder)
        var tokenizer = choice.files[.tokenizer] ?? ""
        if tokenizer.isEmpty, candidates[.tokenizer] != nil { tokenizer = find(.tokenizer) }
        if tokenizer.isEmpty {
            let beside = Self.tokenizer(beside: textEncoder)
            tokenizer = exists(beside) ? beside : fromLibrary(.tokenizer) ?? beside
        }
        return ModelSet(
            name: entry.name, family: entry.family, transformer: find(.transformer),
            lowNoiseTransformer: entry.hasTwoExperts ? find(.lowNoiseTransformer) : nil,
            textEncoder: textEncoder,
            tokenizer: tokenizer, vae: find(.vae))
    }

    /// The original's folder may be elsewhere.
    private func inCheckpoints(_ path: String) -> String {
        let usual = Self.checkpointFolder + "/"
        guard library.checkpoints != Self.checkpointFolder, path.hasPrefix(usual) else {
            return path
        }
        return "\(library.checkpoints)/\(path.dropFirst(usual.count))"
    }

    /// Where a file that is not here would be.
    private func whereExpected(_ source: FileSource) -> String {
        let folder = library.models ?? "models"
        return switch source {
        case .made(let path): "\(folder)/\(path)"
        case .hub(let published): "\(folder)/\(published.repository)/\(published.path)"
        }
    }

    /// The tokenizer in one of its usual places beside a text encoder.
    private static func tokenizer(beside textEncoder: String) -> String {
        let folder = FilePath(textEncoder).removingLastComponent()
        let candidates = ["", "google/umt5-xxl", "umt5-xxl", "tokenizer"].flatMap { place in
            ["tokenizer.json", "spiece.model", "tokenizer.model"].map {
                folder.appending(place).appending($0).string
            }
        }
        return candidates.first(where: exists) ?? candidates[0]
    }

    // MARK: Folders

    /// The working folder, the program's own, what was installed with it, and the folders above it.
    static var usualPlaces: [String] {
        var places = ["."]
        guard var folder = Installation.program else { return places }
        for level in 0..<5 where folder.removeLastComponent() && folder.components.count > 0 {
            places.append(folder.string)
            if level == 0, let data = Installation.data { places.append(data.string) }
        }
        return places
    }

    private func models(inFolderNamed name: String, _ choice: ModelChoice) throws(CatalogError)
        -> ModelSet
    {
        let folders =
            [name]
            + (name.hasPrefix("/") ? [] : places).map { place in
                (place == "." ? FilePath("Models") : FilePath(place).appending("Models"))
                    .appending(name).string
            }
        guard let folder = folders.first(where: { exists($0 + "/config.json") }) else {
            throw .unknown(name: name, known: names, folders: folders)
        }
        return try Self.modelSet(
            folder: folder, conditioning: choice.conditioning, files: choice.files)
    }

    /// Reads `folder/config.json`. The model has the folder's name.
    /// - Parameters:
    ///   - conditioning: assumed if the file does not say; nil: none.
    ///   - files: files to use instead of the folder's.
    public static func modelSet(
        folder: String, conditioning: Family.Conditioning? = nil, files: [ModelFile: String] = [:]
    ) throws(CatalogError) -> ModelSet {
        let configuration = try Configuration(path: folder + "/config.json")
        let name = FilePath(folder).lastComponent?.string ?? folder
        let family = try configuration.family(
            named: name, conditioning: conditioning ?? .none, path: folder + "/config.json")
        let named = configuration.files
        func find(_ file: ModelFile, _ name: String?, _ usual: String...) -> String {
            if let path = files[file] { return path }
            let paths = (name.map { [$0] } ?? usual).map {
                FilePath(folder).appending($0).string
            }
            return paths.first(where: exists) ?? paths[0]
        }
        return ModelSet(
            name: name, family: family,
            transformer: find(
                .transformer, named?.transformer, "student_sla_quant.pth",
                "student_sla.safetensors", "transformer.safetensors", "transformer.pth"),
            lowNoiseTransformer: named?.lowNoiseTransformer.map { find(.lowNoiseTransformer, $0) },
            textEncoder: find(
                .textEncoder, named?.textEncoder, "text_encoder.safetensors", "text_encoder.pth"),
            tokenizer: find(
                .tokenizer, named?.tokenizer, "tokenizer.model", "spiece.model", "tokenizer.json"),
            vae: find(.vae, named?.vae, "vae.safetensors", "vae.pth"))
    }
}

func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }
