// Layer and RMS norms with what is fused to them.

public import Tensors

/// How the rows of a matrix are spread over threads: a block a row, the row in registers.
struct RowPlan: Hashable {
    /// Elements of one access.
    let vector: Int
    /// Accesses of one thread.
    let count: Int
    let threads: Int

    /// The most threads that the kernels are compiled for.
    static let mostThreads = 512
    /// Instantiated accesses a thread, for whole and for single elements.
    static let vectorCounts = [1, 2, 4]
    static let scalarCounts = [16]

    /// - Parameters:
    ///   - aligned: whether every row starts at a multiple of 16 bytes.
    ///   - narrow: elements of an access where rows are not aligned.
    init(columns: Int, dtype: DType, aligned: Bool, narrow: Int = 1) {
        let vector = aligned ? 16 / dtype.byteCount : narrow
        let vectors = (columns + vector - 1) / vector
        let counts = aligned ? Self.vectorCounts : Self.scalarCounts
        // Few accesses a thread keep many in flight; few threads a row keep the reductions cheap.
        let wanted = aligned ? 256 : Self.mostThreads
        let count =
            counts.first { vectors <= $0 * wanted }
            ?? counts.first { vectors <= $0 * Self.mostThreads }
        guard let count else {
            programmingError("rows of \(columns) \(dtype) elements are too long for the norms")
        }
        self.vector = vector
        self.count = count
        threads = ((vectors + count - 1) / count + 31) / 32 * 32
    }

    /// All plans for `dtype`, as template arguments.
    static func instances(_ dtype: DType, narrow: Int = 1) -> [String] {
        vectorCounts.map { "\(16 / dtype.byteCount), \($0)" }
            + scalarCounts.map { "\(narrow), \($0)" }
    }

    var arguments: String { "\(vector), \(count)" }
}

enum Normalization {
    private static let types: [DType] = [.bf16, .f32]
    private static let file = "normalization.cu"

    static let layerNorm = KernelUnit(
        file,
        kernels: types.flatMap { type in
            let t = CUDABackend.typeName(type)
            // bf16 rows may become f32 ones: the head's.
            let results = type == .bf16 ? ["bf16", "float"] : ["float"]
            return RowPlan.instances(type).flatMap { plan in
                results.map { "layer_norm<\(t), \($0), \(plan)>" }
            }
        })
    static let rmsNorm = KernelUnit(
        file,
        kernels: types.flatMap { type in
            let t = CUDABackend.typeName(type)
            return RowPlan.instances(type).map { "rms_norm<\(t), \($0)>" }
                + RowPlan.instances(type, narrow: 2).map { "rms_norm_rope<\(t), \($0)>" }
        })
    static let quantized = KernelUnit(
        file,
        kernels: types.flatMap { type in
            let t = CUDABackend.typeName(type)
            let rows = RowPlan.instances(type).flatMap { plan in
                [
                    "layer_norm_fp8<\(t), \(plan)>", "layer_statistics_of_rows<\(t), \(plan)>",
                    "rms_statistics_of_rows<\(t), \(plan)>",
                ]
            }
            return rows
                + [8, 1].flatMap { vector in
                    ["Affine", "Gain"].map { "norm_int8<\(t), \($0), \(vector)>" }
                }
        })

    static let units = [layerNorm, rmsNorm, quantized]

    /// The original's fast layer norm counts the lanes up to the next power of two as zeros.
    static func padding(_ columns: Int, _ kind: NormKind) -> Float {
        guard kind == .reference, columns > 1 else { return 0 }
        return Float(1 << (Int.bitWidth - (columns - 1).leadingZeroBitCount) - columns)
    }
}

/// `Affine` of normalization.cu.
private struct Affine: BitwiseCopyable {
    var weight, bias: DevicePointer
    var weightOffset: Float
    var rounds: Int32
}

/// `Gain` of normalization.cu: C++ pads the inner struct to 16 bytes.
private struct Gain: BitwiseCopyable {
    var weight: DevicePointer
    var isBF16: Int32
    var padding: Int32 = 0
    var rounds: Int32
}

extension CUDABackend {
    public func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor {
        ensure(
            scale.shape.count == x.shape.columns && shift.shape.count == x.shape.columns,
            "modulatedLayerNorm: x \(x.shape), shift \(shift.shape), scale \(scale.shape)")
        return layerNorm(
            "modulatedLayerNorm", x, weight: scale, bias: shift, weightOffset: 1, rounds: true,
            epsilon, kind, format, dtype ?? x.dtype)
    }

    public func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor {
        for vector in [weight, bias] {
            ensure(
                vector == nil || vector!.shape.count == x.shape.columns,
                "layerNorm: x \(x.shape), weight or bias \(vector!.shape)")
        }
        return layerNorm(
            "layerNorm", x, weight: weight, bias: bias, weightOffset: 0, rounds: false, epsilon,
            kind, format, x.dtype)
    }

    private func layerNorm(
        _ operation: String, _ x: Tensor, weight: Tensor?, bias: Tensor?, weightOffset: Float,
        rounds: Bool, _ epsilon: Float, _ kind: NormKind, _ format: ActivationFormat,
        _ dtype: DType
    ) -> Tensor {
        requireActivations(x, operation)
        ensure(
            dtype == x.dtype || format == .plain && dtype == .f32,
            "\(operation): \(format) of \(x.dtype) rows as \(dtype)")
        let weight = weight.map { converted($0, to: .f32) }
        let bias = bias.map { converted($0, to: .f32) }
        let columns = x.shape.columns
        let plan = RowPlan(
            columns: columns, dtype: x.dtype,
            aligned: x.hasAlignedRows && columns % 8 == 0
                && [weight, bias].allSatisfy { $0 == nil || $0!.byteOffset % 16 == 0 })
        let affine = Affine(
            weight: weight?.pointer ?? .null, bias: bias?.pointer ?? .null,
            weightOffset: weight == nil ? 0 : weightOffset, rounds: rounds ? 1 : 0)
        let type = Self.typeName(x.dtype)
        let padding = Normalization.padding(columns, kind)
        let shape = LaunchShape(grid: Extents(x.shape.rows), block: Extents(plan.threads))
        switch format {
        case .plain:
            let out = tensor(x.shape, dtype)
            let kernel: Kernel<DevicePointer, DevicePointer, Affine, Int32, Float, Float> =
                context.kernel(
                    "layer_norm<\(type), \(Self.typeName(dtype)), \(plan.arguments)>",
                    of: Normalization.layerNorm)
            kernel(shape, out.pointer, x.pointer, affine, Int32(columns), epsilon, padding)
            return out
        case .fp8Rows:
            let scales = storage(byteCount: x.shape.rows * 4)
            let out = tensor(x.shape, .f8e4m3, scales: scales)
            let kernel:
                Kernel<DevicePointer, DevicePointer, DevicePointer, Affine, Int32, Float, Float> =
                    context.kernel(
                        "layer_norm_fp8<\(type), \(plan.arguments)>",
                        of: Normalization.quantized)
            kernel(
                shape, out.pointer, scales.location, x.pointer, affine, Int32(columns), epsilon,
                padding)
            return out
        case .int8Blocks:
            let statistics = storage(byteCount: x.shape.rows * 8)
            let kernel: Kernel<DevicePointer, DevicePointer, Int32, Float, Float> =
                context.kernel(
                    "layer_statistics_of_rows<\(type), \(plan.arguments)>",
                    of: Normalization.quantized)
            kernel(shape, statistics.location, x.pointer, Int32(columns), epsilon, padding)
            return normInt8(x, statistics, affine, "Affine", plan)
        }
    }

    public func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        let (plan, gain) = rmsPlan("rmsNorm", x, weight, kind)
        let columns = x.shape.columns
        let type = Self.typeName(x.dtype)
        let shape = LaunchShape(grid: Extents(x.shape.rows), block: Extents(plan.threads))
        if format == .int8Blocks {
            let statistics = storage(byteCount: x.shape.rows * 8)
            let kernel: Kernel<DevicePointer, DevicePointer, Int32, Float> = context.kernel(
                "rms_statistics_of_rows<\(type), \(plan.arguments)>", of: Normalization.quantized)
            kernel(shape, statistics.location, x.pointer, Int32(columns), epsilon)
            return normInt8(x, statistics, gain, "Gain", plan)
        }
        let out = tensor(x.shape, x.dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, Gain, Int32, Float> = context.kernel(
            "rms_norm<\(type), \(plan.arguments)>", of: Normalization.rmsNorm)
        kernel(shape, out.pointer, x.pointer, gain, Int32(columns), epsilon)
        return format == .plain ? out : quantize(out, to: format)
    }

    public func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor {
        let columns = x.shape.columns
        let half = rope.cosine.shape.columns
        ensure(
            2 * half * heads == columns && rope.cosine.shape.rows == x.shape.rows
                && rope.sine.shape == rope.cosine.shape && rope.cosine.dtype == .f32,
            "rmsNormRope: x \(x.shape), \(heads) heads, rope \(rope.cosine.shape)")
        let (plan, gain) = rmsPlan("rmsNormRope", x, weight, kind, narrow: 2)
        let out = tensor([x.shape.rows, heads, 2 * half], x.dtype)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, Gain, DevicePointer, DevicePointer, Int32, Int32,
                Float
            > = context.kernel(
                "rms_norm_rope<\(Self.typeName(x.dtype)), \(plan.arguments)>",
                of: Normalization.rmsNorm)
        kernel(
            LaunchShape(grid: Extents(x.shape.rows), block: Extents(plan.threads)), out.pointer,
            x.pointer, gain, rope.cosine.pointer, rope.sine.pointer, Int32(columns), Int32(half),
            epsilon)
        return out
    }

    private func rmsPlan(
        _ operation: String, _ x: Tensor, _ weight: Tensor, _ kind: NormKind, narrow: Int = 1
    ) -> (RowPlan, Gain) {
        requireActivations(x, operation)
        ensure(
            weight.shape.count == x.shape.columns
                && (weight.dtype == .f32 || weight.dtype == .bf16),
            "\(operation): x \(x.shape), weight \(weight.shape) \(weight.dtype)")
        let plan = RowPlan(
            columns: x.shape.columns, dtype: x.dtype,
            aligned: x.hasAlignedRows && x.shape.columns % 8 == 0 && weight.byteOffset % 16 == 0,
            narrow: narrow)
        let gain = Gain(
            weight: weight.pointer, isBF16: weight.dtype == .bf16 ? 1 : 0,
            rounds: kind == .exact ? 1 : 0)
        return (plan, gain)
    }

    /// The second of the two kernels: normalise, round, find the largest of each block, quantise.
    private func normInt8<Map: BitwiseCopyable>(
        _ x: Tensor, _ statistics: DeviceStorage, _ map: Map, _ mapName: String, _ plan: RowPlan
    ) -> Tensor {
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let across = (columns + 127) / 128
        let down = (rows + 127) / 128
        let scales = storage(byteCount: across * down * 4)
        let out = tensor(x.shape, .i8, scales: scales)
        let vector = plan.vector >= 4 ? 8 : 1
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Map, Int32, Int32
            > = context.kernel(
                "norm_int8<\(Self.typeName(x.dtype)), \(mapName), \(vector)>",
                of: Normalization.quantized)
        kernel(
            LaunchShape(grid: Extents(across, down), block: Extents(vector > 1 ? 256 : 1024)),
            out.pointer, scales.location, x.pointer, statistics.location, map, Int32(rows),
            Int32(columns))
        return out
    }

    /// Activations are bf16 or f32 here.
    func requireActivations(_ x: Tensor, _ operation: String) {
        ensure(
            x.dtype == .bf16 || x.dtype == .f32,
            "\(operation): bf16 or f32 activations expected, x is \(x.shape) \(x.dtype)")
    }
}
