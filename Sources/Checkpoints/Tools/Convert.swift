/// The same weights under other names, in another type, or with what sparse attention needs added.

public import Tensors

/// What to change; the default changes nothing but wrapper prefixes, which reading has already
/// removed.
public struct Conversion: Sendable, Equatable {
    /// nil keeps the names.
    public var layout: KeyLayout?
    /// The type for floating-point tensors; nil keeps theirs. Quantised layers stay as they are.
    public var dtype: DType?
    /// Whether quantised layers become plain matrices, of type `dtype` or bf16.
    public var dequantizes = false
    /// Adds the linear branch of sparse-linear attention, all zeros, where it is missing: the model
    /// then runs with sparse attention and gives the result that it would give without the branch.
    public var addsSparseLinear = false
    /// Number of heads of the transformer, for the size of the branch; nil: width / 128.
    public var heads: Int?

    public init() {}
}

/// Converts a checkpoint.
/// - Throws: `.incompatible` if the names belong to no known model, or there is nothing to add
///   `proj_l` to; what `requireRead` throws.
public func converted(
    _ base: any Checkpoint, _ conversion: Conversion
) throws(CheckpointError) -> DerivedCheckpoint {
    try requireRead(base)
    var checkpoint: any Checkpoint = base
    if conversion.dequantizes {
        checkpoint = try dequantized(checkpoint, to: conversion.dtype ?? .bf16)
    }
    // This program's own names come with its own 8-bit forms; under other names matrices stay as they are.
    if conversion.addsSparseLinear || conversion.layout == .original {
        checkpoint = try inOriginalNames(checkpoint)
    } else if conversion.layout != nil {
        checkpoint = try withOriginalNames(checkpoint).checkpoint
    }
    if conversion.addsSparseLinear {
        checkpoint = try addingSparseLinear(checkpoint, heads: conversion.heads)
    }
    if let layout = conversion.layout, layout != .original {
        checkpoint = try renamed(checkpoint, to: layout)
    }
    let source = checkpoint
    let matrices = try conversion.dtype.map { _ throws(CheckpointError) in
        try QuantizedMatrices(of: source)
    }
    let entries = source.infos.map { info in
        let (layer, leaf) = splitLeaf(info.name)
        let isOwn = leaf == "scale" || LinearFormat(codes: leaf) != nil
        let keeps =
            !info.dtype.isFloatingPoint || matrices?.byCodes[info.name] != nil
            || matrices?.companions.contains(info.name) == true
            || isOwn && LinearFormat.stored(layer, in: source)?.isQuantized == true
        return DerivedCheckpoint.Entry.from(source, info, dtype: keeps ? nil : conversion.dtype)
    }
    return try DerivedCheckpoint(path: base.path, metadata: source.metadata, entries)
}

/// The checkpoint with Wan's own names and with 8-bit forms that models take; unchanged if it has both.
/// - Throws: `.incompatible` if the names belong to no known model, or a quantisation is not supported.
public func inOriginalNames(
    _ base: any Checkpoint
) throws(CheckpointError) -> any Checkpoint {
    let (kind, renamed) = try withOriginalNames(base)
    return try withOwnQuantization(renamed, kind)
}

/// The checkpoint with Wan's own names; its quantisation stays as it is.
/// - Parameter foldsPatches: whether the patch embedding becomes a matrix.
func withOriginalNames(
    _ base: any Checkpoint, foldsPatches: Bool = true
) throws(CheckpointError) -> (kind: DetectedModel.Kind, checkpoint: any Checkpoint) {
    guard let (kind, layout) = KeyLayout.detect(base.names) else {
        throw .incompatible(path: base.path, reason: "its names belong to no known model")
    }
    let translation = layout.isOriginal(kind) ? nil : KeyTranslation(kind, layout)
    let isFolded = base.info("patch_embedding.weight")?.shape.count ?? 2 == 2
    if translation == nil, isFolded || !foldsPatches { return (kind, base) }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        // Hugging Face may store the embedding of the text encoder twice.
        if info.name == "encoder.embed_tokens.weight" {
            if base.info("shared.weight") == nil {
                entries.append(.from(base, info, as: "token_embedding.weight"))
            }
            continue
        }
        let name = translation?.original(info.name) ?? info.name
        let isPatch =
            foldsPatches && name == "patch_embedding.weight" && info.shape.count > 2
        let (rows, columns) = foldedExtents(info.shape)
        entries.append(.from(base, info, as: name, shape: isPatch ? [rows, columns] : nil))
    }
    let foreign = base.foreignTypes.map { (translation?.original($0.key) ?? $0.key, $0.value) }
    return (
        kind,
        try DerivedCheckpoint(
            path: base.path, metadata: base.metadata,
            foreignTypes: Dictionary(foreign, uniquingKeysWith: { a, _ in a }), entries)
    )
}

/// Refuses a checkpoint of which a tool's result would lack something that counts, because its element type is not read:
/// scales, and tensors that the model needs. Of a model that cannot be made out, any tensor may be needed.
/// - Throws: `.incompatible` or `.dtype`, naming the tensor.
func requireRead(_ base: any Checkpoint) throws(CheckpointError) {
    if base.foreignTypes.isEmpty { return }
    try refuseUnreadScales(of: base)
    guard KeyLayout.detect(base.names) != nil else { return }
    let original = try withOriginalNames(base).checkpoint
    let needed = DetectedModel(original).map { Set($0.tensors(storedAs: original).map(\.name)) }
    for (name, type) in original.foreignTypes.sorted(by: { $0.key < $1.key })
    where original.info(name) == nil && needed?.contains(name) ?? true {
        throw .dtype(name, in: base.path, expected: "numbers", found: type)
    }
}

private func renamed(
    _ base: any Checkpoint, to layout: KeyLayout
) throws(CheckpointError) -> DerivedCheckpoint {
    guard let (kind, _) = KeyLayout.detect(base.names) else {
        throw .incompatible(path: base.path, reason: "its names belong to no known model")
    }
    let translation = layout.isOriginal(kind) ? nil : KeyTranslation(kind, layout)
    let entries = base.infos.map { info in
        let isPatch =
            info.name == "patch_embedding.weight" && info.shape.count == 2
            && info.shape[1] % 4 == 0 && layout.hasConvolutionalPatches
        return DerivedCheckpoint.Entry.from(
            base, info, as: translation?.foreign(info.name) ?? info.name,
            shape: isPatch ? [info.shape[0], info.shape[1] / 4, 1, 2, 2] : nil)
    }
    return try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries)
}

private func addingSparseLinear(
    _ base: any Checkpoint, heads: Int?
) throws(CheckpointError) -> DerivedCheckpoint {
    let summary = CheckpointSummary(base, heads: heads)
    try summary.require(.wanTransformer)
    guard case .wanTransformer(let model)? = summary.model, model.dim % model.heads == 0,
        model.headDim <= 1024
    else {
        throw .incompatible(
            path: base.path, reason: "its width does not fit its number of heads; see --num-heads")
    }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        entries.append(.from(base, info))
        // The original has the branch after the norm of the keys.
        let anchor = ".self_attn.norm_k.weight"
        guard info.name.hasPrefix("blocks."), info.name.hasSuffix(anchor) else { continue }
        let layer =
            info.name.dropLast(anchor.count) + "." + WanTransformerArchitecture.sparseLinear
        guard base.info(layer + ".weight") == nil else { continue }
        entries.append(.zeros(layer + ".weight", [model.headDim, model.headDim], .f32))
        entries.append(.zeros(layer + ".bias", [model.headDim], .f32))
    }
    return try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries)
}
