// Sparse-linear attention (SLA, arXiv 2509.24006): the block-sparse part in the requested arithmetic, plus the linear
// branch over all keys.

import Ground
import Tensors

enum SparseLinearAttention {
    static let exact = KernelUnit(
        "linear_branch_exact.cu",
        kernels: [64, 128].flatMap { dim in
            ["float", "bf16"].map { "linear_branch_exact_sums<\($0), \(dim)>" }
                + ["float", "bf16"].flatMap { type in
                    ["float", "bf16"].map { "linear_branch_exact_project<\(type), \($0), \(dim)>" }
                }
        } + ["linear_branch_exact_join"])
    static let rounded = KernelUnit(
        "linear_branch.cu",
        kernels: [64, 128].flatMap {
            ["linear_branch_sums<\($0)>", "linear_branch_project<\($0)>"]
        } + ["linear_branch_join"])
    static let hopper = KernelUnit(
        "linear_branch_sm90.cu", for: .hopper,
        kernels: [64, 128].flatMap {
            ["linear_branch_sums_sm90<\($0)>", "linear_branch_project_sm90<\($0), false>"]
        } + ["linear_branch_project_sm90<128, true>"])
    /// Shared memory of its projection: both matrices; two tiles of q for each of four warpgroups; the sums and the bias;
    /// denominators, maxima, and sums of eight pairs of rows, for each warpgroup.
    static func hopperProjectBytes(_ dim: Int) -> Int {
        2 * dim * dim * 2 + 8 * 64 * dim * 2 + 2 * dim * 4 + 4 * (64 + 4 + 8 * dim) * 4
    }

    static let units = [exact, rounded, hopper]

    /// In so many pieces sums over the keys of a head are taken, on every card and however many heads a device has: the
    /// same sums everywhere. With 12 heads two waves of blocks fill a Hopper card.
    static let chunks = 22
}

/// The sums over k and v that the linear branch needs, and the statistics that quantisation needs.
struct LinearBranch {
    /// bf16 [heads, dim, dim] and [heads, dim]
    let kv, featureSum: Tensor
    /// bf16 [heads, dim]
    let keyMean: Tensor
    /// The largest magnitude of each channel of v. f32 [heads, dim]
    let valueMaximum: Tensor
}

/// `QuantizedRows` of linear_branch_sm90.cu.
private struct QuantizedRows: BitwiseCopyable {
    var codes, scales, pooled: DevicePointer
}

extension CUDABackend {
    func sparseLinearAttention(_ o: Operation.SparseLinearAttention) -> Tensor {
        let (q, k, v, bias, spec) = (o.q, o.k, o.v, o.bias, o.spec)
        requireHeads(q, "sparseLinearAttention")
        let dim = q.shape[2]
        ensure(
            dim == 64 || dim == 128,
            "sparseLinearAttention: q \(q.shape); headDim must be 64 or 128")
        guard case .dense(let weight) = o.projection else {
            programmingError("sparseLinearAttention: the projection must be dense")
        }
        ensure(
            bias?.dtype ?? .f32 == .f32,
            "sparseLinearAttention: an f32 bias expected, \(bias!.dtype)")
        // Hopper's 8-bit kernel and training have blocks of 64 queries, but int8 scales belong to 128.
        let quantizes =
            spec.arithmetic != .exact && spec.arithmetic != .sage(.sm90)
            && spec.queryBlock % 128 == 0
        guard let out = attended(q, o.format), o.format == .plain || quantizes else {
            return o.composed(on: self)
        }
        if spec.arithmetic == .exact {
            exactSparseAttention(q, k, v, weight, bias, spec, into: out)
            return out
        }
        // As in the original, the block map is computed in the dtype of the inputs, and everything else in bf16.
        let indices = q.dtype == .bf16 ? nil : blockMap(q, k, spec).indices
        let (q16, k16, v16) = (
            converted(q, to: .bf16), converted(k, to: .bf16), converted(v, to: .bf16)
        )
        let branch = linearBranch(k16, v16)
        // The projection's tiles are the blocks of queries here, so the same kernel quantises q.
        let rows =
            spec.arithmetic == .sage(.sm90) && dim == 128 ? sageRows(q16, spec.queryBlock) : nil
        let linear = projected(q16, branch, converted(weight, to: .bf16), bias, quantizing: rows)
        let half = q.dtype == .bf16 ? out : tensor(q.shape, .bf16)
        switch spec.arithmetic {
        case .sage(let architecture):
            sageAttention(
                q16, k16, v16, rows, branch, linear, indices, spec, architecture, into: half)
        case .bf16, .exact:
            bf16SparseAttention(q16, k16, v16, branch, linear, indices, spec, into: half)
        }
        return q.dtype == .bf16 ? half : converted(half, to: q.dtype)
    }

    // MARK: In bf16

    private func bf16SparseAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ branch: LinearBranch, _ linear: Tensor,
        _ indices: Tensor?, _ spec: SparseAttention, into out: Tensor
    ) {
        let dim = q.shape[2]
        ensure(
            spec.queryBlock % 64 == 0 && spec.keyBlock % 64 == 0,
            "sparseLinearAttention: blocks of \(spec.queryBlock) x \(spec.keyBlock), "
                + "multiples of 64 wanted")
        let indices =
            indices
            ?? {
                let (pooledQ, pooledK) = pooled(q, k, mean: branch.keyMean, spec)
                return selectedBlocks(pooledQ, pooledK, spec)
            }()
        var arguments = AttentionArguments(
            q, k, v, out: out, scale: 1 / Float(dim).squareRoot())
        arguments.list(indices, spec)
        arguments.addend = linear.pointer
        if spec.queryBlock % 128 == 0 {
            context.attention(arguments, .bf16, .listed)
        } else {
            context.mmaAttention(arguments, .listed, tiles: Attention.narrowTiles)
        }
    }

    /// Computes the sums over the keys. k, v: bf16 [L, heads, dim]
    func linearBranch(_ k: Tensor, _ v: Tensor) -> LinearBranch {
        let (keys, heads, dim) = (k.shape[0], k.shape[1], k.shape[2])
        let unit = SparseLinearAttention.rounded
        let hopper = context.kernelArchitecture == .hopper
        let chunks = min(ceilDivide(keys, 64), SparseLinearAttention.chunks)
        let chunk = ceilDivide(ceilDivide(keys, chunks), 64) * 64
        let parts = storage(byteCount: heads * chunks * dim * dim * 4)
        let statistics = storage(byteCount: heads * chunks * 3 * dim * 4)
        let sums:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32
            > =
                hopper
                ? context.kernel(
                    "linear_branch_sums_sm90<\(dim)>", of: SparseLinearAttention.hopper)
                : context.kernel("linear_branch_sums<\(dim)>", of: unit)
        let tiles = hopper ? 8 : 4  // of 64 rows, two a stage
        sums(
            LaunchShape(
                grid: Extents(chunks, heads), block: hopper ? 512 : 256,
                sharedBytes: tiles * 64 * dim * 2),
            k.pointer, v.pointer, parts.location, statistics.location, Int32(keys), Int32(heads),
            Int32(chunk))
        let result = LinearBranch(
            kv: tensor([heads, dim, dim], .bf16), featureSum: tensor([heads, dim], .bf16),
            keyMean: tensor([heads, dim], .bf16), valueMaximum: tensor([heads, dim], .f32))
        let join:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, Int32, Int32
            > = context.kernel("linear_branch_join", of: unit)
        join(
            LaunchShape(grid: Extents(dim + 1, heads), block: Extents(dim)),
            parts.location, statistics.location, result.kv.pointer, result.featureSum.pointer,
            result.keyMean.pointer, result.valueMaximum.pointer, Int32(chunks), Int32(keys))
        return result
    }

    /// The result of the linear branch. q: bf16 [L, heads, dim] → same
    /// - Parameter rows: where Hopper's kernel also writes quantised q; for blocks of 64 rows and heads of 128.
    func projected(
        _ q: Tensor, _ branch: LinearBranch, _ weight: Tensor, _ bias: Tensor?,
        quantizing rows: SageRows? = nil
    ) -> Tensor {
        let (queries, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let out = tensor(q.shape, .bf16)
        func chunks(ofRows rows: Int, blocks: Int) -> (count: Int, rows: Int) {
            let count = min(ceilDivide(queries, rows), max(1, blocks / heads))
            return (count, ceilDivide(ceilDivide(queries, count), rows) * rows)
        }
        if context.kernelArchitecture == .hopper {
            let chunk = chunks(ofRows: 64, blocks: context.properties.multiprocessors)
            let quantized = QuantizedRows(
                codes: rows?.codes.pointer ?? .null, scales: rows?.scales.pointer ?? .null,
                pooled: rows?.pooled.pointer ?? .null)
            let project:
                Kernel<
                    DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                    DevicePointer, QuantizedRows, Int32, Int32, Int32
                > = context.kernel(
                    "linear_branch_project_sm90<\(dim), \(rows != nil)>",
                    of: SparseLinearAttention.hopper)
            project(
                LaunchShape(
                    grid: Extents(chunk.count, heads), block: 512,
                    sharedBytes: SparseLinearAttention.hopperProjectBytes(dim)),
                q.pointer, branch.kv.pointer, branch.featureSum.pointer, weight.pointer,
                bias?.pointer ?? .null, out.pointer, quantized, Int32(queries), Int32(heads),
                Int32(chunk.rows))
            return out
        }
        let chunk = chunks(ofRows: 128, blocks: 264)
        let project:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, Int32, Int32, Int32
            > = context.kernel("linear_branch_project<\(dim)>", of: SparseLinearAttention.rounded)
        // Both matrices, a tile of q, the sums and 128 denominators.
        project(
            LaunchShape(
                grid: Extents(chunk.count, heads), block: 256,
                sharedBytes: 2 * dim * dim * 2 + 128 * dim * 2 + (dim + 128) * 4),
            q.pointer, branch.kv.pointer, branch.featureSum.pointer, weight.pointer,
            bias?.pointer ?? .null, out.pointer, Int32(queries), Int32(heads), Int32(chunk.rows))
        return out
    }

    // MARK: In exact arithmetic

    private func exactSparseAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ weight: Tensor, _ bias: Tensor?,
        _ spec: SparseAttention, into out: Tensor
    ) {
        let (length, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        ensure(
            spec.queryBlock % 32 == 0 && spec.keyBlock % 32 == 0,
            "sparseLinearAttention: blocks of \(spec.queryBlock) x \(spec.keyBlock), "
                + "multiples of 32 wanted")
        let unit = SparseLinearAttention.exact
        let type = Self.typeName(q.dtype)
        let map = blockMap(q, k, spec)

        let chunks = min(ceilDivide(length, 32), SparseLinearAttention.chunks)
        let chunk = ceilDivide(ceilDivide(length, chunks), 32) * 32
        let parts = storage(byteCount: heads * chunks * dim * dim * 4)
        let sumParts = storage(byteCount: heads * chunks * dim * 4)
        let sums:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32
            > = context.kernel("linear_branch_exact_sums<\(type), \(dim)>", of: unit)
        sums(
            LaunchShape(
                grid: Extents(chunks, heads), block: 256, sharedBytes: 2 * 32 * dim * 4),
            k.pointer, v.pointer, parts.location, sumParts.location, Int32(length), Int32(heads),
            Int32(chunk))
        let kv = storage(byteCount: heads * dim * dim * 4)
        let featureSum = storage(byteCount: heads * dim * 4)
        let join: Kernel<DevicePointer, DevicePointer, Int32, Int32> =
            context.kernel("linear_branch_exact_join", of: unit)
        for (from, to, size) in [(parts, kv, dim * dim), (sumParts, featureSum, dim)] {
            join(
                LaunchShape(grid: Extents(ceilDivide(size, 256), heads), block: 256),
                from.location, to.location, Int32(chunks), Int32(size))
        }
        let linear = storage(byteCount: q.shape.count * 4)
        let project:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, Int32, Int32
            > = context.kernel(
                "linear_branch_exact_project<\(type), \(Self.typeName(weight.dtype)), \(dim)>",
                of: unit)
        project(
            LaunchShape(
                grid: Extents(ceilDivide(length, 32), heads), block: 256,
                sharedBytes: 32 * (dim + 1) * 4),
            q.pointer, kv.location, featureSum.location, weight.pointer, bias?.pointer ?? .null,
            linear.location, Int32(length), Int32(heads))

        var arguments = AttentionArguments(
            q, k, v, out: out, scale: 1 / Float(dim).squareRoot())
        arguments.list(map.indices, spec)
        arguments.addend = linear.location
        context.simtAttention(arguments, q.dtype, .listed)
    }
}

extension AttentionArguments {
    /// Restricts attention to these blocks. i32 [heads, queryBlocks, selected]
    mutating func list(_ blocks: Tensor, _ spec: SparseAttention) {
        indices = blocks.pointer
        selected = Int32(blocks.shape[2])
        queryBlock = Int32(spec.queryBlock)
        keyBlock = Int32(spec.keyBlock)
    }
}
