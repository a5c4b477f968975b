/// The files that a model is made of.

public import Families

/// What a file of a model is used for.
public enum ModelFile: String, Sendable, Hashable, Codable, CaseIterable, CodingKeyRepresentable {
    /// The only transformer, or the high-noise expert.
    case transformer
    case lowNoiseTransformer = "low-noise-transformer"
    case textEncoder = "text-encoder"
    case tokenizer
    case vae

    /// What messages call the file.
    public var title: String {
        switch self {
        case .transformer: "transformer"
        case .lowNoiseTransformer: "low-noise transformer"
        case .textEncoder: "text encoder"
        case .tokenizer: "tokenizer"
        case .vae: "VAE"
        }
    }
}

extension ModelSet {
    /// The path of a file. Setting nil only removes the low-noise transformer; the others are required.
    public subscript(_ file: ModelFile) -> String? {
        get {
            switch file {
            case .transformer: transformer
            case .lowNoiseTransformer: lowNoiseTransformer
            case .textEncoder: textEncoder
            case .tokenizer: tokenizer
            case .vae: vae
            }
        }
        set {
            switch file {
            case .transformer: transformer = newValue ?? transformer
            case .lowNoiseTransformer: lowNoiseTransformer = newValue
            case .textEncoder: textEncoder = newValue ?? textEncoder
            case .tokenizer: tokenizer = newValue ?? tokenizer
            case .vae: vae = newValue ?? vae
            }
        }
    }

    /// The files that are needed to load these parts.
    public static func files(for parts: [ModelPart]) -> [ModelFile] {
        var files: [ModelFile] = []
        for part in parts {
            switch part {
            case .transformer: files.append(.transformer)
            case .lowNoiseTransformer: files.append(.lowNoiseTransformer)
            case .textEncoder: files += [.textEncoder, .tokenizer]
            case .imageEncoder, .decoder: if !files.contains(.vae) { files.append(.vae) }
            }
        }
        return files
    }

    /// Throws if a needed file does not exist.
    public func checkPresence(of files: [ModelFile]) throws(CatalogError) {
        var missing: [ModelFile: String] = [:]
        for file in files {
            if let path = self[file], !exists(path) { missing[file] = path }
        }
        if missing.count > 1 { throw .missingFiles(missing, model: name) }
        if let (file, path) = missing.first {
            throw .missingFile(file, model: name, path: path)
        }
    }
}
