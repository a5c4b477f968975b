/// Quantised checkpoints → plain ones, and other programs' 8-bit layouts → this one's.

public import Tensors

/// The checkpoint with every quantised layer as a plain matrix of type `dtype`.
/// - Throws: `.incompatible` where codes and scales do not go together.
public func dequantized(
    _ base: any Checkpoint, to dtype: DType = .bf16
) throws(CheckpointError) -> DerivedCheckpoint {
    let base = try withOwnQuantization(base)
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        let (layer, leaf) = splitLeaf(info.name)
        let form = LinearStorage.stored(layer, in: base) ?? .plain
        switch (form, leaf) {
        case (.int8, "int8_weight"), (.fp8, "fp8_weight"):
            try checkQuantized(info, layer, form, base)
            let plain = TensorInfo(name: layer + ".weight", shape: info.shape, dtype: dtype)
            entries.append(
                DerivedCheckpoint.Entry(info: plain) { () throws(CheckpointError) in
                    try numbers(of: layer, form, base).converted(to: dtype)
                } forget: {
                    base.forget(info.name)
                })
        case (.int8, "scale"), (.fp8, "scale"): continue
        default: entries.append(.from(base, info))
        }
    }
    return try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries)
}

/// "blocks.0.ffn.0.bias" → ("blocks.0.ffn.0", "bias")
func splitLeaf(_ name: String) -> (module: String, leaf: String) {
    guard let dot = name.lastIndex(of: ".") else { return (name, "") }
    return (String(name[..<dot]), String(name[name.index(after: dot)...]))
}

/// What the codes of a layer stand for, as f32. Shapes have been checked.
func numbers(
    of layer: String, _ form: LinearStorage, _ base: any Checkpoint
) throws(CheckpointError) -> Tensor {
    let codes = try base.require("\(layer).\(form.rawValue)_weight")
    let scale = try base.require(layer + ".scale").converted(to: .f32)
    return form == .int8
        ? Int8Blocks.dequantize(codes, scale: scale) : FP8Rows.dequantize(codes, scale: scale)
}

/// Codes and scales of a layer must be what their names say before numbers are made of them.
func checkQuantized(
    _ codes: TensorInfo, _ layer: String, _ form: LinearStorage, _ base: any Checkpoint
) throws(CheckpointError) {
    let scale = base.info(layer + ".scale")
    if codes.shape.count == 2, let scale {
        let expected = form.tensors(layer, codes.shape[0], codes.shape[1])
        if expected[0].accepts(codes), expected[1].accepts(scale),
            expected[1].shape == scale.shape
        {
            return
        }
    }
    throw .incompatible(
        path: base.path,
        reason: "'\(codes.name)' \(codes.shape) \(codes.dtype) does not go with its scales "
            + "\(scale.map { "\($0.shape)" } ?? "(none)")")
}

/// ComfyUI's scaled fp8 (`weight` in e4m3 and one number `scale_weight` for the whole matrix):
/// layers of a transformer's blocks take this program's fp8 form, other matrices become bf16.
func withOwnQuantization(_ base: any Checkpoint) throws(CheckpointError) -> any Checkpoint {
    guard base.names.contains(where: { $0.hasSuffix(".scale_weight") }) else { return base }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        let (layer, leaf) = splitLeaf(info.name)
        if ["scale_weight", "scale_input", "scaled_fp8"].contains(leaf) || info.name == "scaled_fp8"
        {
            continue
        }
        guard leaf == "weight", let scaleInfo = base.info(layer + ".scale_weight"),
            info.dtype == .f8e4m3
        else {
            entries.append(.from(base, info))
            continue
        }
        guard scaleInfo.shape.reduce(1, *) == 1, info.shape.count == 2 else {
            throw .incompatible(
                path: base.path,
                reason: "'\(scaleInfo.name)' \(scaleInfo.shape) is not one scale for a matrix")
        }
        let rows = info.shape[0]
        let scale = { () throws(CheckpointError) -> Tensor in
            let value = try base.require(scaleInfo.name).floats()[0]
            return Tensor([Float](repeating: value, count: rows), [rows])
        }
        guard info.name.hasPrefix("blocks.") else {
            let plain = TensorInfo(name: info.name, shape: info.shape, dtype: .bf16)
            entries.append(
                DerivedCheckpoint.Entry(info: plain) { () throws(CheckpointError) in
                    FP8Rows.dequantize(try base.require(info.name), scale: try scale())
                        .converted(to: .bf16)
                } forget: {
                    base.forget(info.name)
                })
            continue
        }
        entries.append(.from(base, info, as: layer + ".fp8_weight"))
        entries.append(
            DerivedCheckpoint.Entry(
                info: TensorInfo(name: layer + ".scale", shape: [rows], dtype: .f32), make: scale,
                forget: {}))
    }
    return try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries)
}
