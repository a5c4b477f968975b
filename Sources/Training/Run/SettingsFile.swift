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
        try Self.checkNames(of: root, in: path)
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

    /// - Throws: where a setting is there twice: only one of both could count.
    private static func checkNames(of value: PlainValue, in path: String) throws(RunFolderError) {
        guard case .map(let entries) = value else { return }
        var known: [String: PlainValue.Entry] = [:]
        for entry in entries {
            if let first = known.updateValue(entry, forKey: plain(entry.key)) {
                throw RunFolderError(
                    "\(path), line \(entry.line): '\(entry.key.printable)' is the same setting as "
                        + "'\(first.key.printable)' in line \(first.line)")
            }
            try checkNames(of: entry.value, in: path)
        }
    }

    /// Puts what the file says into settings, one after the other: what cannot be is told with its line.
    public func apply(to settings: inout TrainingSettings) throws(RunFolderError) {
        var (result, tree) = (settings, try Self.tree(settings))
        let known = try Self.tree(settings.withEverything)
        for change in try changes(self.settings, known: known, place: []) {
            tree = tree.with(change.value, at: change.place[...])
            do {
                result = try JSONDecoder().decode(
                    TrainingSettings.self, from: Data(Array(tree.json.utf8)))
            } catch {
                // Decoders do not say which number does not fit.
                let reason =
                    if case .dataCorrupted? = error as? DecodingError {
                        "'\(change.name)' cannot be \(change.value.json.printable)"
                    } else { words(error) }
                throw RunFolderError("\(path), line \(change.line): \(reason)")
            }
        }
        settings = result
    }

    private static func tree(_ settings: TrainingSettings) throws(RunFolderError) -> PlainValue {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        do {
            return try YAMLReader.read(
                String(decoding: try encoder.encode(settings), as: UTF8.self))
        } catch { throw RunFolderError("these settings cannot be written: \(words(error))") }
    }

    /// A setting and what it becomes.
    private struct Change {
        /// The names that lead to it.
        var place: [String]
        var value: PlainValue
        var line: Int
        var name: String { place.joined(separator: ".").printable }
    }

    /// What a value changes.
    /// - Parameters:
    ///   - known: what there may be.
    ///   - place: the names that lead here.
    private func changes(
        _ new: PlainValue, known: PlainValue, place: [String], line: Int = 1
    ) throws(RunFolderError) -> [Change] {
        let isSection = if case .map = known { true } else { false }
        // A section without a line changes nothing.
        if isSection, new == .null { return [] }
        guard case .map(let names) = known, case .map(let entries) = new else {
            return [Change(place: place, value: new, line: line)]
        }
        // A choice between kinds with numbers of their own: one replaces the other.
        if names.contains(where: { $0.key == "logNormal" || $0.key == "uniformShift" }) {
            return [Change(place: place, value: try choice(entries, place), line: line)]
        }
        var all: [Change] = []
        for entry in entries {
            guard let name = names.first(where: { Self.isSame($0.key, entry.key) }) else {
                let here = names.map(\.key).sorted().joined(separator: ", ")
                throw RunFolderError(
                    "\(path), line \(entry.line): '\((place + [entry.key]).joined(separator: ".").printable)' "
                        + "is no setting; here are: \(here)")
            }
            all += try changes(
                entry.value, known: name.value, place: place + [name.key], line: entry.line)
        }
        return all
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

extension PlainValue {
    /// The same with another value at a place; null: with none.
    fileprivate func with(_ value: PlainValue, at place: ArraySlice<String>) -> PlainValue {
        guard let key = place.first else { return value }
        var entries: [Entry] = if case .map(let own) = self { own } else { [] }
        let index = entries.firstIndex { $0.key == key }
        if place.count == 1, value == .null {
            if let index { entries.remove(at: index) }
            return .map(entries)
        }
        let old = index.map { entries[$0].value } ?? PlainValue.map([])
        let entry = Entry(key: key, value: old.with(value, at: place.dropFirst()), line: 1)
        if let index { entries[index] = entry } else { entries.append(entry) }
        return .map(entries)
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

private func words(_ error: any Error) -> String { (error as? DecodingError)?.line ?? "\(error)" }
