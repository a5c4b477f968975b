/// What a user has set once for all commands: a file, and variables of the environment, which come first.

import Glibc
import Ground
import SystemPackage

/// Why the configuration cannot be used.
public struct SettingsError: Error, Sendable, Hashable, CustomStringConvertible {
    public let description: String
}

/// The values that hold, each with where it is from.
public struct Settings: Sendable {
    public enum Key: String, Sendable, Hashable, CaseIterable {
        /// Where downloaded models are.
        case models = "folders.models"
        /// Where the original's scripts look for checkpoints.
        case checkpoints = "folders.checkpoints"
        /// ComfyUI's `models` folder.
        case comfyUI = "folders.comfyui"
        /// Hugging Face's cache of repositories.
        case hubCache = "folders.huggingface"
        /// The model where none is named and nothing else tells which.
        case model = "defaults.model"
        /// Such as `cuda:1`.
        case device = "defaults.device"
        /// Such as `16GiB`.
        case memoryLimit = "defaults.memory_limit"
        /// Where models are published.
        case endpoint = "hub.endpoint"
        /// At the same time, for one file.
        case connections = "hub.connections"

        /// Variables that set it, the first that is there counts.
        public var variables: [String] {
            switch self {
            case .models: ["TURBODIFFUSION_MODELS"]
            case .checkpoints: ["TURBODIFFUSION_CHECKPOINTS"]
            case .comfyUI: ["TURBODIFFUSION_COMFYUI"]
            case .hubCache: ["HF_HUB_CACHE"]
            case .model: ["TURBODIFFUSION_MODEL"]
            case .device: ["TURBODIFFUSION_DEVICE"]
            case .memoryLimit: ["TURBODIFFUSION_MEMORY_LIMIT"]
            case .endpoint: ["HF_ENDPOINT"]
            case .connections: ["TURBODIFFUSION_CONNECTIONS"]
            }
        }

        var isFolder: Bool { rawValue.hasPrefix("folders.") }
    }

    /// Where a value is from.
    public enum Source: Sendable, Hashable, CustomStringConvertible {
        case environment(String)
        case file(String, line: Int)
        /// Nobody has set it.
        case usual

        public var description: String {
            switch self {
            case .environment(let name): name
            case .file(let path, let line): "\(path):\(line)"
            case .usual: "default"
            }
        }
    }

    public struct Value: Sendable, Hashable {
        public var text: String
        public var source: Source
    }

    private var values: [Key: Value] = [:]
    /// The file that was read, or would be; nil where there is no home.
    public private(set) var file: String?
    /// Models and recipes of the file.
    var models: [Catalog.Entry] = []

    /// nil where nobody has set it and it has no usual value.
    public subscript(_ key: Key) -> Value? { values[key] }

    /// No file and no variables.
    public init() {}

    /// - Parameters:
    ///   - environment: the variables.
    ///   - read: the text of a file; nil where there is none.
    /// - Throws: `SettingsError` with the file and the line of what cannot be used.
    public init(
        environment: (String) -> String?,
        read: (String) throws(SettingsError) -> String?
    ) throws(SettingsError) {
        func variable(_ name: String) -> String? {
            environment(name).flatMap { $0.isEmpty ? nil : $0 }
        }
        func base(_ name: String, _ usual: String) -> String? {
            userFolder(name, usual, variable)
        }
        let home = variable("HOME")
        let named = variable("TURBODIFFUSION_CONFIG")
        file =
            named ?? base("XDG_CONFIG_HOME", ".config").map { "\($0)/turbodiffusion/config.toml" }
        if let path = file {
            if let text = try read(path) {
                try take(text, path, home)
            } else if named != nil {
                throw SettingsError(
                    description: "no such file: \(path.printable), named by TURBODIFFUSION_CONFIG")
            }
        }
        for key in Key.allCases {
            for name in key.variables {
                guard let text = variable(name) else { continue }
                values[key] = Value(text: text, source: .environment(name))
                break
            }
        }
        func usual(_ key: Key, _ text: String?) {
            if values[key] == nil, let text { values[key] = Value(text: text, source: .usual) }
        }
        usual(.models, base("XDG_DATA_HOME", ".local/share").map { "\($0)/turbodiffusion/models" })
        usual(.checkpoints, Catalog.checkpointFolder)
        if values[.hubCache] == nil, let folder = variable("HF_HOME") {
            values[.hubCache] = Value(text: "\(folder)/hub", source: .environment("HF_HOME"))
        }
        usual(.hubCache, base("XDG_CACHE_HOME", ".cache").map { "\($0)/huggingface/hub" })
        usual(.endpoint, "https://huggingface.co")
        usual(.connections, "4")
        try check()
    }

    private func check() throws(SettingsError) {
        if let value = values[.connections], !(1...32).contains(Int(value.text) ?? 0) {
            throw SettingsError(
                description:
                    "\(value.source): connections is '\(value.text.printable)', expected 1 to 32")
        }
    }

    private mutating func take(_ text: String, _ path: String, _ home: String?)
        throws(SettingsError)
    {
        func refuse(_ line: Int, _ reason: String) -> SettingsError {
            SettingsError(description: "\(path.printable):\(line): \(reason.printable)")
        }
        let document: TOMLDocument
        do { document = try TOMLDocument(text) } catch { throw refuse(error.line, error.reason) }
        for table in document.tables {
            if let first = table.path.first, table.path.count == 2,
                first == "models" || first == "recipes"
            {
                do throws(TOMLError) {
                    models.append(try Catalog.Entry(table, knowing: models))
                } catch { throw refuse(error.line, error.reason) }
                continue
            }
            let known = Set(Key.allCases.map { $0.rawValue.split(separator: ".")[0] })
            guard table.path.count == 1, known.contains(Substring(table.path[0])) else {
                let name =
                    table.path.isEmpty
                    ? "a key before the first table" : "[\(table.path.joined(separator: "."))]"
                throw refuse(
                    table.entries.first.map { table.path.isEmpty ? $0.line : table.line }
                        ?? table.line,
                    "\(name) is unknown: expected one of "
                        + known.sorted().map { "[\($0)]" }.joined(separator: ", ")
                        + ", [models.NAME], [recipes.NAME]")
            }
            for entry in table.entries {
                guard let key = Key(rawValue: "\(table.path[0]).\(entry.key)") else {
                    let names = Key.allCases.map(\.rawValue).filter {
                        $0.hasPrefix(table.path[0] + ".")
                    }.map { $0.split(separator: ".")[1] }
                    throw refuse(
                        entry.line,
                        "'\(entry.key)' is unknown in [\(table.path[0])]: expected "
                            + names.joined(separator: ", "))
                }
                var text = entry.value.text
                if case .boolean = entry.value {
                    throw refuse(entry.line, "'\(entry.key)' is \(text), expected a text")
                }
                if key.isFolder {
                    if text.hasPrefix("~/"), let home { text = home + text.dropFirst(1) }
                    guard text.hasPrefix("/") else {
                        throw refuse(
                            entry.line,
                            "'\(entry.key)' is '\(text)': expected a folder that begins with / or ~/"
                        )
                    }
                }
                guard !text.isEmpty else { throw refuse(entry.line, "'\(entry.key)' is empty") }
                values[key] = Value(text: text, source: .file(path.printable, line: entry.line))
            }
        }
    }

    /// Of this process. The usual values where the configuration cannot be used; `loaded` tells why.
    public static var current: Settings {
        switch loaded {
        case .success(let settings): settings
        case .failure: (try? Settings(environment: variable) { _ in nil }) ?? Settings()
        }
    }

    /// The configuration of this process.
    public static let loaded: Result<Settings, SettingsError> = {
        do throws(SettingsError) {
            return .success(
                try Settings(environment: variable) { path throws(SettingsError) in
                    let file = FilePath(path)
                    guard file.exists else { return nil }
                    do {
                        let bytes = try file.contents(limit: 1 << 20)
                        guard let text = String(validating: bytes, as: UTF8.self) else {
                            throw SettingsError(description: "\(path.printable) is not UTF-8 text")
                        }
                        return text
                    } catch let error as FileError {
                        throw SettingsError(
                            description: cannotRead(path.printable, error.reason))
                    } catch let error as SettingsError {
                        throw error
                    } catch { throw SettingsError(description: "\(error)") }
                })
        } catch { return .failure(error) }
    }()

    private static func variable(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }
}
