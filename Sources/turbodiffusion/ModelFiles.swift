/// Which files of the hub a model consists of, and which of them are on this machine.

import Catalog
import Downloads
import Families
import Glibc
import Ground
import SystemPackage

extension HubFile {
    init(_ published: Published) throws(DownloadError) {
        try self.init(
            published.repository, revision: published.revision, published.path)
    }

    /// A file in the folder of this one.
    func sibling(_ name: String) throws(DownloadError) -> HubFile {
        let folder = path.split(separator: "/").dropLast().map { $0 + "/" }.joined()
        return try HubFile(repository, revision: revision, folder + name)
    }

    var name: String { path.split(separator: "/").last.map(String.init) ?? path }
}

extension Catalog {
    /// What to type for a model that is not here; nil where nothing helps.
    func howToGet(_ name: String) -> String? {
        guard let entry = entry(named: name), entry.files != .folder else { return nil }
        return entry.recipe == nil
            ? "'turbodiffusion get \(entry.name)' downloads it"
            : "'turbodiffusion get --recipe \(entry.name)' makes it"
    }
}

/// The models of the catalogue as files on this machine.
struct ModelFiles {
    let catalog: Catalog
    let folder: ModelFolder

    /// - Throws: where the configuration cannot be used, or there is no folder for models.
    init(_ catalog: Catalog = .published) throws {
        do { _ = try Settings.loaded.get() } catch { throw UserError("settings", "\(error)") }
        guard let path = catalog.library.models else {
            throw UserError(
                "settings",
                "there is no folder for models: set TURBODIFFUSION_MODELS, or HOME")
        }
        self.catalog = catalog
        folder = ModelFolder(FilePath(path))
    }

    static func hub() throws -> Hub {
        return try Hub(
            endpoint: Settings.current[.endpoint]?.text, token: environment("HF_TOKEN"))
    }

    func entry(_ name: String) throws -> Catalog.Entry {
        guard let entry = catalog.entry(named: name) else {
            let names = (catalog.entries + catalog.recipes).map(\.name).joined(separator: ", ")
            throw UserError(
                "model.catalog",
                "no model '\(name.printable)': expected one of \(names); 'turbodiffusion models' tells more"
            )
        }
        return entry
    }

    /// The paths of a model's files as they would be used now; nil where nothing is known of them.
    func paths(_ entry: Catalog.Entry) -> ModelSet? {
        try? catalog.open(ModelChoice(entry.name))
    }

    /// The files of a model that are nowhere on this machine; nil: all of them, and which they are is not known yet.
    func missing(_ entry: Catalog.Entry) -> [ModelFile]? {
        guard let paths = paths(entry) else { return nil }
        return ModelFile.allCases.filter { file in
            paths[file].map { !FilePath($0).exists } ?? false
        }
    }

    /// The files of the hub that a part of a model is published as.
    func sources(_ entry: Catalog.Entry) -> [Published] {
        var files = entry.recipe?.parts ?? []
        for file in ModelFile.allCases {
            for source in [entry.sources[file], entry.plainSources[file]] {
                if case .hub(let published)? = source { files.append(published) }
            }
        }
        if case .repository(let configuration) = entry.files { files.append(configuration) }
        return files
    }

    /// The files that are in the folder of models for what is published there: itself, and what its index or
    /// configuration names.
    func kept(_ published: Published) -> [HubFile] {
        guard let file = try? HubFile(published) else { return [] }
        let bytes = (try? folder.path(of: file).contents()) ?? []
        let names =
            published.isIndex
            ? Catalog.pieceNames(index: bytes)
            : published.path == "config.json" ? Catalog.fileNames(configuration: bytes) : nil
        return [file] + (names ?? []).compactMap { try? file.sibling($0) }
    }

    /// Files made by a recipe, which exist.
    func made(_ entry: Catalog.Entry) -> [FilePath] {
        ModelFile.allCases.compactMap { file in
            guard case .made(let path)? = entry.sources[file] else { return nil }
            let place = folder.path.appending(path)
            return place.exists ? place : nil
        }
    }
}
