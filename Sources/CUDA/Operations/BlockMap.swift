// The block map of sparse-linear attention: pooling, scores, selection.

import Ground
import Tensors

enum BlockMaps {
    static let unit = KernelUnit(
        "block_map.cu",
        kernels: ["float", "bf16"].flatMap { type in
            ["column_sums", "column_mean", "block_pool", "block_scores", "block_select"].map {
                "\($0)<\(type)>"
            }
        } + [64, 128].map { "block_scores_mma<\($0)>" })

    /// Scores and lists in one kernel.
    static let lists = KernelUnit(
        "block_list.cu", kernels: [64, 128].map { "block_list<\($0)>" })

    static let units = [unit, lists]

    /// Query blocks of a block of threads of block_list.cu, and the most key blocks that it takes.
    static let listRows = 32
    static let mostKeyBlocks = 1280
    /// Elements from one row of its scores to the next: whole tiles, and against bank conflicts.
    static func listStride(keyBlocks: Int) -> Int { ceilDivide(keyBlocks, 64) * 64 + 2 }
    static func listBytes(dim: Int, keyBlocks: Int) -> Int {
        (listRows + 2 * 64) * dim * 2 + listRows * listStride(keyBlocks: keyBlocks) * 2
    }
}

extension CUDABackend {
    func blockMap(_ o: Operation.BlockMap) -> BlockMap {
        requireHeads(o.q, "blockMap")
        let (pooledQ, pooledK) = pooled(o.q, o.k, mean: keyMean(o.k), o.spec)
        let map = selectBlocks(pooledQ, pooledK, o.spec)
        // The lists come from the kernel that attention uses.
        return BlockMap(
            scores: map.scores, indices: blockLists(pooledQ, pooledK, o.spec) ?? map.indices)
    }

    /// The mean of k over the sequence, rounded to the dtype of k. k: [L, heads, dim] → [heads, dim]
    func keyMean(_ k: Tensor) -> Tensor {
        let (rows, heads, dim) = (k.shape[0], k.shape[1], k.shape[2])
        ensure(256 % dim == 0, "blockMap: headDim \(dim) does not divide 256")
        let type = Self.typeName(k.dtype)
        // The same sums however many heads a device has.
        let chunks = min(ceilDivide(rows, 64), 32)
        let chunk = ceilDivide(rows, chunks)
        let sums = storage(byteCount: heads * chunks * dim * 4)
        let mean = tensor([heads, dim], k.dtype)
        let columnSums: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32> =
            context.kernel("column_sums<\(type)>", of: BlockMaps.unit)
        columnSums(
            LaunchShape(grid: Extents(chunks, heads), block: 256, sharedBytes: 1024),
            k.pointer, sums.location, Int32(rows), Int32(heads), Int32(dim), Int32(chunk))
        let columnMean: Kernel<DevicePointer, DevicePointer, Int32, Int32> =
            context.kernel("column_mean<\(type)>", of: BlockMaps.unit)
        columnMean(
            LaunchShape(grid: Extents(heads), block: Extents(dim)),
            sums.location, mean.pointer, Int32(chunks), Int32(rows))
        return mean
    }

    /// The means of q and of k - mean over blocks. → [heads, blocks, dim] each
    func pooled(_ q: Tensor, _ k: Tensor, mean: Tensor, _ spec: SparseAttention) -> (
        q: Tensor, k: Tensor
    ) {
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32, Int32
            > = context.kernel("block_pool<\(Self.typeName(q.dtype))>", of: BlockMaps.unit)
        func pool(_ x: Tensor, _ mean: DevicePointer, _ block: Int) -> Tensor {
            let (rows, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
            let blocks = ceilDivide(rows, block)
            let out = tensor([heads, blocks, dim], x.dtype)
            kernel(
                LaunchShape(grid: Extents(blocks, heads), block: 256, sharedBytes: 1024),
                x.pointer, mean, out.pointer, Int32(rows), Int32(heads), Int32(dim), Int32(block))
            return out
        }
        return (pool(q, .null, spec.queryBlock), pool(k, mean.pointer, spec.keyBlock))
    }

    /// The selected blocks alone. q, k as for ``selectBlocks(_:_:_:)``
    func selectedBlocks(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> Tensor {
        blockLists(q, k, spec) ?? selectBlocks(q, k, spec).indices
    }

    /// Computes the selected blocks with one kernel; nil if the kernel does not support these tensors.
    private func blockLists(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> Tensor? {
        let (heads, queryBlocks, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let keyBlocks = k.shape[1]
        let bytes = BlockMaps.listBytes(dim: dim, keyBlocks: keyBlocks)
        guard q.dtype == .bf16, dim == 64 || dim == 128, keyBlocks <= BlockMaps.mostKeyBlocks,
            bytes <= context.properties.sharedMemoryPerBlock
        else { return nil }
        let selected = spec.selected(of: keyBlocks)
        let indices = tensor([heads, queryBlocks, selected], .i32)
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32, Int32> =
                context.kernel("block_list<\(dim)>", of: BlockMaps.lists)
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(queryBlocks, BlockMaps.listRows), heads), block: 256,
                sharedBytes: bytes),
            q.pointer, k.pointer, indices.pointer, Int32(queryBlocks), Int32(keyBlocks),
            Int32(selected), Int32(BlockMaps.listStride(keyBlocks: keyBlocks)))
        return indices
    }

    /// Scores and selected blocks from block means. q: [heads, queryBlocks, dim], k: [heads, keyBlocks, dim]
    func selectBlocks(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        let (heads, queryBlocks, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let keyBlocks = k.shape[1]
        let selected = spec.selected(of: keyBlocks)
        let scores = tensor([heads, queryBlocks, keyBlocks], q.dtype)
        let indices = tensor([heads, queryBlocks, selected], .i32)
        if q.dtype == .bf16, dim == 64 || dim == 128 {
            let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32> =
                context.kernel("block_scores_mma<\(dim)>", of: BlockMaps.unit)
            kernel(
                LaunchShape(
                    grid: Extents(ceilDivide(keyBlocks, 64), ceilDivide(queryBlocks, 64), heads),
                    block: 128, sharedBytes: 2 * 64 * dim * 2),
                q.pointer, k.pointer, scores.pointer, Int32(queryBlocks), Int32(keyBlocks))
        } else {
            let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32> =
                context.kernel("block_scores<\(Self.typeName(q.dtype))>", of: BlockMaps.unit)
            kernel(
                LaunchShape(grid: Extents(queryBlocks, heads), block: 256),
                q.pointer, k.pointer, scores.pointer, Int32(keyBlocks), Int32(dim))
        }
        let select: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32> =
            context.kernel("block_select<\(Self.typeName(q.dtype))>", of: BlockMaps.unit)
        select(
            LaunchShape(
                grid: Extents(ceilDivide(heads * queryBlocks, 8)), block: 256,
                sharedBytes: 8 * keyBlocks * 4),
            scores.pointer, indices.pointer, Int32(heads * queryBlocks), Int32(keyBlocks),
            Int32(selected))
        return BlockMap(scores: scores, indices: indices)
    }
}
