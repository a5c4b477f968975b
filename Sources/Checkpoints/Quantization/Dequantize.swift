/// Quantised checkpoints → plain ones, and other programs' 8-bit layouts → this one's.

public import Tensors

/// The checkpoint with every 8-bit matrix turned into a plain one of type `dtype`.
/// - Throws: `.incompatible` if codes and scales do not fit each other, or have an unsupported
///   format.
public func dequantized(
    _ base: any Checkpoint, to dtype: DType = .bf16
) throws(CheckpointError) -> DerivedCheckpoint {
    let matrices = try QuantizedMatrices(of: base)
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        if matrices.companions.contains(info.name) { continue }
        if let matrix = matrices.byCodes[info.name] {
            entries.append(.plain(matrix, of: base, as: dtype))
            continue
        }
        let (layer, leaf) = splitLeaf(info.name)
        if let form = LinearFormat(codes: leaf) {
            try checkQuantized(info, layer, form, base)
            let plain = TensorInfo(name: layer + ".weight", shape: info.shape, dtype: dtype)
            entries.append(
                DerivedCheckpoint.Entry(info: plain) { () throws(CheckpointError) in
                    let matrix = try numbers(of: layer, form, base).converted(to: dtype)
                    try requireFinite(matrix, info.name, in: base)
                    return matrix
                } forget: {
                    base.forget(info.name)
                })
            continue
        }
        if leaf == "scale", LinearFormat.stored(layer, in: base)?.isQuantized == true { continue }
        try refuseBareCodes(info, in: base)
        let isCode = info.dtype.isFloatingPoint && info.dtype.byteCount == 1
        entries.append(.from(base, info, dtype: isCode ? dtype : nil))
    }
    return try DerivedCheckpoint(
        path: base.path, metadata: plainMetadata(of: base), foreignTypes: base.foreignTypes,
        entries)
}

/// Refuses a layer's weight that is neither numbers nor codes with scales.
/// - Throws: `.incompatible`.
func refuseBareCodes(_ info: TensorInfo, in base: any Checkpoint) throws(CheckpointError) {
    // Wider whole numbers are no codes: a model that cannot use them says so when it is opened.
    guard
        splitLeaf(info.name).leaf != "weight" || info.dtype.isFloatingPoint
            || info.dtype.byteCount > 1
    else {
        throw .incompatible(
            path: base.path, reason: "'\(info.name)' has \(info.dtype) codes without scales")
    }
}

/// The metadata of a file whose matrices are no longer in another program's format.
private func plainMetadata(of base: any Checkpoint) -> [String: String] {
    base.metadata.filter { $0.key != "_quantization_metadata" }
}

/// "blocks.0.ffn.0.bias" → ("blocks.0.ffn.0", "bias")
func splitLeaf(_ name: String) -> (module: String, leaf: String) {
    guard let dot = name.lastIndex(of: ".") else { return ("", name) }
    return (String(name[..<dot]), String(name[name.index(after: dot)...]))
}

/// The weights of a layer in one of this program's own 8-bit forms, as f32. Shapes have been checked.
func numbers(
    of layer: String, _ form: LinearFormat, _ base: any Checkpoint
) throws(CheckpointError) -> Tensor {
    let codes = try base.require("\(layer).\(form.rawValue)_weight")
    let scale = try positiveScales(layer + ".scale", in: base)
    return form == .int8Blocks
        ? Int8Blocks.dequantize(codes, scale: scale) : FP8Rows.dequantize(codes, scale: scale)
}

/// Checks that the codes and scales of a layer have the shapes and types that their names promise.
func checkQuantized(
    _ codes: TensorInfo, _ layer: String, _ form: LinearFormat, _ base: any Checkpoint
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
        reason: "'\(codes.name)' \(codes.shape) \(codes.dtype) does not fit its scales "
            + "\(scale.map { "\($0.shape)" } ?? "(none)")")
}

/// Converts other programs' 8-bit matrices to forms that models take: to this program's own form if
/// it has the same one and the layer may be quantised, otherwise to bf16.
/// - Parameter base: in original names.
func withOwnQuantization(
    _ base: any Checkpoint, _ kind: DetectedModel.Kind
) throws(CheckpointError) -> any Checkpoint {
    let matrices = try QuantizedMatrices(of: base)
    if matrices.isEmpty { return base }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        if matrices.companions.contains(info.name) { continue }
        guard let matrix = matrices.byCodes[info.name] else {
            entries.append(.from(base, info))
            continue
        }
        let form = kind == .wanTransformer ? matrices.ownForm(of: matrix, in: base) : .plain
        let layer = splitLeaf(matrix.name).module
        guard form != .plain else {
            entries.append(.plain(matrix, of: base, as: .bf16))
            continue
        }
        let own = form.tensors(layer, matrix.grid.rows, matrix.grid.columns)
        entries.append(
            DerivedCheckpoint.Entry(
                info: TensorInfo(name: own[0].name, shape: own[0].shape, dtype: matrix.type)
            ) { () throws(CheckpointError) in
                try matrix.codes(of: base)
            } forget: {
                base.forget(info.name)
            })
        entries.append(
            DerivedCheckpoint.Entry(
                info: TensorInfo(name: own[1].name, shape: own[1].shape, dtype: .f32)
            ) { () throws(CheckpointError) in
                let scales = try matrix.scales(of: base)
                let count = own[1].shape.reduce(1, *)
                return Tensor(
                    scales.count == count
                        ? scales : [Float](repeating: scales[0], count: count), Shape(own[1].shape))
            } forget: {
            })
    }
    return try DerivedCheckpoint(
        path: base.path, metadata: plainMetadata(of: base), foreignTypes: base.foreignTypes,
        entries)
}

extension QuantizedMatrices {
    /// This program's form for a linear layer in a transformer's blocks: the same for all layers that
    /// share an input, otherwise plain.
    fileprivate func ownForm(
        of matrix: QuantizedMatrix, in base: any Checkpoint
    ) -> LinearFormat {
        let (module, _) = splitLeaf(matrix.name)
        let parts = module.split(separator: ".", maxSplits: 2)
        guard parts.count == 3, parts[0] == "blocks",
            WanTransformerArchitecture.linears.contains(String(parts[2]))
        else { return .plain }
        let group =
            WanTransformerArchitecture.sharedInputs.first { $0.contains(String(parts[2])) }
            ?? [String(parts[2])]
        let forms = group.compactMap { layer in
            let name = "\(parts[0]).\(parts[1]).\(layer)"
            return byCodes[name + ".weight"].map(Self.form) ?? LinearFormat.stored(name, in: base)
        }
        return forms.allSatisfy { $0 == forms[0] } ? forms[0] : .plain
    }

    private static func form(of matrix: QuantizedMatrix) -> LinearFormat {
        guard matrix.codes.shape.count == 2 else { return .plain }
        if matrix.type == .f8e4m3, matrix.grid.isByRows { return .fp8Rows }
        return matrix.type == .i8 && matrix.grid.isByOwnBlocks ? .int8Blocks : .plain
    }
}

extension DerivedCheckpoint.Entry {
    /// The plain matrix that a quantised one stands for.
    static func plain(_ matrix: QuantizedMatrix, of base: any Checkpoint, as dtype: DType) -> Self {
        Self(info: TensorInfo(name: matrix.name, shape: matrix.codes.shape, dtype: dtype)) {
            () throws(CheckpointError) in
            try matrix.numbers(of: base, as: dtype)
        } forget: {
            base.forget(matrix.codes.name)
        }
    }
}
