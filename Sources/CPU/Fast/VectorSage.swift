/// SageSLA's attention to selected blocks with the vector kernels, to the same bits as its definition.

internal import CDrivers
internal import Ground
import Tensors

extension VectorOperations {
    /// Attention of each query block to its selected key blocks; nil if the kernel cannot take these arguments.
    /// q, k, v: bf16 [tokens, heads, dim]; indices: i32 [heads, queryBlocks, selected] → bf16 [tokens, heads, dim]
    func sageBranch(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ indices: Tensor, _ spec: SparseAttention,
        _ architecture: SageArchitecture
    ) -> Tensor? {
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        guard dim % 32 == 0, dim <= 128 || dim % 128 == 0, dim <= Int(CPU_LARGEST_LINEAR_HEAD),
            spec.keyBlock % 16 == 0, spec.keyBlock <= MatrixProduct.chunk
        else { return nil }
        let operands = SageBlocks(q, k, v, spec, architecture, self)
        let arithmetic = TileArithmetic(spec.arithmetic, headDim: dim)
        let result = definitions.memory.tensor(q.shape, .bf16)
        let (queryBlocks, selected) = (indices.shape[1], indices.shape[2])
        let chosen = indices.hostAddress.assumingMemoryBound(to: Int32.self)
        let codes = operands.queryCodes.hostAddress.assumingMemoryBound(to: Int8.self)
        let step = min(64, spec.queryBlock)
        let steps = ceilDivide(spec.queryBlock, step)
        definitions.threads.parallel(heads * queryBlocks * steps) { range in
            scratch(kernels.sage_scratch(dim, spec.keyBlock, step)) { memory in
                for index in range {
                    let row = index / steps
                    let (head, block) = (row / queryBlocks, row % queryBlocks)
                    let first = block * spec.queryBlock + index % steps * step
                    let last = min(first + step, (block + 1) * spec.queryBlock, tokens)
                    if first >= last { continue }
                    var job = operands.job(head, arithmetic)
                    kernels.sage(
                        &job, codes + head * dim, operands.queryScales[row],
                        result.hostAddress + head * dim * 2, first, last, chosen + row * selected,
                        selected, memory)
                }
            }
        }
        return withExtendedLifetime((operands, indices)) { result }
    }
}

/// What SageSLA's kernel reads: q as codes, k and v quantised and packed, block by block.
private struct SageBlocks {
    let queryCodes: Tensor
    /// [heads][blocks]
    let queryScales: UnsafeMutablePointer<Float>
    private let keyScales: UnsafeMutablePointer<Float>
    /// [heads][dim]; nil where values are f16
    private let valueScales: UnsafeMutablePointer<Float>?
    private let shape: Shape
    private let keyBlock, blocks, keyBytes, valueBytes: Int
    private let packed, scales: Storage

    /// q, k, v: bf16 [tokens, heads, dim]
    init(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention,
        _ architecture: SageArchitecture, _ operations: VectorOperations
    ) {
        let memory = operations.definitions.memory
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let queryBlocks = ceilDivide(tokens, spec.queryBlock)
        shape = q.shape
        keyBlock = spec.keyBlock
        blocks = ceilDivide(tokens, keyBlock)
        keyBytes = cpu_packed_bytes(CPU_INT8, keyBlock, dim)
        valueBytes = cpu_packed_bytes(CPU_F32, dim, keyBlock)
        packed = memory.storage(byteCount: heads * blocks * (keyBytes + valueBytes))
        queryCodes = memory.tensor(shape, .i8)
        scales = memory.storage(byteCount: heads * (queryBlocks + blocks + dim) * 4)
        queryScales = scales.hostPointer!.assumingMemoryBound(to: Float.self)
        keyScales = queryScales + heads * queryBlocks
        valueScales = architecture == .sm80 ? nil : keyScales + heads * blocks
        quantize(q, block: spec.queryBlock, operations)
        pack(k, v, operations)
    }

    private func quantize(_ q: Tensor, block: Int, _ operations: VectorOperations) {
        let (tokens, heads, dim) = (shape[0], shape[1], shape[2])
        let blocks = ceilDivide(tokens, block)
        let codes = queryCodes.hostAddress.assumingMemoryBound(to: Int8.self)
        operations.definitions.threads.parallel(heads * blocks, grain: 2) { range in
            for index in range {
                let first = index % blocks * block
                let offset = (first * heads + index / blocks) * dim
                queryScales[index] = operations.kernels.sage_codes(
                    q.hostAddress + offset * 2, heads * dim, min(block, tokens - first), dim, nil,
                    codes + offset, heads * dim)
            }
        }
        withExtendedLifetime(q) {}
    }

    private func pack(_ k: Tensor, _ v: Tensor, _ operations: VectorOperations) {
        let (kernels, definitions) = (operations.kernels, operations.definitions)
        let (tokens, heads, dim) = (shape[0], shape[1], shape[2])
        let center = definitions.vector(definitions.mean(k))
        var factors: [Float]?
        if let valueScales {
            let largest = Self.columnMaxima(v, operations)
            for (i, x) in largest.enumerated() { valueScales[i] = x / 2.25 }
            factors = largest.map { $0 == 0 ? 0 : 2.25 / $0 }
        }
        definitions.threads.parallel(heads * blocks, grain: 2) { range in
            // Codes of the keys first, then the values.
            scratch(keyBlock * dim) { values in
                let codes = UnsafeMutableRawPointer(values).assumingMemoryBound(to: Int8.self)
                for index in range {
                    let (head, block) = (index / blocks, index % blocks)
                    let first = block * keyBlock
                    let count = min(keyBlock, tokens - first)
                    let offset = (first * heads + head) * dim * 2
                    keyScales[index] = center.withUnsafeBufferPointer {
                        kernels.sage_codes(
                            k.hostAddress + offset, heads * dim, count, dim,
                            $0.baseAddress! + head * dim, codes, dim)
                    }
                    cpu_pack(
                        CPU_INT8, codes, dim, count, dim, 0, cpu_panel_count(CPU_INT8, count),
                        packedKeys(head) + block * keyBytes)
                    func quantize(_ factors: UnsafePointer<Float>?) {
                        kernels.sage_values(
                            v.hostAddress + offset, heads * dim, count, dim, factors, values)
                    }
                    if let factors {
                        factors.withUnsafeBufferPointer { quantize($0.baseAddress! + head * dim) }
                    } else {
                        quantize(nil)
                    }
                    cpu_pack_rows(
                        CPU_F32, values, dim * 4, count, dim, keyBlock,
                        packedValues(head) + block * valueBytes)
                }
            }
        }
        withExtendedLifetime((k, v)) {}
    }

    private func packedKeys(_ head: Int) -> UnsafeMutableRawPointer {
        packed.hostPointer! + head * blocks * (keyBytes + valueBytes)
    }

    private func packedValues(_ head: Int) -> UnsafeMutableRawPointer {
        packedKeys(head) + blocks * keyBytes
    }

    /// Its pointers live as long as this value.
    func job(_ head: Int, _ arithmetic: TileArithmetic) -> cpu_sage_job {
        let (heads, dim) = (shape[1], shape[2])
        return cpu_sage_job(
            head_dim: dim, keys: shape[0], key_block: keyBlock, q_stride: heads * dim,
            out_stride: heads * dim * 2, packed_keys: packedKeys(head),
            key_scales: keyScales + head * blocks, packed_values: packedValues(head),
            value_scales: valueScales.map { UnsafePointer($0 + head * dim) },
            logit_scale: arithmetic.logitScale,
            exponent_offset: arithmetic.exponentOffset, first_top: arithmetic.maximumStart,
            first_total: arithmetic.denominatorStart, f16: arithmetic.sumsRounded ? 1 : 0,
            half_step: arithmetic.halfAccumulatorStep ?? 0)
    }

    /// The largest magnitude of each channel. v: bf16 [tokens, heads, dim] → [heads * dim]
    private static func columnMaxima(_ v: Tensor, _ operations: VectorOperations) -> [Float] {
        let (tokens, width) = (v.shape[0], v.shape[1] * v.shape[2])
        let rows = 256
        let parts = ceilDivide(tokens, rows)
        var largest = [Float](repeating: 0, count: parts * width)
        largest.withUnsafeMutableBufferPointer { buffer in
            let base = buffer.baseAddress!
            operations.definitions.threads.parallel(parts) { range in
                for part in range {
                    let first = part * rows
                    operations.kernels.column_maxima(
                        v.hostAddress + first * width * 2, width, min(rows, tokens - first), width,
                        base + part * width)
                }
            }
        }
        return (0..<width).map { column in
            (0..<parts).reduce(0) { max($0, largest[$1 * width + column]) }
        }
    }
}
