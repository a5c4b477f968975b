/// Cases on disk: a folder of fixtures, and one case with its tensors.

import Checkpoints
import FoundationEssentials
import Tensors

/// A folder of fixtures. Cases are the JSON files in it that name an `op`; other documents (tables, token lists,
/// manifests) are recognised by their file names.
struct FixtureFolder {
    let path: String
    /// Paths of JSON and safetensors files below `path`, sorted.
    let files: [String]

    init(_ path: String) throws {
        self.path = path.hasSuffix("/") ? String(path.dropLast()) : path
        guard let names = try? FileManager.default.subpathsOfDirectory(atPath: self.path) else {
            throw FixtureError("no folder \(path)")
        }
        let files = names.filter { $0.hasSuffix(".json") || $0.hasSuffix(".safetensors") }
        guard !files.isEmpty else { throw FixtureError("\(path) contains no fixtures") }
        self.files = files.sorted()
    }

    func absolute(_ name: String) -> String { "\(path)/\(name)" }
}

/// One case: configuration, inputs, weights and expected results.
struct Fixture {
    let folder: FixtureFolder
    let group, name, operation: String
    /// "float32", "bfloat16", or a sentence that starts with one of them.
    let computeType: String
    let config: JSON
    let tolerances: [String: Tolerance]
    let weights: CaseWeights
    private let checkpoint: any Checkpoint

    init(_ description: JSON, at path: String, in folder: FixtureFolder) throws {
        guard let name = description["name"]?.string, let operation = description["op"]?.string,
            let file = description["file"]?.string
        else { throw FixtureError("\(path) lacks 'name', 'op' or 'file'") }
        self.folder = folder
        let parts = path.split(separator: "/")
        group = description["group"]?.string ?? String(parts.dropLast().last ?? "")
        self.name = name
        self.operation = operation
        computeType = description["compute_dtype"]?.string ?? "float32"
        config = description["config"] ?? .object([:])
        weights = CaseWeights(folder: folder, entry: description["weights"])
        tolerances = try (description["tolerance"]?.object ?? [:]).mapValues(Tolerance.init)
        let folderOfCase = parts.dropLast().joined(separator: "/")
        checkpoint = try openCheckpoint(
            folder.absolute(folderOfCase.isEmpty ? file : "\(folderOfCase)/\(file)"))
    }

    var tensorNames: [String] { checkpoint.names }
    /// The tensors that results are compared with.
    var expectedNames: [String] {
        tensorNames.filter { $0.hasPrefix("out.") || $0.hasPrefix("mid.") }
    }

    func has(_ name: String) -> Bool { checkpoint.info(name) != nil }

    /// A tensor as stored.
    func tensor(_ name: String) throws -> Tensor {
        guard let tensor = try checkpoint.tensor(name) else {
            throw FixtureError("the case has no tensor \(name)")
        }
        return tensor
    }

    /// A tensor in f32, which is exact for half-precision inputs too.
    func f32(_ name: String) throws -> Tensor { try tensor(name).converted(to: .f32) }

    func int(_ key: String) throws -> Int {
        guard let value = config[key]?.int else { throw FixtureError("config lacks '\(key)'") }
        return value
    }

    func double(_ key: String) throws -> Double {
        guard let value = config[key]?.double else { throw FixtureError("config lacks '\(key)'") }
        return value
    }

    /// The tolerance with the longest name that `tensor` starts with.
    func tolerance(for tensor: String) -> Tolerance? {
        tolerances.filter { tensor.hasPrefix($0.key) }.max { $0.key.count < $1.key.count }?.value
    }

    /// The noise of a sampling run in order, f32: the noise that it starts from, then that of each step.
    var noises: [Tensor] {
        get throws {
            let steps = (0...).lazy.map { "in.noise\($0)" }.prefix(while: has)
            return try [f32("in.init_noise")] + steps.map(f32)
        }
    }
}

/// Where the weights of a case are: a path, a list of paths, or roles with a path each.
struct CaseWeights: Sendable {
    let folder: FixtureFolder
    let entry: JSON?

    /// Whether `role` has weights: where roles are not told apart, each has.
    func has(_ role: String) -> Bool {
        guard let roles = entry?.object else { return entry != nil }
        return roles[role]?.string != nil || roles[role]?.array != nil
    }

    /// The checkpoint of `role`, or the only one; several files are read as one.
    func open(_ role: String? = nil) throws -> any Checkpoint {
        let chosen = role.flatMap { entry?[$0] } ?? entry
        if let path = chosen?.string { return try openCheckpoint(folder.absolute(path)) }
        if let paths = chosen?.array?.compactMap(\.string), !paths.isEmpty {
            return JoinedCheckpoint(try paths.map { try openCheckpoint(folder.absolute($0)) })
        }
        throw FixtureError("the case names no weights" + (role.map { " for \($0)" } ?? ""))
    }
}

/// Several checkpoints read as one; earlier files win.
final class JoinedCheckpoint: Checkpoint {
    private let parts: [any Checkpoint]
    init(_ parts: [any Checkpoint]) { self.parts = parts }

    var path: String { parts.map(\.path).joined(separator: " + ") }
    var names: [String] { parts.flatMap(\.names) }
    func info(_ name: String) -> TensorInfo? { parts.lazy.compactMap { $0.info(name) }.first }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        for part in parts {
            if let tensor = try part.tensor(name) { return tensor }
        }
        return nil
    }
}

/// A checkpoint with some tensors multiplied by a factor.
final class ScaledCheckpoint: Checkpoint {
    private let base: any Checkpoint
    private let factor: Float
    private let scaled: Set<String>

    init(_ base: any Checkpoint, _ scaled: Set<String>, by factor: Float) {
        self.base = base
        self.scaled = scaled
        self.factor = factor
    }

    var path: String { base.path }
    var names: [String] { base.names }
    func info(_ name: String) -> TensorInfo? {
        guard let info = base.info(name), scaled.contains(name) else { return base.info(name) }
        return TensorInfo(name: name, shape: info.shape, dtype: .f32)
    }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        guard let tensor = try base.tensor(name), scaled.contains(name) else {
            return try base.tensor(name)
        }
        return Tensor(tensor.floats().map { $0 * factor }, tensor.shape)
    }
}
