/// Plain checkpoints of transformers and text encoders → the original's `-quant` layout, or fp8 rows.

import Ground
public import Tensors

/// A quantised view of a checkpoint, and the layers that were left as they are.
public struct QuantizedCheckpoint {
    public let checkpoint: DerivedCheckpoint
    /// Names of the layers that were quantised.
    public let layers: [String]
    /// Linear layers of the blocks that were not quantised, because their width is not a multiple of 128.
    public let skipped: [String]
}

/// Quantises every linear layer in the blocks of a Wan transformer, except `proj_l`, or of a umT5 encoder. The norms
/// become f32 and the patch embedding a matrix, as with the original's `modify_model.py --quant_linear`.
/// - Parameters:
///   - format: `.int8` (128x128 blocks) or `.fp8` (rows).
///   - centresText: whether the embedded text gets its padding as origin first, which changes a few biases and makes
///     int8 closer to the plain model; without it the result is the original's.
/// - Throws: `.wrongModel`, or `.incompatible` if the layers are already quantised, or the text of something else than
///   a transformer is to be centred.
public func quantized(
    _ base: any Checkpoint, to format: LinearFormat, centresText: Bool = false
) throws(CheckpointError) -> QuantizedCheckpoint {
    ensure(format != .plain, "quantized: .plain is no quantised format")
    try requireRead(base)
    let summary = CheckpointSummary(base)
    let model: DetectedModel
    if let found = summary.model, found.kind == .umT5 {
        model = found
    } else {
        model = try summary.require(.wanTransformer)
    }
    var base = try inOriginalNames(base)
    if let name = base.names.first(where: isQuantized) {
        throw .incompatible(
            path: base.path, reason: "'\(name)': the checkpoint is already quantised")
    }
    if centresText {
        guard model.kind == .wanTransformer else {
            throw .incompatible(
                path: base.path,
                reason: "the origin of the embedded text is moved in transformers only")
        }
        base = try centredText(base)
    }
    return try quantized(inOriginalNames: base, to: format, model.quantizable.layers)
}

private func isQuantized(_ name: String) -> Bool {
    name.hasSuffix("int8_weight") || name.hasSuffix("fp8_weight")
}

private func quantized(
    inOriginalNames base: any Checkpoint, to format: LinearFormat, _ linears: [String]
) throws(CheckpointError) -> QuantizedCheckpoint {
    var entries: [DerivedCheckpoint.Entry] = []
    var layers: [String] = []
    var skipped: [String] = []
    for info in base.infos {
        let name = info.name
        try refuseBareCodes(info, in: base)
        guard isBlockLinear(info, linears) else {
            let isNorm = name.hasPrefix("blocks.") && name.contains("norm")
            let isPatch = name == "patch_embedding.weight" && info.shape.count > 2
            let (rows, columns) = foldedExtents(info.shape)
            entries.append(
                .from(
                    base, info, shape: isPatch ? [rows, columns] : nil,
                    dtype: isNorm && info.dtype.isFloatingPoint ? .f32 : nil, isFinite: true))
            continue
        }
        let layer = String(name.dropLast(".weight".count))
        guard format == .fp8Rows || info.shape[1] % Int8Blocks.side == 0 else {
            skipped.append(layer)
            entries.append(.from(base, info, isFinite: true))
            continue
        }
        layers.append(layer)
        entries += quantizedEntries(layer, info.shape, format) { () throws(CheckpointError) in
            let matrix = try base.require(name)
            defer { base.forget(name) }
            try requireFinite(matrix, name, in: base)
            return format == .int8Blocks ? Int8Blocks.quantize(matrix) : FP8Rows.quantize(matrix)
        }
    }
    return QuantizedCheckpoint(
        checkpoint: try DerivedCheckpoint(
            path: base.path, metadata: base.metadata, entries), layers: layers, skipped: skipped)
}

/// Whether this is the weight matrix of one of these layers of a block.
private func isBlockLinear(_ info: TensorInfo, _ layers: [String]) -> Bool {
    let parts = info.name.split(separator: ".", maxSplits: 2)
    return parts.count == 3 && parts[0] == "blocks" && info.shape.count == 2
        && info.dtype.isFloatingPoint && layers.contains { parts[2] == $0 + ".weight" }
}

/// Entries for the codes and scales of one layer. `make` computes both together; the scales are kept,
/// because the writer asks for them after the codes.
func quantizedEntries(
    _ layer: String, _ shape: [Int], _ format: LinearFormat,
    _ make: @escaping () throws(CheckpointError) -> (codes: Tensor, scale: Tensor)
) -> [DerivedCheckpoint.Entry] {
    final class Last {
        var scale: Tensor?
    }
    let last = Last()
    let tensors = format.tensors(layer, shape[0], shape[1])
    return [
        DerivedCheckpoint.Entry(
            info: TensorInfo(
                name: tensors[0].name, shape: tensors[0].shape,
                dtype: format == .int8Blocks ? .i8 : .f8e4m3)
        ) { () throws(CheckpointError) in
            let pair = try make()
            last.scale = pair.scale
            return pair.codes
        } forget: {
        },
        DerivedCheckpoint.Entry(
            info: TensorInfo(name: tensors[1].name, shape: tensors[1].shape, dtype: .f32)
        ) { () throws(CheckpointError) in
            if let scale = last.scale { return scale }
            return try make().scale
        } forget: {
            last.scale = nil
        },
    ]
}
