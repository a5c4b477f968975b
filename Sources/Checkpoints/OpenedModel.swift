/// Opening the checkpoint of a model: whatever its header can reveal is checked before any work.

import Ground
import Synchronization
import SystemPackage
public import Tensors

/// A checkpoint that holds a complete model which this program can run.
///
/// Threads may share it: what is opened here only reads mapped files.
public final class OpenedModel: @unchecked Sendable {
    /// The file as it is, whose checksums can be compared.
    public let file: any Checkpoint
    /// The checkpoint, in original names and in forms that models take.
    public let checkpoint: any Checkpoint
    public let model: DetectedModel
    /// Tensors that the model does not use.
    public let unused: [String]
    /// Decisions that a user should know of: that an average was preferred, for example.
    public let notes: [String]

    /// - Parameter file: nil: the checkpoint itself.
    public init(
        file: (any Checkpoint)? = nil, checkpoint: any Checkpoint, model: DetectedModel,
        unused: [String] = [], notes: [String] = []
    ) {
        self.file = file ?? checkpoint
        self.checkpoint = checkpoint
        self.model = model
        self.unused = unused
        self.notes = notes
    }
}

/// Opens a file, an index or a folder as a model of `kind`. A file that somebody still holds is not opened twice, unless it
/// has been replaced or written to; an index and a folder do not tell when their shards are.
/// - Parameters:
///   - heads: needed for a transformer whose head width is not 128 and cannot be told from the file.
///   - patch: for a transformer, rows and columns of latents that make one token.
/// - Throws: if it is not such a model, lacks a part, or has parts that are not supported and would
///   change the result.
public func openModel(
    _ path: String, _ kind: DetectedModel.Kind, heads: Int? = nil, patch: Int = 2
) throws(CheckpointError) -> OpenedModel {
    guard !isIndex(path), !FilePath(path).isFolder, let stamp = FileStamp(path) else {
        return try modelFile(try openCheckpoint(path), kind, heads: heads, patch: patch)
    }
    let key = OpenedKey(stamp: stamp, kind: kind, heads: heads, patch: patch)
    // Whoever asks for the same file meanwhile waits for it instead of reading it too.
    return try openedModels.withLock { models throws(CheckpointError) in
        if let model = models[key]?.model { return model }
        let model = try modelFile(
            try openCheckpoint(path), kind, heads: heads, patch: patch)
        models = models.filter { $0.value.model != nil }
        // A file that was replaced while it was opened is another one.
        if FileStamp(path) == stamp { models[key] = HeldModel(model: model) }
        return model
    }
}

private struct OpenedKey: Hashable {
    let stamp: FileStamp
    let kind: DetectedModel.Kind
    let heads: Int?
    let patch: Int
}

private struct HeldModel: Sendable {
    weak let model: OpenedModel?
}

/// The models that are open, by what they were opened from.
private let openedModels = Mutex<[OpenedKey: HeldModel]>([:])

/// Checks that an opened checkpoint is a model of `kind`; see `openModel`.
public func modelFile(
    _ stored: any Checkpoint, _ kind: DetectedModel.Kind, heads: Int? = nil, patch: Int = 2
) throws(CheckpointError) -> OpenedModel {
    let whole = stored
    let stored = try part(kind, of: whole)
    let checkpoint =
        KeyLayout.detect(stored.names) == nil ? stored : try inOriginalNames(stored)
    let summary = CheckpointSummary(checkpoint, heads: heads, patch: patch)
    let model = try summary.require(kind)
    if let refusal = model.refusal { throw .incompatible(path: stored.path, reason: refusal) }
    try refuseForeignParts(summary.surplus, kind, in: checkpoint)
    if let missing = summary.missing.first {
        if let type = checkpoint.foreignTypes[missing.name] {
            throw .dtype(missing.name, in: stored.path, expected: "numbers", found: type)
        }
        throw .missing(
            missing.name, in: stored.path, nearest: nearestNames(to: missing.name, in: checkpoint))
    }
    if let wrong = summary.mismatched.first {
        guard shapesAgree(stored: wrong.found, wanted: wrong.expected) else {
            throw .shape(wrong.name, in: stored.path, expected: wrong.expected, found: wrong.found)
        }
        throw .dtype(wrong.name, in: stored.path, expected: wrong.type, found: wrong.dtype)
    }
    try requireSharedForms(model, checkpoint)
    return OpenedModel(
        file: whole, checkpoint: checkpoint, model: model, unused: summary.surplus,
        notes: whole.notes)
}

/// Extracts a model from a file that holds a whole pipeline, such as ComfyUI's all-in-one
/// checkpoints; any other file is returned as it is.
private func part(
    _ kind: DetectedModel.Kind, of file: any Checkpoint
) throws(CheckpointError) -> any Checkpoint {
    let prefixes: [String] =
        switch kind {
        case .wanTransformer: []
        case .umT5: ["text_encoders.umt5xxl.transformer.", "cond_stage_model."]
        case .wanVAE: ["vae.", "first_stage_model."]
        }
    let prefix = prefixes.first { prefix in file.names.contains { $0.hasPrefix(prefix) } }
    guard let prefix else { return file }
    let foreign = file.foreignTypes.filter { $0.key.hasPrefix(prefix) }.map {
        (String($0.key.dropFirst(prefix.count)), $0.value)
    }
    return try DerivedCheckpoint(
        path: file.path, metadata: file.metadata,
        foreignTypes: Dictionary(uniqueKeysWithValues: foreign),
        file.infos.filter { $0.name.hasPrefix(prefix) }.map {
            .from(file, $0, as: String($0.name.dropFirst(prefix.count)))
        })
}

/// Checks that layers which share an input take it in the same format.
private func requireSharedForms(
    _ model: DetectedModel, _ file: any Checkpoint
) throws(CheckpointError) {
    let (blocks, _, sharing) = model.quantizable
    for block in 0..<blocks {
        for group in sharing {
            let forms = group.map { layer in
                (layer, LinearFormat.stored("blocks.\(block).\(layer)", in: file) ?? .plain)
            }
            if let other = forms.first(where: { $0.1 != forms[0].1 }) {
                throw .incompatible(
                    path: file.path,
                    reason:
                        "'blocks.\(block).\(forms[0].0)' is stored as \(forms[0].1.rawValue) and "
                        + "'\(other.0)' as \(other.1.rawValue), but both read the same input; "
                        + "'turbodiffusion convert --dequantize' makes all of them plain")
            }
        }
    }
}

/// The same without the critic that the original's rCM trains beside a net (`net_fake_score`): it is no part of the model,
/// and the original publishes the net alone.
public func withoutCritic(_ file: any Checkpoint) throws(CheckpointError) -> any Checkpoint {
    try leavingOut(of: file) { $0.hasPrefix("net_fake_score.") }
}

/// A checkpoint without some of its tensors.
private func leavingOut(
    of file: any Checkpoint, where isLeftOut: (String) -> Bool
) throws(CheckpointError) -> any Checkpoint {
    let kept = file.infos.filter { !isLeftOut($0.name) }
    // A file of nothing else is what was asked for.
    if kept.isEmpty || kept.count == file.names.count { return file }
    return try DerivedCheckpoint(
        path: file.path, metadata: file.metadata,
        foreignTypes: file.foreignTypes.filter { !isLeftOut($0.key) },
        kept.map { .from(file, $0) })
}

/// Up to three names of the checkpoint with the longest common start and end.
func nearestNames(to name: String, in file: any Checkpoint) -> [String] {
    let wanted = Array(name.utf8)
    func likeness(_ other: String) -> Int {
        zip(wanted, other.utf8).prefix { $0 == $1 }.count
            + zip(wanted.reversed(), other.utf8.reversed()).prefix { $0 == $1 }.count
    }
    return file.names.map { (likeness($0), $0) }
        .filter { $0.0 > wanted.count / 3 }
        .sorted { $0.0 > $1.0 }.prefix(3).map(\.1)
}

extension OpenedModel {
    /// The checkpoint without what the model does not use.
    public var used: any Checkpoint {
        get throws(CheckpointError) {
            let names = Set(unused)
            return try leavingOut(of: checkpoint) { names.contains($0) }
        }
    }

    /// The forms in which its linear layers are stored.
    public var linearFormats: Set<LinearFormat> {
        Set(checkpoint.names.map { LinearFormat(codes: splitLeaf($0).leaf) ?? .plain })
    }

    /// The error for the first tensor whose bytes do not have the checksum stored in the file; nil if there is none, or
    /// if the file has no checksums.
    /// - Parameter isWanted: asked before each tensor; false ends the search.
    public func damage(while isWanted: () -> Bool) -> CheckpointError? {
        for name in file.names where isWanted() {
            do throws(CheckpointError) {
                try file.verify(name)
            } catch {
                return error
            }
        }
        return nil
    }
}
