// Layer norms, RMS norms, and what is fused with them.

import Ground
import Tensors

/// How the rows of a matrix are distributed over threads: one block or one warp holds a row in registers.
struct RowPlan: Hashable {
    let dtype: DType
    /// Elements per access.
    let vector: Int
    /// Accesses per thread, if a block holds the row.
    let count: Int
    /// Threads per block, if a block holds the row.
    let threads: Int
    /// Whether a warp holds the row. It sums in the same order as `threads` threads would.
    let inWarp: Bool

    /// The most threads per block that the kernels are compiled for.
    static let mostThreads = 512
    /// The numbers of accesses per thread that the kernels are compiled for, with vectors and with single elements.
    static let vectorCounts = [1, 2, 4]
    static let scalarCounts = [16]
    /// Lengths of bf16 rows that a warp can hold: the widths of the models.
    static let warpColumns = [1536, 5120]
    /// Rows per block, if a warp holds a row: `WarpRow::kThreads` / 32.
    static let warpsPerBlock = 4

    /// - Parameters:
    ///   - aligned: whether every row starts at a multiple of 16 bytes.
    ///   - narrow: elements per access if rows are not aligned.
    ///   - warps: whether a warp may hold a row.
    init(columns: Int, dtype: DType, aligned: Bool, narrow: Int = 1, warps: Bool = true) {
        let vector = aligned ? 16 / dtype.byteCount : narrow
        let vectors = ceilDivide(columns, vector)
        let counts = aligned ? Self.vectorCounts : Self.scalarCounts
        // Few accesses per thread keep many in flight; few threads per row keep the reductions cheap.
        let wanted = aligned ? 256 : Self.mostThreads
        let count =
            counts.first { vectors <= $0 * wanted }
            ?? counts.first { vectors <= $0 * Self.mostThreads }
        guard let count else {
            programmingError("rows of \(columns) \(dtype) elements are too long for the norms")
        }
        self.dtype = dtype
        self.vector = vector
        self.count = count
        threads = roundUp(ceilDivide(vectors, count), to: 32)
        inWarp = warps && aligned && dtype == .bf16 && Self.warpColumns.contains(columns)
    }

    /// The type of the row in the kernels, as a template argument.
    var row: String {
        inWarp
            ? "WarpRow<\(count), \(threads / 32)>"
            : "BlockRow<\(CUDABackend.typeName(dtype)), \(vector), \(count)>"
    }

    /// The configuration of a launch for this many rows.
    func shape(_ rows: Int) -> LaunchShape {
        inWarp
            ? LaunchShape(
                grid: Extents(ceilDivide(rows, Self.warpsPerBlock)),
                block: Extents(32 * Self.warpsPerBlock))
            : LaunchShape(grid: Extents(rows), block: Extents(threads))
    }

    /// The types of all rows of `dtype` that a block can hold.
    static func blockRows(_ dtype: DType, narrow: Int = 1) -> [String] {
        let t = CUDABackend.typeName(dtype)
        return vectorCounts.map { "BlockRow<\(t), \(16 / dtype.byteCount), \($0)>" }
            + scalarCounts.map { "BlockRow<\(t), \(narrow), \($0)>" }
    }

    /// The types of all rows of `dtype` that a warp can hold.
    static func warpRows(_ dtype: DType) -> [String] {
        dtype == .bf16
            ? warpColumns.map { RowPlan(columns: $0, dtype: dtype, aligned: true).row } : []
    }
}

enum Normalization {
    private static let types: [DType] = [.bf16, .f32]
    private static let weights: [DType] = [.bf16, .f32]
    private static let file = "normalization.cu"

    static let layerNorm = KernelUnit(
        file,
        kernels: types.flatMap { type in
            // bf16 rows can have f32 results, as in the transformer's head.
            let results = type == .bf16 ? ["bf16", "float"] : ["float"]
            return (RowPlan.blockRows(type) + RowPlan.warpRows(type)).flatMap { row in
                results.map { "layer_norm<\($0), \(row)>" }
            }
        })
    static let rmsNorm = KernelUnit(
        file,
        kernels: types.flatMap { type in
            weights.flatMap { weight in
                let w = CUDABackend.typeName(weight)
                let warps = RowPlan.warpRows(type)
                return (RowPlan.blockRows(type) + warps).map { "rms_norm<\(w), \($0)>" }
                    + RowPlan.blockRows(type, narrow: 2).map {
                        "rms_norm_rope<\(w), false, \($0)>"
                    } + warps.map { "rms_norm_rope<\(w), true, \($0)>" }
            }
        })
    static let quantized = KernelUnit(
        file,
        kernels: types.flatMap { type in
            let rows = RowPlan.blockRows(type)
            let statistics = (rows + RowPlan.warpRows(type)).flatMap {
                ["layer_statistics_of_rows<\($0)>", "rms_statistics_of_rows<\($0)>"]
            }
            let maps = ["Affine"] + weights.map { "Gain<\(CUDABackend.typeName($0))>" }
            return rows.map { "layer_norm_fp8<\($0)>" } + statistics
                + [8, 1].flatMap { vector in
                    maps.map { "norm_int8<\(CUDABackend.typeName(type)), \($0), \(vector)>" }
                }
        })

    static let units = [layerNorm, rmsNorm, quantized]

    /// The original's fast layer norm pads rows with zeros to the next power of two, and counts these.
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

/// `Gain` of normalization.cu.
private struct Gain: BitwiseCopyable {
    var weight: DevicePointer
    var rounds: Int32
    var padding: Int32 = 0
}

extension CUDABackend {
    func modulatedLayerNorm(_ o: Operation.ModulatedLayerNorm) -> Tensor {
        layerNorm(
            "modulatedLayerNorm", o.x, weight: o.scale, bias: o.shift, weightOffset: 1,
            rounds: true, o.epsilon, o.kind, o.format, o.resultType)
    }

    func layerNorm(_ o: Operation.LayerNorm) -> Tensor {
        layerNorm(
            "layerNorm", o.x, weight: o.weight, bias: o.bias, weightOffset: 0, rounds: false,
            o.epsilon, o.kind, o.format, o.x.dtype)
    }

    private func layerNorm(
        _ operation: String, _ x: Tensor, weight: Tensor?, bias: Tensor?, weightOffset: Float,
        rounds: Bool, _ epsilon: Float, _ kind: NormKind, _ format: LinearFormat,
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
                && [weight, bias].allSatisfy { $0 == nil || $0!.byteOffset % 16 == 0 },
            warps: format != .fp8Rows)
        let affine = Affine(
            weight: weight?.pointer ?? .null, bias: bias?.pointer ?? .null,
            weightOffset: weight == nil ? 0 : weightOffset, rounds: rounds ? 1 : 0)
        let padding = Normalization.padding(columns, kind)
        let rows = x.shape.rows
        let shape = plan.shape(rows)
        switch format {
        case .plain:
            let out = tensor(x.shape, dtype)
            let kernel: Kernel<DevicePointer, DevicePointer, Affine, Int32, Int32, Float, Float> =
                context.kernel(
                    "layer_norm<\(Self.typeName(dtype)), \(plan.row)>",
                    of: Normalization.layerNorm)
            kernel(
                shape, out.pointer, x.pointer, affine, Int32(rows), Int32(columns), epsilon,
                padding)
            return out
        case .fp8Rows:
            let scales = storage(byteCount: x.shape.rows * 4)
            let out = tensor(x.shape, .f8e4m3, scales: scales)
            let kernel:
                Kernel<DevicePointer, DevicePointer, DevicePointer, Affine, Int32, Float, Float> =
                    context.kernel("layer_norm_fp8<\(plan.row)>", of: Normalization.quantized)
            kernel(
                shape, out.pointer, scales.location, x.pointer, affine, Int32(columns), epsilon,
                padding)
            return out
        case .int8Blocks:
            let statistics = storage(byteCount: x.shape.rows * 8)
            let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Float, Float> =
                context.kernel(
                    "layer_statistics_of_rows<\(plan.row)>", of: Normalization.quantized)
            kernel(
                shape, statistics.location, x.pointer, Int32(rows), Int32(columns), epsilon,
                padding)
            return normInt8(x, statistics, affine, "Affine", plan)
        }
    }

    func rmsNorm(_ o: Operation.RMSNorm) -> Tensor {
        let (x, weight, epsilon, format) = (o.x, o.weight, o.epsilon, o.format)
        let (plan, gain) = rmsPlan("rmsNorm", x, weight, o.kind)
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let shape = plan.shape(rows)
        let w = Self.typeName(weight.dtype)
        if format == .int8Blocks {
            let statistics = storage(byteCount: rows * 8)
            let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Float> = context.kernel(
                "rms_statistics_of_rows<\(plan.row)>", of: Normalization.quantized)
            kernel(
                shape, statistics.location, x.pointer, Int32(rows), Int32(columns), epsilon)
            return normInt8(x, statistics, gain, "Gain<\(w)>", plan)
        }
        let out = tensor(x.shape, x.dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, Gain, Int32, Int32, Float> =
            context.kernel("rms_norm<\(w), \(plan.row)>", of: Normalization.rmsNorm)
        kernel(shape, out.pointer, x.pointer, gain, Int32(rows), Int32(columns), epsilon)
        return quantize(out, to: format)
    }

    func rmsNormRope(_ o: Operation.RMSNormRope) -> Tensor {
        let (x, weight, rope, heads) = (o.x, o.weight, o.rope, o.heads)
        let columns = x.shape.columns
        let half = rope.cosine.shape.columns
        ensure(rope.cosine.dtype == .f32, "rmsNormRope: f32 angles expected, \(rope.cosine)")
        // A vector of x must lie within one head, and a vector of the table must start at a multiple of 16 bytes.
        let tables = [rope.cosine, rope.sine].allSatisfy { $0.byteOffset % 16 == 0 }
        let (plan, gain) = rmsPlan(
            "rmsNormRope", x, weight, o.kind, aligned: half % 4 == 0 && tables, narrow: 2,
            warps: 128 % half == 0)
        let out = tensor([x.shape.rows, heads, 2 * half], x.dtype)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, Gain, DevicePointer, DevicePointer, Int32, Int32,
                Int32, Float
            > = context.kernel(
                "rms_norm_rope<\(Self.typeName(weight.dtype)), \(plan.inWarp), \(plan.row)>",
                of: Normalization.rmsNorm)
        kernel(
            plan.shape(x.shape.rows), out.pointer, x.pointer, gain, rope.cosine.pointer,
            rope.sine.pointer, Int32(x.shape.rows), Int32(columns), Int32(half), o.epsilon)
        return out
    }

    private func rmsPlan(
        _ operation: String, _ x: Tensor, _ weight: Tensor, _ kind: NormKind,
        aligned: Bool = true, narrow: Int = 1, warps: Bool = true
    ) -> (RowPlan, Gain) {
        requireActivations(x, operation)
        ensure(
            weight.dtype == .f32 || weight.dtype == .bf16,
            "\(operation): an f32 or bf16 weight expected, \(weight)")
        let plan = RowPlan(
            columns: x.shape.columns, dtype: x.dtype,
            aligned: aligned && x.hasAlignedRows && x.shape.columns % 8 == 0
                && weight.byteOffset % 16 == 0, narrow: narrow, warps: warps)
        let gain = Gain(weight: weight.pointer, rounds: kind == .exact ? 1 : 0)
        return (plan, gain)
    }

    /// Launches the second of two kernels, which normalises, rounds, finds the largest element of each block and
    /// quantises.
    private func normInt8<Map: BitwiseCopyable>(
        _ x: Tensor, _ statistics: DeviceStorage, _ map: Map, _ mapName: String, _ plan: RowPlan
    ) -> Tensor {
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let across = ceilDivide(columns, 128)
        let down = ceilDivide(rows, 128)
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

    /// Stops the program if x is neither bf16 nor f32.
    func requireActivations(_ x: Tensor, _ operation: String) {
        ensure(
            x.dtype == .bf16 || x.dtype == .f32,
            "\(operation): bf16 or f32 activations expected, x is \(x.shape) \(x.dtype)")
    }
}
