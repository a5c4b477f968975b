/// What a video's metadata says about how it was made: enough to make it again.

public import Catalog
public import Families
import FoundationEssentials
import Ground
public import Runs
import SystemPackage

/// A run as it is stored in a video's metadata.
public struct StoredRun: Sendable, Hashable {
    /// "turbodiffusion 0.2.0"
    public var program: String
    public var request: Request
    /// The model's name, and those of its files that the run opened.
    public var model: String
    public var files: [ModelFile: FileIdentity]
    /// Other files that the run was made from.
    public var inputs: [StoredInput: FileIdentity] = [:]
    /// In the order of the request.
    public var loras: [FileIdentity] = []
    /// Which of several samples the file holds, from 0; nil: the only one, or all of them in a grid.
    public var sample: Int?
    /// The quality, if one was chosen.
    public var crf: Int?
    /// The model of a video made by version 0.1.0, whose files are named by their paths.
    var legacyModels: ModelSet?
}

/// An input file that is not part of the model.
public enum StoredInput: String, Codable, Sendable, Hashable, CaseIterable, CodingKeyRepresentable {
    case image, text, conditioning, latents
}

/// A video that cannot be made again.
public enum StoredRunError: Error, Sendable, Hashable, Codable {
    /// The file holds no request.
    case noRequest(path: String)
    case unreadable(path: String, reason: String)
    /// A file of the model is missing. `path`: a file of that name with other content; nil: there is none.
    case modelFile(ModelFile, name: String, path: String?)
    /// Another file that the video was made from is missing.
    case input(StoredInput, name: String, path: String?)
    case lora(name: String, path: String?)
}

extension StoredRunError: CustomStringConvertible {
    public var description: String {
        func text(_ what: String, _ name: String, _ path: String?) -> String {
            path.map {
                "\($0) is not the \(what) that the video was made with: its content differs"
            }
                ?? "the \(what) that the video was made with was not found: \(name)"
        }
        return switch self {
        case .noRequest(let path):
            "\(path) contains no request: it was not made by this program, or its metadata was lost"
        case .unreadable(let path, let reason): cannotRead(path, reason)
        case .modelFile(let file, let name, let path): text(file.title, name, path)
        case .input(.image, let name, let path): text("picture", name, path)
        case .input(.text, let name, let path): text("text embedding", name, path)
        case .input(let input, let name, let path): text("file of \(input.rawValue)", name, path)
        case .lora(let name, let path): text("LoRA", name, path)
        }
    }
}

// MARK: - Making

extension StoredRun {
    /// Describes a run. Reads a little of every file that the run will open.
    /// - Parameters:
    ///   - models: the models of the run.
    ///   - program: this program's name and version.
    ///   - crf: the quality, if one was chosen.
    ///   - identity: returns the identity of the file at a path.
    /// - Throws: ``StoredRunError/unreadable(path:reason:)``.
    public init(
        _ run: Run, of models: ModelSet, program: String, crf: Int? = nil,
        identity: (String) throws -> FileIdentity = { try FileIdentity(path: $0) }
    ) throws {
        self.program = program
        request = run.request
        model = models.name
        files = [:]
        for file in ModelSet.files(for: try run.parts) {
            if let path = models[file] { files[file] = try identity(path) }
        }
        let start = run.options.start
        if let latents = start.latents {
            inputs[.latents] = try identity(latents)
        } else {
            if let text = start.text { inputs[.text] = try identity(text) }
            if let conditioning = start.conditioning {
                inputs[.conditioning] = try identity(conditioning)
            } else if let image = request.image {
                inputs[.image] = try identity(image)
            }
            loras = try request.loras.map { try identity($0.path) }
        }
        self.crf = crf
    }

    /// One line of JSON.
    public var json: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(self) else { return "{}" }
        return String(decoding: data, as: UTF8.self)
    }
}

// MARK: - Reading

extension StoredRun {
    /// - Parameter path: the file that the text is from, for messages.
    /// - Throws: ``StoredRunError`` if this program did not write the text, `CatalogError` for numbers that no model can
    ///   have.
    public init(json: String, path: String) throws {
        let (decoder, data) = (JSONDecoder(), Data(json.utf8))
        if let stored = try? decoder.decode(StoredRun.self, from: data) {
            let count = stored.request.loras.count
            guard stored.loras.count == count || stored.inputs[.latents] != nil else {
                throw StoredRunError.unreadable(
                    path: path,
                    reason: "its request has \(count) LoRAs, but it describes \(stored.loras.count)"
                )
            }
            self = stored
        } else if let legacy = try? decoder.decode(LegacyStoredRun.self, from: data) {
            self = try legacy.stored(path: path)
        } else {
            throw StoredRunError.noRequest(path: path)
        }
    }

    /// Whether the video starts with a picture.
    public var takesPicture: Bool { request.image != nil || inputs[.conditioning] != nil }

    /// Finds the model that the video was made with by its name, and compares it file by file.
    /// - Parameter changes: a model or files to use instead, which are not compared.
    /// - Throws: ``StoredRunError`` for a file with other content, `CatalogError` for a model that is not found.
    public func models(changedBy changes: ModelChoice, in catalog: Catalog) throws -> ModelSet {
        if changes.name == nil, var models = legacyModels {
            for (file, path) in changes.files { models[file] = path }
            return models
        }
        // A name alone does not say whether the model takes a picture.
        var choice = changes
        choice.name = changes.name ?? model
        choice.conditioning = takesPicture ? .firstFrame : Family.Conditioning.none
        var models = try catalog.open(choice)
        guard changes.name == nil else { return models }
        for file in ModelFile.allCases where changes.files[file] == nil {
            guard let identity = files[file] else { continue }
            let own = models[file].map { [$0] } ?? []
            models[file] = try identity.find(
                in: own.filter { FilePath($0).lastComponent?.string == identity.name }
                    + [Catalog.checkpointFolder, "."].compactMap { identity.path(in: $0) }
            ) { .modelFile(file, name: identity.name, path: $0) }
        }
        return models
    }

    /// Throws if an input file is not the one that the video was made from, and no other is named instead.
    /// - Parameters:
    ///   - request: the stored request with changes.
    ///   - start: files that the run will start from.
    /// - Throws: ``StoredRunError``.
    public func checkInputs(of request: Request, _ start: RunOptions.Files) throws(StoredRunError) {
        func check(_ input: StoredInput, _ given: String?, _ isWanted: Bool, _ known: String?)
            throws(StoredRunError)
        {
            guard let identity = inputs[input], given == nil, isWanted else { return }
            _ = try identity.find(in: known.map { [$0] } ?? []) {
                .input(input, name: identity.name, path: $0)
            }
        }
        try check(.latents, start.latents, true, nil)
        if start.latents != nil { return }
        let isTextKept =
            request.prompt == self.request.prompt
            && request.negativePrompt == self.request.negativePrompt
        try check(.text, start.text, isTextKept, nil)
        let isImageKept = request.image == self.request.image
        try check(.conditioning, start.conditioning, isImageKept, nil)
        try check(.image, start.conditioning, isImageKept, request.image)
        for (lora, identity) in zip(self.request.loras, loras) where request.loras.contains(lora) {
            _ = try identity.find(in: [lora.path]) { .lora(name: identity.name, path: $0) }
        }
    }
}

extension FileIdentity {
    /// The first of the paths whose file has this content.
    fileprivate func find(
        in paths: [String], otherwise error: (String?) -> StoredRunError
    ) throws(StoredRunError) -> String {
        let present = paths.filter { FilePath($0).exists }
        for path in present where try FileIdentity(path: path).isContent(of: self) { return path }
        throw error(present.first)
    }

    /// nil for a name that none is. What a video says is not trusted: it names no folder.
    fileprivate func path(in folder: String) -> String? {
        guard let last = FilePath(name).lastComponent, last.kind == .regular else { return nil }
        return FilePath(folder).appending(last).string
    }

    private func isContent(of other: FileIdentity) -> Bool {
        bytes == other.bytes && fingerprint == other.fingerprint
    }
}

// MARK: - JSON

/// `{"program", "request", "model": {"name", "files": {"vae": …}}, "inputs", "loras", "sample", "crf"}`
extension StoredRun: Codable {
    private enum Key: CodingKey { case program, request, model, inputs, loras, sample, crf }
    private struct Model: Codable {
        var name: String
        var files: [ModelFile: FileIdentity]
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        program = try values.decode(String.self, forKey: .program)
        request = try values.decode(Request.self, forKey: .request)
        let model = try values.decode(Model.self, forKey: .model)
        (self.model, files) = (model.name, model.files)
        inputs =
            try values.decodeIfPresent([StoredInput: FileIdentity].self, forKey: .inputs) ?? [:]
        loras = try values.decodeIfPresent([FileIdentity].self, forKey: .loras) ?? []
        sample = try values.decodeIfPresent(Int.self, forKey: .sample)
        crf = try values.decodeIfPresent(Int.self, forKey: .crf)
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(program, forKey: .program)
        try values.encode(request, forKey: .request)
        try values.encode(Model(name: model, files: files), forKey: .model)
        if !inputs.isEmpty { try values.encode(inputs, forKey: .inputs) }
        if !loras.isEmpty { try values.encode(loras, forKey: .loras) }
        try values.encodeIfPresent(sample, forKey: .sample)
        try values.encodeIfPresent(crf, forKey: .crf)
    }
}
