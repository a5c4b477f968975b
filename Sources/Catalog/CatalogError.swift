/// Why a model cannot be used.

/// A model that cannot be found, or whose description has impossible values.
public enum CatalogError: Error, Sendable, Hashable, Codable {
    /// Neither a published model nor a folder.
    case unknown(name: String, known: [String], folders: [String])
    /// A file of the model does not exist.
    case missingFile(ModelFile, model: String, path: String)
    /// Several of them.
    case missingFiles([ModelFile: String], model: String)
    /// A published model of which nothing is on this machine.
    case notHere(model: String)
    /// The model's `config.json` cannot be read.
    case unreadable(path: String, reason: String)
    /// A value in a model's description that no model can have.
    case value(path: String, key: String, found: String, expected: String)
    /// A model that takes a picture was chosen for text to video, or the reverse.
    case conditioning(model: String, takesPicture: Bool)
}

extension CatalogError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .unknown(let name, let known, let folders):
            "no model '\(name)': expected \(known.joined(separator: ", ")) or a folder with a config.json "
                + "(looked in \(folders.joined(separator: ", ")))"
        case .missingFile(let file, let model, let path):
            "no such file: \(path), the \(file.title) of \(model)"
        case .missingFiles(let files, let model):
            "no such files: "
                + ModelFile.allCases.compactMap { file in
                    files[file].map { "\($0) (the \(file.title))" }
                }.joined(separator: ", ") + ", of \(model)"
        case .notHere(let model): "\(model) is not here"
        case .unreadable(let path, let reason):
            "\(path) is not a model configuration: \(reason)"
        case .value(let path, let key, let found, let expected):
            "\(path): '\(key)' is \(found), expected \(expected)"
        case .conditioning(let model, true): "\(model) is an image-to-video model"
        case .conditioning(let model, false): "\(model) is a text-to-video model"
        }
    }
}
