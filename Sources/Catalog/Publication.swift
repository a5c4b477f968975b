/// Where models are published, and where their files may be on this machine.

import Glibc
import Ground
import SystemPackage

/// A file of a repository of the hub.
public struct Published: Sendable, Hashable, CustomStringConvertible {
    /// `owner/name`
    public let repository: String
    /// A branch, a tag or a commit.
    public let revision: String
    /// Inside the repository. Of a file in pieces it is the index, which names them.
    public let path: String

    public init(_ repository: String, _ path: String, revision: String = "main") {
        self.repository = repository
        self.path = path
        self.revision = revision
    }

    /// `owner/name:path` or `owner/name@revision:path`; nil for other text.
    public init?(_ text: String) {
        guard let colon = text.firstIndex(of: ":") else { return nil }
        let place = text[..<colon].split(separator: "@", omittingEmptySubsequences: false)
        let path = String(text[text.index(after: colon)...])
        guard (1...2).contains(place.count), !path.isEmpty, !text.hasPrefix("/"),
            place[0].split(separator: "/", omittingEmptySubsequences: false).count == 2
        else { return nil }
        self.init(String(place[0]), path, revision: place.count > 1 ? String(place[1]) : "main")
    }

    public var description: String {
        "\(repository)\(revision == "main" ? "" : "@\(revision)"):\(path)"
    }

    /// Whether it is an index of pieces.
    public var isIndex: Bool { path.hasSuffix(".index.json") }
    /// Whether its name alone says what it is. Others' files may have any name, such as `model.safetensors`.
    var isKnownByName: Bool {
        ["TurboDiffusion/", "Wan-AI/", "google/umt5", "worstcoder/"].contains {
            repository.hasPrefix($0)
        } && !isIndex
    }
    var fileName: String { path.split(separator: "/").last.map(String.init) ?? path }
}

/// Where a file of a model comes from.
public enum FileSource: Sendable, Hashable {
    case hub(Published)
    /// Made by a recipe: a path inside the folder of models.
    case made(String)
}

/// Folders in which files of models may be.
public struct Library: Sendable, Hashable {
    /// Of this program's downloads; nil where there is no home.
    public var models: String?
    /// Of the original's scripts.
    public var checkpoints: String
    /// Hugging Face's cache.
    public var hubCache: String?
    /// ComfyUI's `models`.
    public var comfyUI: String?

    public init(
        models: String? = nil, checkpoints: String = Catalog.checkpointFolder,
        hubCache: String? = nil, comfyUI: String? = nil
    ) {
        self.models = models
        self.checkpoints = checkpoints
        self.hubCache = hubCache
        self.comfyUI = comfyUI
    }

    public init(_ settings: Settings) {
        self.init(
            models: settings[.models]?.text,
            checkpoints: settings[.checkpoints]?.text ?? Catalog.checkpointFolder,
            hubCache: settings[.hubCache]?.text, comfyUI: settings[.comfyUI]?.text)
    }

    /// Where the file of a source is, of which role a file is tells in which of ComfyUI's folders it may be.
    /// - Returns: nil where it is nowhere.
    public func find(_ source: FileSource, for file: ModelFile) -> String? {
        switch source {
        case .made(let path):
            return models.map { "\($0)/\(path)" }.flatMap { exists($0) ? $0 : nil }
        case .hub(let published):
            return candidates(published, for: file).first(where: exists)
        }
    }

    /// Where a published file may be, the first place that counts first.
    func candidates(_ published: Published, for file: ModelFile) -> [String] {
        var paths = published.isKnownByName ? ["\(checkpoints)/\(published.fileName)"] : []
        if let models { paths.append("\(models)/\(published.repository)/\(published.path)") }
        if let folder = snapshot(published) { paths.append("\(folder)/\(published.path)") }
        if let comfyUI, published.isKnownByName {
            for folder in Self.comfyFolders(file) {
                for name in [published.fileName] + Self.comfyNames(file, published) {
                    paths.append("\(comfyUI)/\(folder)/\(name)")
                }
            }
        }
        return paths
    }

    /// The folder of a repository's revision in Hugging Face's cache.
    func snapshot(_ published: Published) -> String? {
        guard let hubCache else { return nil }
        let name = published.repository.split(separator: "/").joined(separator: "--")
        let folder = "\(hubCache)/models--\(name)"
        let reference = FilePath("\(folder)/refs/\(published.revision)")
        let bytes = (try? reference.contents(limit: 256)) ?? []
        let commit = String(decoding: bytes, as: UTF8.self).filter { !$0.isWhitespace }
        // A commit names its own folder.
        let revision = commit.isEmpty ? published.revision : commit
        guard revision.allSatisfy({ $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-") })
        else { return nil }
        let path = "\(folder)/snapshots/\(revision)"
        return exists(path) ? path : nil
    }

    private static func comfyFolders(_ file: ModelFile) -> [String] {
        switch file {
        case .transformer, .lowNoiseTransformer: ["diffusion_models", "unet", "checkpoints"]
        case .textEncoder, .tokenizer: ["text_encoders", "clip"]
        case .vae: ["vae"]
        }
    }

    /// Names under which ComfyUI's own guides have the same weights.
    private static func comfyNames(_ file: ModelFile, _ published: Published) -> [String] {
        guard published.repository.hasPrefix("Wan-AI/") else { return [] }
        return switch file {
        case .vae: ["wan_2.1_vae.safetensors"]
        case .textEncoder: ["umt5_xxl_fp16.safetensors"]
        default: []
        }
    }

    /// The folder of a repository with a `config.json`: downloaded, or in Hugging Face's cache.
    func folder(_ repository: Published) -> String? {
        var folders = models.map { ["\($0)/\(repository.repository)"] } ?? []
        if let snapshot = snapshot(repository) { folders.append(snapshot) }
        return folders.first { exists($0 + "/config.json") }
    }
}
