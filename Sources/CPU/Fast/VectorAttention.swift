/// Attention with the vector kernels.

internal import CDrivers
import Glibc
internal import Ground
import Tensors

extension VectorOperations {
    /// Number of keys in a block of the kernels.
    private static let block = 64

    func attention(_ o: Operation.Attention) -> Tensor? {
        guard let operands = AttentionOperands(o.q, o.k, o.v, self) else { return nil }
        return attend(operands, scale: o.scale, lastKeyCounts: o.lastKeyCounts, bias: nil)
    }

    func relativeAttention(_ o: Operation.RelativeAttention) -> Tensor? {
        guard let operands = AttentionOperands(o.q, o.k, o.v, self) else { return nil }
        let (count, heads) = (o.q.shape[0], o.q.shape[1])
        let table = definitions.vector(o.table)
        // The bias of each distance key - query, from -(count - 1) to count - 1. [heads, 2 count - 1]
        let bias = (0..<heads).flatMap { head in
            (1 - count..<count).map { table[Definitions.bucket($0) * heads + head] }
        }
        return attend(operands, scale: 1, lastKeyCounts: [], bias: bias)
    }

    /// Attention of every query to every key.
    private func attend(
        _ operands: AttentionOperands, scale: Float, lastKeyCounts: [Int], bias: [Float]?
    ) -> Tensor {
        let (queries, heads) = (operands.q.shape[0], operands.q.shape[1])
        let result = definitions.memory.tensor(operands.q.shape, operands.q.dtype)
        let blocks = (0..<Int32(operands.blocks)).map { $0 }
        let step = 96
        let chunks = ceilDivide(queries, step)
        definitions.threads.parallel(heads * chunks) { range in
            for index in range {
                let head = index / chunks
                let first = index % chunks * step
                operands.attend(
                    head: head, queries: first..<min(queries, first + step), blocks: blocks[...],
                    scale: scale, lastKeyCounts: lastKeyCounts, bias: bias, into: result)
            }
        }
        return result
    }

    func sparseLinearAttention(_ o: Operation.SparseLinearAttention) -> Tensor? {
        let (q, k, v, spec) = (o.q, o.k, o.v, o.spec)
        guard spec.keyBlock % Self.block == 0, q.shape[2] <= Int(CPU_LARGEST_LINEAR_HEAD) else {
            return nil
        }
        let map = definitions.blockMap(q, k, spec)
        let inner: DType = spec.arithmetic == .exact ? .f32 : .bf16
        let (qs, ks, vs) = (
            definitions.converted(q, to: inner), definitions.converted(k, to: inner),
            definitions.converted(v, to: inner)
        )
        var sage: SageArchitecture?
        if case .sage(let architecture) = spec.arithmetic { sage = architecture }
        guard let operands = AttentionOperands(qs, ks, vs, packsKeys: sage == nil, self) else {
            return nil
        }
        let sparse =
            if let sage {
                sageBranch(qs, ks, vs, map.indices, spec, sage)
                    ?? definitions.sparseBranch(
                        TileOperands(definitions, qs, ks, vs, spec), map.indices, spec, as: inner)
            } else {
                sparseBranch(operands, map.indices, spec)
            }
        return linearBranch(
            operands, k: ks, projection: o.projection.matrix, bias: o.bias, added: sparse,
            as: q.dtype)
    }

    /// Attention of each query block to its selected key blocks. indices: i32 [heads, queryBlocks, selected]
    /// → [tokens, heads, dim]
    private func sparseBranch(
        _ operands: AttentionOperands, _ indices: Tensor, _ spec: SparseAttention
    ) -> Tensor {
        let tokens = operands.q.shape[0]
        let result = definitions.memory.tensor(operands.q.shape, operands.q.dtype)
        let (queryBlocks, selected) = (indices.shape[1], indices.shape[2])
        let chosen = indices.hostAddress.assumingMemoryBound(to: Int32.self)
        let parts = spec.keyBlock / Self.block
        let step = min(64, spec.queryBlock)
        let steps = ceilDivide(spec.queryBlock, step)
        let scale = 1 / Float(operands.q.shape[2]).squareRoot()
        definitions.threads.parallel(indices.shape[0] * queryBlocks * steps) { range in
            for index in range {
                let (row, part) = (index / steps, index % steps)
                let (head, block) = (row / queryBlocks, row % queryBlocks)
                let first = block * spec.queryBlock + part * step
                let last = min(first + step, (block + 1) * spec.queryBlock, tokens)
                if first >= last { continue }
                let blocks = (0..<selected * parts).map {
                    chosen[row * selected + $0 / parts] * Int32(parts) + Int32($0 % parts)
                }
                operands.attend(
                    head: head, queries: first..<last,
                    blocks: blocks.prefix { $0 < Int32(operands.blocks) }, scale: scale,
                    lastKeyCounts: [], bias: nil, into: result)
            }
        }
        return withExtendedLifetime(indices) { result }
    }
}

/// The operands of the attention kernel: q as it is, k and v packed.
struct AttentionOperands {
    let q: Tensor
    /// Number of blocks of 64 keys.
    let blocks: Int
    let keys: Int
    let kind: cpu_kind
    private let packed: Storage
    private let keyBytes, valueBytes: Int
    private let kernels: cpu_kernels

    /// nil if the kernel cannot take these tensors. q, k, v: [L, heads, headDim]
    /// - Parameter packsKeys: whether `attend` will be called.
    init?(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, packsKeys: Bool = true,
        _ operations: VectorOperations
    ) {
        let definitions = operations.definitions
        kernels = operations.kernels
        let (heads, dim) = (q.shape[1], q.shape[2])
        guard q.dtype == .f32 || (q.dtype == .bf16 && dim % 2 == 0), dim > 0, k.shape[0] > 0 else {
            return nil
        }
        self.q = q
        keys = k.shape[0]
        kind = q.dtype == .f32 ? CPU_F32 : CPU_BF16
        blocks = ceilDivide(keys, 64)
        keyBytes = packsKeys ? cpu_packed_bytes(kind, 64, dim) : 0
        valueBytes = cpu_packed_bytes(kind, dim, 64)
        packed = definitions.memory.storage(byteCount: heads * blocks * (keyBytes + valueBytes))
        let size = q.dtype.byteCount
        let stride = heads * dim * size
        let operands = self
        definitions.threads.parallel(heads * blocks, grain: 2) { range in
            for index in range {
                let (head, block) = (index / operands.blocks, index % operands.blocks)
                let count = min(64, operands.keys - block * 64)
                let offset = block * 64 * stride + head * dim * size
                if packsKeys {
                    cpu_pack(
                        operands.kind, k.hostAddress + offset, stride, count, dim, 0,
                        cpu_panel_count(operands.kind, count),
                        operands.packedKeys(head) + block * operands.keyBytes)
                }
                cpu_pack_rows(
                    operands.kind, v.hostAddress + offset, stride, count, dim, 64,
                    operands.packedValues(head) + block * operands.valueBytes)
            }
        }
        withExtendedLifetime((k, v)) {}
    }

    func packedKeys(_ head: Int) -> UnsafeMutableRawPointer {
        packed.hostPointer! + head * blocks * (keyBytes + valueBytes)
    }

    func packedValues(_ head: Int) -> UnsafeMutableRawPointer {
        packedKeys(head) + blocks * keyBytes
    }

    /// softmax(q k^T * scale + bias) v for some queries of one head and some blocks of keys, in ascending order.
    /// bias: [heads, 2 L - 1]; result: [Lq, heads, headDim]
    func attend(
        head: Int, queries: Range<Int>, blocks: ArraySlice<Int32>, scale: Float,
        lastKeyCounts: [Int], bias: [Float]?, into result: Tensor
    ) {
        let (heads, dim) = (q.shape[1], q.shape[2])
        func run(_ bias: UnsafePointer<Float>?) {
            var job = cpu_attention_job(
                kind: kind, head_dim: dim, keys: keys, stride: heads * dim * q.dtype.byteCount,
                packed_keys: packedKeys(head), packed_values: packedValues(head), scale: scale,
                last_key_counts: (
                    lastKeyCounts.count > 1 ? Float(lastKeyCounts[0]) : 1,
                    Float(lastKeyCounts.last ?? 1)
                ), bias: bias)
            let size = result.dtype.byteCount
            scratch(kernels.attention_scratch(dim, queries.count)) { memory in
                blocks.withUnsafeBufferPointer {
                    kernels.attention(
                        &job, q.hostAddress + head * dim * q.dtype.byteCount,
                        result.hostAddress + head * dim * size, heads * dim * size,
                        result.dtype == .f32 ? 1 : 0, queries.lowerBound, queries.upperBound,
                        $0.baseAddress!, blocks.count, memory)
                }
            }
        }
        if let bias {
            bias.withUnsafeBufferPointer { run($0.baseAddress! + head * (2 * keys - 1) + keys - 1) }
        } else {
            run(nil)
        }
    }
}
