// SageAttention's block-sparse kernels (SpargeAttn, arXiv 2502.18137), and the quantisation of their operands.

import Ground
import Tensors

enum Sage {
    private static let dims = [64, 128]

    static let prepare = KernelUnit(
        "sage_prepare.cu",
        kernels: dims.flatMap { dim in
            [64, 128].flatMap { rows in
                [true, false].map { "sage_quantize_rows<\(dim), \(rows), \($0)>" }
            } + ["sage_quantize_values<\(dim)>"]
        } + ["sage_halve_values", "sage_natural_rows", "sage_natural_values"])
    static let hopper = KernelUnit(
        "sage_sm90.cu", for: .hopper, kernels: dims.map { "sage_sm90<\($0)>" })

    static let halves = KernelUnit(
        "sage_mma.cu", kernels: dims.map { "sage_mma<\($0), Product::f16>" })
    static let eighths = KernelUnit(
        "sage_mma.cu", for: .fp8,
        kernels: dims.flatMap { dim in
            ["e4m3", "e4m3_f16"].map { "sage_mma<\(dim), Product::\($0)>" }
        })

    static let units = [prepare, hopper, halves, eighths]

    /// The cards that can compute in this arithmetic.
    static func family(of architecture: SageArchitecture) -> KernelFamily {
        switch architecture {
        case .sm80: halves.family
        case .sm89, .sm89Accumulate16: eighths.family
        case .sm90: hopper.family
        }
    }

    /// Bytes of shared memory of sage_sm90: two tiles of K, two of V, a query block, barriers.
    static func hopperBytes(_ dim: Int) -> Int { 4 * 128 * dim + 64 * dim + 9 * 8 }

    /// Bytes of shared memory of sage_mma: a query block, two tiles of K, and one of V in f16 or two in e4m3.
    static func mmaBytes(_ dim: Int) -> Int { (128 + 2 * 64) * 128 + 2 * 64 * dim }
}

/// `SageArguments` of sage.cuh.
private struct SageArguments: BitwiseCopyable {
    var out, addend, outScales, indices: DevicePointer
    var qScales, kScales, vScales: DevicePointer
    var q, k, v: DevicePointer
    var queries, keys, heads, queryBlocks, keyBlocks, selected: Int32
    var scale: Float
    var padding: Int32 = 0
}

/// Quantised q or k. Codes: int8 [heads, blocks * block, dim]; scales: f32 [heads, blocks]; block means: bf16 [heads,
/// blocks, dim]
struct SageRows {
    let codes, scales, pooled: Tensor
}

/// Quantised q, k and v, in the layout that the kernels read.
struct SageLayout {
    let q, k: SageRows
    /// e4m3 [heads, dim, paddedKeys] in the kernels' order, with scales f32 [heads, dim]; or f16 [L, heads, dim]
    let v: Tensor
    let vScales: Tensor?
}

extension CUDABackend {
    /// - Parameters:
    ///   - rows: quantised q; nil if q is still to be quantised.
    ///   - linear: the result of the linear branch, which is added to the rounded result. bf16 [L, heads, dim]
    ///   - indices: the selected blocks; nil if they are to be computed from the bf16 q and k.
    func sageAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ rows: SageRows?, _ branch: LinearBranch,
        _ linear: Tensor, _ indices: Tensor?, _ spec: SparseAttention,
        _ architecture: SageArchitecture, into out: Tensor
    ) {
        checkSageBlocks(spec, architecture)
        ensure(
            supports(.sage(architecture)),
            "sparseLinearAttention: \(name) cannot compute in the arithmetic of \(architecture.rawValue)"
        )
        let operands = sageLayout(q, k, v, rows, branch, spec, architecture)
        let indices = indices ?? selectedBlocks(operands.q.pooled, operands.k.pooled, spec)
        let (length, heads, dim) = (linear.shape[0], linear.shape[1], linear.shape[2])
        let arguments = SageArguments(
            out: out.pointer, addend: linear.pointer,
            outScales: out.scales == nil ? .null : out.scalesPointer, indices: indices.pointer,
            qScales: operands.q.scales.pointer, kScales: operands.k.scales.pointer,
            vScales: operands.vScales?.pointer ?? .null, q: operands.q.codes.pointer,
            k: operands.k.codes.pointer, v: operands.v.pointer, queries: Int32(length),
            keys: Int32(length), heads: Int32(heads),
            queryBlocks: Int32(operands.q.scales.shape[1]),
            keyBlocks: Int32(operands.k.scales.shape[1]), selected: Int32(indices.shape[2]),
            scale: log2e / Float(dim).squareRoot())
        switch architecture {
        case .sm90: hopperSage(arguments, operands, dim)
        case .sm80: mmaSage(arguments, dim, "f16", Sage.halves)
        case .sm89: mmaSage(arguments, dim, "e4m3", Sage.eighths)
        case .sm89Accumulate16: mmaSage(arguments, dim, "e4m3_f16", Sage.eighths)
        }
    }

    private func hopperSage(_ arguments: SageArguments, _ operands: SageLayout, _ dim: Int) {
        let heads = Int(arguments.heads)
        func rows(_ codes: Tensor, _ block: Int) -> TensorMap {
            context.tensorMap(
                .uint8, at: codes.pointer, extents: [dim, codes.shape[1], heads],
                box: [dim, block, 1], swizzle: dim == 128 ? .bytes128 : .bytes64)
        }
        let values = context.tensorMap(
            .uint8, at: operands.v.pointer, extents: [operands.v.shape[2], heads * dim],
            box: [128, dim])
        let kernel: Kernel<TensorMap, TensorMap, TensorMap, SageArguments> =
            context.kernel("sage_sm90<\(dim)>", of: Sage.hopper)
        kernel(
            LaunchShape(
                grid: Extents(Int(arguments.queryBlocks), heads), block: 128,
                sharedBytes: Sage.hopperBytes(dim)),
            rows(operands.q.codes, 64), rows(operands.k.codes, 128), values, arguments)
    }

    /// Launches the kernels for blocks of 128 x 64.
    private func mmaSage(
        _ arguments: SageArguments, _ dim: Int, _ product: String, _ unit: KernelUnit
    ) {
        let kernel: Kernel<SageArguments> =
            context.kernel("sage_mma<\(dim), Product::\(product)>", of: unit)
        kernel(
            LaunchShape(
                grid: Extents(Int(arguments.queryBlocks), Int(arguments.heads)), block: 128,
                sharedBytes: Sage.mmaBytes(dim)),
            arguments)
    }

    /// Uninitialised memory for quantised x. x: [L, heads, dim]
    func sageRows(_ x: Tensor, _ block: Int) -> SageRows {
        let (length, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        let blocks = ceilDivide(length, block)
        return SageRows(
            codes: tensor([heads, blocks * block, dim], .i8),
            scales: tensor([heads, blocks], .f32), pooled: tensor([heads, blocks, dim], .bf16))
    }

    /// Quantises x - mean to int8.
    private func quantizedRows(_ x: Tensor, _ mean: Tensor?, _ block: Int) -> SageRows {
        let (length, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        let rows = sageRows(x, block)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                Int32, Int32
            > = context.kernel(
                "sage_quantize_rows<\(dim), \(block), \(mean != nil)>", of: Sage.prepare)
        kernel(
            LaunchShape(
                grid: Extents(heads, ceilDivide(length, block)), block: 256,
                sharedBytes: 8 * (dim + 1) * 4),
            x.pointer, mean?.pointer ?? .null, rows.codes.pointer, rows.scales.pointer,
            rows.pooled.pointer, Int32(length), Int32(heads))
        return rows
    }

    /// - Parameter rows: quantised q; nil if q is still to be quantised.
    func sageLayout(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ rows: SageRows?, _ branch: LinearBranch,
        _ spec: SparseAttention, _ architecture: SageArchitecture
    ) -> SageLayout {
        let (length, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let queries = rows ?? quantizedRows(q, nil, spec.queryBlock)
        let keys = quantizedRows(k, branch.keyMean, spec.keyBlock)
        let values: Tensor
        var valueScales: Tensor?
        if architecture == .sm80 {
            values = tensor(v.shape, .f16)
            let kernel: Kernel<DevicePointer, DevicePointer, Int64> =
                context.kernel("sage_halve_values", of: Sage.prepare)
            kernel(
                .elements(v.shape.count, perThread: 4), v.pointer, values.pointer,
                Int64(v.shape.count))
        } else {
            let blocks = ceilDivide(length, 128)
            values = tensor([heads, dim, blocks * 128], .f8e4m3)
            let scales = tensor([heads, dim], .f32)
            let kernel:
                Kernel<
                    DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int32
                > = context.kernel("sage_quantize_values<\(dim)>", of: Sage.prepare)
            kernel(
                LaunchShape(
                    grid: Extents(heads, blocks), block: 256, sharedBytes: dim * (33 + 1) * 4),
                v.pointer, branch.valueMaximum.pointer, values.pointer, scales.pointer,
                Int32(length), Int32(heads))
            valueScales = scales
        }
        return SageLayout(q: queries, k: keys, v: values, vScales: valueScales)
    }

    private func checkSageBlocks(_ spec: SparseAttention, _ architecture: SageArchitecture) {
        let wide = architecture == .sm90
        ensure(
            spec.queryBlock == (wide ? 64 : 128) && spec.keyBlock == (wide ? 128 : 64),
            "SageAttention of \(architecture.rawValue): blocks of \(spec.queryBlock) x "
                + "\(spec.keyBlock)")
    }

    func sageOperands(_ o: Operation.SageOperands) -> SageOperands {
        requireHeads(o.q, "sageOperands")
        checkSageBlocks(o.spec, o.architecture)
        let q = converted(o.q, to: .bf16)
        let k = converted(o.k, to: .bf16)
        let v = converted(o.v, to: .bf16)
        let branch = linearBranch(k, v)
        let layout = sageLayout(q, k, v, nil, branch, o.spec, o.architecture)
        let (length, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        func natural(_ codes: Tensor, _ kernelName: String, _ dtype: DType, _ padded: Int) -> Tensor
        {
            let out = tensor(q.shape, dtype)
            let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32> =
                context.kernel(kernelName, of: Sage.prepare)
            kernel(
                .elements(q.shape.count), codes.pointer, out.pointer, Int32(length), Int32(heads),
                Int32(dim), Int32(padded))
            return out
        }
        return SageOperands(
            keyMean: branch.keyMean,
            queryCodes: natural(
                layout.q.codes, "sage_natural_rows", .i8, layout.q.codes.shape[1]),
            keyCodes: natural(
                layout.k.codes, "sage_natural_rows", .i8, layout.k.codes.shape[1]),
            queryScales: layout.q.scales, keyScales: layout.k.scales,
            valueCodes: layout.vScales == nil
                ? nil : natural(layout.v, "sage_natural_values", .f8e4m3, layout.v.shape[2]),
            valueScales: layout.vScales)
    }
}
