/// Adapters (LoRA and its relatives): merged into a checkpoint on disk, or while it is loaded.

import Tensors

/// An adapter and the strength to apply it with.
public struct LoRA {
    public let checkpoint: any Checkpoint
    /// The factor of the change; 1 is as trained.
    public let strength: Float

    public init(_ checkpoint: any Checkpoint, strength: Float = 1) {
        self.checkpoint = checkpoint
        self.strength = strength
    }

    /// - Throws: what `openCheckpoint` throws.
    public init(path: String, strength: Float = 1) throws(CheckpointError) {
        self.init(try openCheckpoint(path), strength: strength)
    }
}

/// A checkpoint with adapters merged in.
public struct AdaptedCheckpoint {
    /// Computes the changed tensors on demand.
    public let checkpoint: any Checkpoint
    /// Tensors that were changed.
    public let changed: [String]
    /// Unused keys of the adapters, after the file's name: they belong to nothing in the checkpoint,
    /// or to a layer with other inputs.
    public let unmatched: [String]
    /// What else a user should know about the result.
    public let notes: [String]
}

/// Applies adapters to a checkpoint, one after the other. The result keeps the checkpoint's names.
///
/// Supported are low-rank pairs (weight + strength · alpha / rank · up · down), their biases, full
/// differences and full tensors, DoRA, LoHa and LoKr, under the names of kohya, musubi-tuner,
/// LyCORIS, ComfyUI, diffusers and PEFT. Layers in this program's 8-bit forms are dequantised, changed
/// and quantised again. In other programs' forms, whose scales are tensors that no adapter names, codes
/// become bf16 multiples of their scales; plain 8-bit numbers become bf16.
/// - Throws: `.incompatible` if an adapter was made for another model, or changes a module in a way
///   that is not supported. No numbers have been read by then.
public func adapted(
    _ base: any Checkpoint, by loras: [LoRA]
) throws(CheckpointError) -> AdaptedCheckpoint {
    if loras.isEmpty {
        return AdaptedCheckpoint(checkpoint: base, changed: [], unmatched: [], notes: [])
    }
    try requireRead(base)
    let layout = KeyLayout.detect(base.names)?.1 ?? .original
    let (kind, base) = try withOriginalNames(base, foldsPatches: false)
    let matrices = try QuantizedMatrices(of: base)
    var changes: [String: [Change]] = [:]
    var unmatched: [String] = []
    var notes: [String] = []
    for lora in loras {
        var reader = AdapterReader(lora, base, matrices)
        try reader.read()
        guard !reader.changes.isEmpty else {
            throw .incompatible(
                path: lora.checkpoint.path,
                reason: "none of its \(lora.checkpoint.names.count) keys belongs to a layer of "
                    + "\(base.path); the first: "
                    + lora.checkpoint.names.prefix(3).joined(separator: ", "))
        }
        for (target, change) in reader.changes { changes[target, default: []].append(change) }
        notes += reader.notes
        unmatched += reader.unmatched.map { "\(lora.checkpoint.path): \($0)" }
    }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        let (module, leaf) = splitLeaf(info.name)
        let form = LinearFormat(codes: leaf)
        if leaf == "scale", let form = LinearFormat.stored(module, in: base),
            changes["\(module).\(form.rawValue)_weight"] != nil
        {
            continue  // made together with its codes
        }
        guard let list = changes[info.name] else {
            entries.append(.from(base, info))
            continue
        }
        if let form {
            try checkQuantized(info, module, form, base)
            entries += quantizedEntries(module, info.shape, form) { () throws(CheckpointError) in
                defer { base.forget(info.name) }
                let matrix = try changed(
                    try numbers(of: module, form, base), by: list, as: .f32, info.name, in: base)
                return form == .int8Blocks ? Int8Blocks.quantize(matrix) : FP8Rows.quantize(matrix)
            }
            continue
        }
        let matrix = matrices.byCodes[info.name]
        let target = TensorInfo(
            name: info.name, shape: info.shape,
            dtype: info.dtype.byteCount == 1 ? .bf16 : info.dtype)
        entries.append(
            DerivedCheckpoint.Entry(info: target) { () throws(CheckpointError) in
                guard let matrix else {
                    return try changed(
                        try base.require(info.name), by: list, as: target.dtype, info.name, in: base
                    )
                }
                let numbers = try changed(
                    try matrix.numbers(of: base, as: .f32), by: list, as: .f32, info.name, in: base)
                return try matrix.multiples(of: numbers, in: base, as: target.dtype)
            } forget: {
                base.forget(info.name)
            })
    }
    let multiples = changes.keys.count { matrices.byCodes[$0] != nil }
    if multiples > 0 {
        notes.append(
            "\(multiples) matrices are no longer 8-bit codes, but bf16 multiples of their scales")
    }
    if !layout.isOriginal(kind) {
        let translation = KeyTranslation(kind, layout)
        entries = entries.map { $0.renamed(translation.foreign($0.info.name)) }
    }
    return AdaptedCheckpoint(
        checkpoint: try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries),
        changed: changes.keys.sorted(), unmatched: unmatched, notes: notes)
}
