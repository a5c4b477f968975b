/// How programs store matrices in 8 bits, in one table: names, codes and scales.

import Tensors

/// A matrix that is stored as codes and scales: number = code · scale · factor.
struct QuantizedMatrix {
    /// The names that one program gives to codes and scales.
    struct Naming {
        /// Leaf of the codes.
        let codes: String
        /// Leaf of the plain matrix; nil if the module's name is the matrix's.
        let plain: String?
        /// Possible leaves of the scales.
        let scales: [String]
        var factor: Float = 1
    }

    /// All namings except this program's own, which are in `LinearFormat`.
    static let namings = [
        // ComfyUI since 2025 and LightX2V; ComfyUI before and musubi-tuner; DeepSeek; others.
        Naming(
            codes: "weight", plain: "weight",
            scales: ["weight_scale", "scale_weight", "weight_scale_inv", "scale"]),
        // bitsandbytes: the largest magnitude of each row stands for 127.
        Naming(codes: "weight", plain: "weight", scales: ["SCB"], factor: 1 / 127),
        // optimum-quanto: the matrix is a module of its own.
        Naming(codes: "_data", plain: nil, scales: ["_scale"]),
    ]

    /// Tensors of a layer that only tell how activations were scaled, or repeat what the table says.
    static let companions: Set<String> = [
        "input_scale", "scale_input", "output_scale", "comfy_quant", "scaled_fp8", "weight_format",
    ]

    /// Tensors that reveal an unsupported format.
    static let foreign: [String: String] = [
        "weight_scale_2": "NVFP4", "pre_quant_scale": "weights smoothed by their inputs",
        "weight_s_rel": "4-bit codes with a codebook",
        "weight_codebook": "4-bit codes with a codebook",
        "absmax": "bitsandbytes' 4-bit blocks", "quant_map": "bitsandbytes' 4-bit blocks",
        "qweight": "4-bit codes (GPTQ, AWQ or SVDQuant)", "qzeros": "4-bit codes (GPTQ or AWQ)",
        "wscales": "SVDQuant", "zero_point": "codes with zero points",
        "weight_zero_point": "codes with zero points", "_shift": "codes with shifts",
    ]

    /// ComfyUI's names of formats that are numbers times scales.
    static let formats: [String: DType] = [
        "float8_e4m3fn": .f8e4m3, "float8_e5m2": .f8e5m2, "int8_tensorwise": .i8,
        "int8_blockwise": .i8,
    ]

    /// The codes and scales as stored.
    let codes, scale: TensorInfo
    /// The type of the codes, even if the file stores them as bytes.
    let type: DType
    let grid: ScaleGrid
    /// The name of the plain matrix.
    let name: String
    let factor: Float

    /// The codes with their real type.
    func codes(of file: any Checkpoint) throws(CheckpointError) -> Tensor {
        let stored = try file.require(codes.name)
        return stored.dtype == type
            ? stored
            : Tensor(stored.shape, type, storage: stored.storage, byteOffset: stored.byteOffset)
    }

    /// The scales in order, times `factor`.
    /// - Throws: `.malformed` if one is not a positive number.
    func scales(of file: any Checkpoint) throws(CheckpointError) -> [Float] {
        let scales = try positiveScales(scale.name, in: file).floats()
        return factor == 1 ? scales : scales.map { $0 * factor }
    }

    /// The plain matrix.
    func numbers(of file: any Checkpoint, as dtype: DType) throws(CheckpointError) -> Tensor {
        let numbers = try scaled(try codes(of: file), of: file, as: dtype, dividing: false)
        try requireFinite(numbers, codes.name, in: file)
        return numbers
    }

    /// Divides numbers by their scales, so that they can replace the codes and the scales can stay.
    func multiples(
        of numbers: Tensor, in file: any Checkpoint, as dtype: DType
    ) throws(CheckpointError) -> Tensor {
        try scaled(numbers, of: file, as: dtype, dividing: true)
    }

    private func scaled(
        _ x: Tensor, of file: any Checkpoint, as dtype: DType, dividing: Bool
    ) throws(CheckpointError) -> Tensor {
        let scales = try scales(of: file)
        let (grid, flat) = (grid, x.reshaped([grid.rows * grid.columns]))
        return computed(x.shape, dtype, unit: grid.columns) { range in
            var numbers = flat.slice(range).floats()
            let rows = range.lowerBound / grid.columns..<range.upperBound / grid.columns
            numbers.withUnsafeMutableBufferPointer {
                grid.apply(scales, to: $0, rows: rows, dividing: dividing)
            }
            return numbers
        }
    }
}

/// Scales as f32.
/// - Throws: `.malformed` if one is not a positive number.
func positiveScales(_ name: String, in file: any Checkpoint) throws(CheckpointError) -> Tensor {
    let scales = try file.require(name).converted(to: .f32)
    guard scales.floats().allSatisfy({ $0 > 0 && $0.isFinite }) else {
        throw .malformed(
            path: file.path, reason: "'\(name)' holds scales that are not positive numbers")
    }
    return scales
}

/// Refuses scales of an element type that is not read (MXFP8's powers of two): without them, codes look like numbers.
/// - Throws: `.incompatible`, naming the tensor and its type.
func refuseUnreadScales(of file: any Checkpoint) throws(CheckpointError) {
    let leaves = Set(QuantizedMatrix.namings.flatMap(\.scales))
    for (name, type) in file.foreignTypes.sorted(by: { $0.key < $1.key })
    where leaves.contains(splitLeaf(name).leaf) {
        throw .incompatible(
            path: file.path,
            reason: "'\(name)' holds scales of type \(type), which are not supported")
    }
}

/// The matrices of a checkpoint that other programs have quantised.
struct QuantizedMatrices {
    /// The matrices by the names of their codes.
    private(set) var byCodes: [String: QuantizedMatrix] = [:]
    /// The names of scales and other tensors that belong to such a matrix.
    private(set) var companions: Set<String> = []

    var isEmpty: Bool { byCodes.isEmpty && companions.isEmpty }

    /// Reads headers only, and ComfyUI's small texts.
    /// - Throws: `.incompatible` for an unsupported format, naming its layer.
    init(of file: any Checkpoint) throws(CheckpointError) {
        try refuseUnreadScales(of: file)
        var formats = try Self.formats(inHeaderOf: file)
        for name in file.names {
            let (module, leaf) = splitLeaf(name)
            if let kind = QuantizedMatrix.foreign[leaf] { throw Self.unread(kind, module, file) }
            if QuantizedMatrix.companions.contains(leaf) { companions.insert(name) }
            if leaf == "comfy_quant" {
                let text = try file.require(name).withBytes { Array($0) }
                guard let value = JSONValue(parsing: text) else {
                    throw .malformed(path: file.path, reason: "'\(name)' is not JSON")
                }
                formats[module] = try Self.format(value, module, file)
            }
        }
        for name in file.names {
            let (module, leaf) = splitLeaf(name)
            for naming in QuantizedMatrix.namings where naming.codes == leaf {
                let scales = naming.scales.compactMap { file.info("\(module).\($0)") }
                guard let info = file.info(name), let scale = scales.first else { continue }
                guard byCodes[name] == nil, scales.count == 1 else {
                    throw .incompatible(
                        path: file.path, reason: "'\(name)' has two kinds of scales")
                }
                byCodes[name] = try matrix(info, scale, module, naming, formats[module], file)
                companions.insert(scale.name)
            }
            if leaf == "weight", byCodes[name] == nil, let info = file.info(name),
                formats[module].map({ $0 == .i8 || info.dtype != $0 }) ?? false
            {
                throw .incompatible(
                    path: file.path, reason: "'\(name)' is said to be quantised, but has no scales")
            }
        }
    }

    private func matrix(
        _ codes: TensorInfo, _ scale: TensorInfo, _ module: String,
        _ naming: QuantizedMatrix.Naming, _ format: DType?, _ file: any Checkpoint
    ) throws(CheckpointError) -> QuantizedMatrix {
        func fail(_ reason: String) -> CheckpointError {
            .incompatible(path: file.path, reason: reason)
        }
        // fp8 codes may be stored as bytes. Wider numbers are multiples of their scales.
        let type = codes.dtype == .u8 ? format ?? .u8 : codes.dtype
        guard type.isFloatingPoint || type == .i8 else {
            throw fail("'\(codes.name)' holds \(type) codes, which are not supported")
        }
        guard scale.dtype.isFloatingPoint, scale.dtype.byteCount > 1 else {
            throw fail(
                "'\(scale.name)' holds scales of type \(scale.dtype), which are not supported")
        }
        guard let grid = ScaleGrid(scale: scale.shape, matrix: codes.shape) else {
            throw fail(
                "'\(codes.name)' \(codes.shape) does not fit its scales \(scale.shape) "
                    + "('\(scale.name)')")
        }
        return QuantizedMatrix(
            codes: codes, scale: scale, type: type, grid: grid,
            name: naming.plain.map { "\(module).\($0)" } ?? module, factor: naming.factor)
    }

    private static func unread(
        _ kind: String, _ module: String, _ file: any Checkpoint
    ) -> CheckpointError {
        .incompatible(
            path: file.path,
            reason: "'\(module)' is quantised in a way that is not supported: \(kind)")
    }

    /// {"format": "float8_e4m3fn", …}
    private static func format(
        _ value: JSONValue, _ module: String, _ file: any Checkpoint
    ) throws(CheckpointError) -> DType {
        let name = value["format"]?.text ?? value.text ?? "nothing that is named"
        guard let dtype = QuantizedMatrix.formats[name] else { throw unread(name, module, file) }
        if value["convrot"]?.bool == true {
            throw unread("\(name) of rotated weights", module, file)
        }
        return dtype
    }

    /// ComfyUI's `_quantization_metadata`: {"layers": {name: {"format": …}}}
    private static func formats(
        inHeaderOf file: any Checkpoint
    ) throws(CheckpointError) -> [String: DType] {
        guard let text = file.metadata["_quantization_metadata"] else { return [:] }
        guard case .object(let layers)? = JSONValue(parsing: Array(text.utf8))?["layers"] else {
            throw .malformed(
                path: file.path, reason: "_quantization_metadata in its header names no layers")
        }
        var formats: [String: DType] = [:]
        for (layer, value) in layers {
            let module = UnwrappedName(layer).name
            guard file.info(module + ".weight") != nil else { continue }
            formats[module] = try format(value, module, file)
        }
        return formats
    }
}
