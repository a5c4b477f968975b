/// Settings of a run in a file, in YAML or JSON: what it leaves out stays as it was.

import FoundationEssentials
import Ground
import SystemPackage

/// The files and models of a run, as its folder keeps them.
public struct TrainingFiles: Sendable, Hashable, Codable {
    public var model: String?
    public var teacher: String?
    /// The transformer that gets adapters, or that a student starts from.
    public var base: String?
    public var dataset: [String]?
    public var negativeEmbedding: String?

    public init() {}
}

/// A file of settings.
public struct SettingsFile: Sendable {
    public var recipe: TrainingSettings.Recipe?
    public var preset: TrainingSettings.Preset?
    public var files = TrainingFiles()
    private let path: String
    private let settings: PlainValue

    /// - Throws: ``RunFolderError`` that names file and line.
    public init(_ path: String) throws(RunFolderError) {
        let text: String
        do {
            guard
                let found = String(
                    validating: try FilePath(path).contents(limit: 1 << 24), as: UTF8.self)
            else { throw RunFolderError("\(path) is not text in UTF-8") }
            text = found
        } catch let error as FileError {
            throw RunFolderError(cannotRead(path, error.reason))
        } catch let error as RunFolderError {
            throw error
        } catch { throw RunFolderError("\(error)") }
        let root: PlainValue
        do { root = try YAMLReader.read(text) } catch {
            throw RunFolderError("\(path), line \(error.line): \(error.reason)")
        }
        guard case .map(var entries) = root else {
            throw RunFolderError("\(path) holds no settings: expected lines 'name: value'")
        }
        self.path = path
        func take(_ key: String) -> PlainValue.Entry? {
            guard let index = entries.firstIndex(where: { Self.isSame($0.key, key) }) else {
                return nil
            }
            let entry = entries.remove(at: index)
            return entry.value == .null ? nil : entry
        }
        func word<Value: RawRepresentable & CaseIterable>(_ key: String, _: Value.Type)
            throws(RunFolderError) -> Value? where Value.RawValue == String
        {
            guard let entry = take(key) else { return nil }
            guard case .text(let text) = entry.value, let value = Value(rawValue: text) else {
                throw RunFolderError(
                    "\(path), line \(entry.line): \(key) is one of "
                        + Value.allCases.map(\.rawValue).joined(separator: ", "))
            }
            return value
        }
        recipe = try word("recipe", TrainingSettings.Recipe.self)
        preset = try word("preset", TrainingSettings.Preset.self)
        func name(_ key: String) throws(RunFolderError) -> String? {
            guard let entry = take(key) else { return nil }
            guard case .text(let text) = entry.value else {
                throw RunFolderError("\(path), line \(entry.line): \(key) is a text")
            }
            return text
        }
        files.model = try name("model")
        files.teacher = try name("teacher")
        files.base = try name("base")
        files.negativeEmbedding = try name("negativeEmbedding")
        if let entry = take("dataset") {
            let values: [PlainValue] =
                if case .list(let list) = entry.value { list } else { [entry.value] }
            files.dataset = try values.map { value throws(RunFolderError) in
                guard case .text(let text) = value else {
                    throw RunFolderError(
                        "\(path), line \(entry.line): dataset is a list of the names of shards")
                }
                return text
            }
        }
        settings = .map(entries)
    }

    /// Names are compared without capitals, underscores and hyphens: learning_rate is learningRate.
    private static func isSame(_ a: String, _ b: String) -> Bool { plain(a) == plain(b) }

    private static func plain(_ key: String) -> String {
        key.lowercased().filter { $0 != "_" && $0 != "-" }
    }

    /// Puts what the file says into settings.
    public func apply(to settings: inout TrainingSettings) throws(RunFolderError) {
        do {
            let tree = try Self.tree(settings)
            let merged = try merge(
                self.settings, into: tree, known: try Self.tree(settings.withEverything), place: [])
            settings = try JSONDecoder().decode(
                TrainingSettings.self, from: Data(Array(merged.json.utf8)))
        } catch let error as RunFolderError {
            throw error
        } catch {
            let reason = (error as? DecodingError)?.line ?? "\(error)"
            throw RunFolderError("\(path) holds no settings of a training run: \(reason)")
        }
    }

    private static func tree(_ settings: TrainingSettings) throws -> PlainValue {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        return try YAMLReader.read(
            String(decoding: try encoder.encode(settings), as: UTF8.self))
    }

    /// - Parameters:
    ///   - known: what there may be.
    ///   - place: the names that lead here.
    private func merge(
        _ new: PlainValue, into old: PlainValue?, known: PlainValue, place: [String]
    ) throws(RunFolderError) -> PlainValue {
        guard case .map(let changes) = new, case .map(let names) = known else { return new }
        var result: [PlainValue.Entry] = if case .map(let entries) = old { entries } else { [] }
        // A choice between kinds with numbers of their own: one replaces the other.
        if names.contains(where: { $0.key == "logNormal" || $0.key == "uniformShift" }) {
            return try choice(changes, place)
        }
        for change in changes {
            guard let name = names.first(where: { Self.isSame($0.key, change.key) }) else {
                let all = names.map(\.key).sorted().joined(separator: ", ")
                throw RunFolderError(
                    "\(path), line \(change.line): '\((place + [change.key]).joined(separator: ".").printable)' "
                        + "is no setting; here are: \(all)")
            }
            let index = result.firstIndex { $0.key == name.key }
            if change.value == .null {
                if let index { result.remove(at: index) }
                continue
            }
            let value = try merge(
                change.value, into: index.map { result[$0].value }, known: name.value,
                place: place + [name.key])
            let entry = PlainValue.Entry(key: name.key, value: value, line: change.line)
            if let index { result[index] = entry } else { result.append(entry) }
        }
        return .map(result)
    }

    private func choice(_ changes: [PlainValue.Entry], _ place: [String]) throws(RunFolderError)
        -> PlainValue
    {
        guard changes.count == 1,
            let kind = ["logNormal", "uniformShift"].first(where: {
                Self.isSame($0, changes[0].key)
            })
        else {
            throw RunFolderError(
                "\(path), line \(changes.first?.line ?? 1): '\(place.joined(separator: "."))' is "
                    + "'logNormal: {mean: …, deviation: …}' or 'uniformShift: …'")
        }
        var value = changes[0].value
        if kind == "uniformShift", case .number = value {
            value = .map([PlainValue.Entry(key: "_0", value: value, line: changes[0].line)])
        }
        return .map([PlainValue.Entry(key: kind, value: value, line: changes[0].line)])
    }
}

extension TrainingSettings {
    /// With something in each place that may be empty.
    fileprivate var withEverything: TrainingSettings {
        var settings = self
        settings.frames = 1
        settings.largestNorm = 1
        settings.topK = 1
        settings.expert = .high
        settings.alpha = 1
        settings.boundary = 0.5
        settings.rcm.fixedAngles = [1]
        return settings
    }
}
