/// Opening the checkpoint of a model: whatever its header can reveal is checked before any work.

import Tensors

/// A checkpoint that holds a complete model which this program can run.
public struct OpenedModel {
    /// The checkpoint, in original names and in forms that models take.
    public let checkpoint: any Checkpoint
    public let model: DetectedModel
    /// Tensors that the model does not use.
    public let unused: [String]
    /// Decisions that a user should know of: that an average was preferred, for example.
    public let notes: [String]

    public init(
        checkpoint: any Checkpoint, model: DetectedModel, unused: [String] = [],
        notes: [String] = []
    ) {
        self.checkpoint = checkpoint
        self.model = model
        self.unused = unused
        self.notes = notes
    }
}

/// Opens a file, an index or a folder as a model of `kind`.
/// - Parameters:
///   - heads: needed for a transformer whose head width is not 128 and cannot be told from the file.
///   - patch: for a transformer, rows and columns of latents that make one token.
/// - Throws: if it is not such a model, lacks a part, or has parts that are not supported and would
///   change the result.
public func openModel(
    _ path: String, _ kind: DetectedModel.Kind, heads: Int? = nil, patch: Int = 2
) throws(CheckpointError) -> OpenedModel {
    try modelFile(try openCheckpoint(path), kind, heads: heads, patch: patch)
}

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
        if let type = stored.foreignTypes[missing.name] {
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
    if case .wanTransformer(let sizes) = model { try requireSharedForms(sizes, checkpoint) }
    return OpenedModel(
        checkpoint: checkpoint, model: model, unused: summary.surplus, notes: whole.notes)
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
    return try DerivedCheckpoint(
        path: file.path, metadata: file.metadata,
        file.infos.filter { $0.name.hasPrefix(prefix) }.map {
            .from(file, $0, as: String($0.name.dropFirst(prefix.count)))
        })
}

/// Checks that layers which share an input take it in the same format.
private func requireSharedForms(
    _ model: WanTransformerArchitecture, _ file: any Checkpoint
) throws(CheckpointError) {
    for block in 0..<model.layers {
        for group in WanTransformerArchitecture.sharedInputs {
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

/// The error for the first tensor of a file whose bytes do not have the checksum stored in the file; nil if
/// there is none, if the file has no checksums, or if it cannot be opened.
/// - Parameter isWanted: asked before each tensor; false ends the search.
public func damage(in path: String, while isWanted: () -> Bool) -> CheckpointError? {
    guard let file = try? openCheckpoint(path) else { return nil }
    for name in file.names where isWanted() {
        do throws(CheckpointError) {
            try file.verify(name)
        } catch {
            return error
        }
    }
    return nil
}
