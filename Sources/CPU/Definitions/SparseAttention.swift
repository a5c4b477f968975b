/// Sparse-linear attention: the block map, the attention over the selected blocks and the linear branch.

import Glibc
import Ground
import Tensors

extension Definitions {
    func sparseLinearAttention(_ o: Operation.SparseLinearAttention) -> Tensor {
        let (q, k, v, spec) = (o.q, o.k, o.v, o.spec)
        let map = blockMap(q, k, spec)
        // The original casts to bf16 after the block map; exact arithmetic stays in f32 up to the result.
        let inner: DType = spec.arithmetic == .exact ? .f32 : .bf16
        let exact = spec.arithmetic == .exact
        let (qs, ks, vs) =
            exact
            ? (q, k, v)
            : (converted(q, to: .bf16), converted(k, to: .bf16), converted(v, to: .bf16))
        let operands = TileOperands(self, qs, ks, vs, spec)
        let sparse = sparseBranch(operands, map.indices, spec, as: inner)
        return linearBranch(
            qs, ks, vs, projection: o.projection, bias: o.bias, rounding: inner, added: sparse,
            as: q.dtype)
    }

    // MARK: Block map

    /// See `Operation.BlockMap`.
    func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let (queryBlocks, keyBlocks, selected) = spec.blocks(of: tokens)
        let pooledQueries = Rows(pooled(q, spec.queryBlock, minus: nil))
        let pooledKeys = Rows(pooled(k, spec.keyBlock, minus: mean(k)))
        let scores = memory.tensor([heads, queryBlocks, keyBlocks], q.dtype)
        let indices = memory.tensor([heads, queryBlocks, selected], .i32)
        let out = Rows(scores)
        let chosen = indices.hostAddress.assumingMemoryBound(to: Int32.self)
        let width = Panels.columns(keyBlocks)
        threads.parallel(heads) { range in
            scratch(width * dim + width + dim) { panels in
                let line = panels + width * dim
                let query = line + width
                for head in range {
                    Panels.pack(
                        pooledKeys, first: head, count: keyBlocks, step: heads, dim, into: panels)
                    for block in 0..<queryBlocks {
                        pooledQueries.load(block * heads + head, dim, into: query)
                        Panels.multiply(
                            m: 1, k: dim, columns: width, a: query, aStride: dim, panels: panels,
                            c: line, cStride: width)
                        round(line, keyBlocks, to: q.dtype)
                        let row = head * queryBlocks + block
                        out.store(row, keyBlocks, line)
                        Self.selectLargest(
                            line, keyBlocks, selected, into: chosen + row * selected)
                    }
                }
            }
        }
        return BlockMap(scores: scores, indices: indices)
    }

    /// The indices of the `count` largest values in ascending order; of equal values, the lower indices.
    private static func selectLargest(
        _ values: UnsafePointer<Float>, _ n: Int, _ count: Int,
        into out: UnsafeMutablePointer<Int32>
    ) {
        var order = (0..<Int32(n)).sorted {
            let (a, b) = (values[Int($0)], values[Int($1)])
            return a > b || (a == b && $0 < $1)
        }
        order.removeLast(n - count)
        order.sort()
        out.update(from: order, count: count)
    }

    /// The mean over the sequence, rounded to the dtype of x. x: [tokens, heads, dim] → [heads, dim]
    func mean(_ x: Tensor) -> Tensor {
        let (tokens, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        let sums = Rows(blockSums(x, 256, minus: nil))
        let count = ceilDivide(tokens, 256)
        return mapRows([1, heads * dim], x.dtype) { _, out in
            out.update(repeating: 0, count: heads * dim)
            for block in 0..<count { Vector.add(out, sums.floats(block), heads * dim) }
            Vector.scale(out, heads * dim, by: 1 / Float(tokens))
        }.reshaped([heads, dim])
    }

    /// Means of x - center over blocks of rows; the last block is divided by its actual length. The differences and the
    /// means are rounded to the dtype of x. x: [tokens, heads, dim] → [blocks, heads, dim]
    private func pooled(_ x: Tensor, _ block: Int, minus center: Tensor?) -> Tensor {
        let sums = blockSums(x, block, minus: center)
        let rows = Rows(sums)
        let tokens = x.shape[0]
        return mapRows(sums.shape, x.dtype) { range, out in
            rows.load(range, into: out)
            for (index, row) in range.enumerated() {
                let length = min(block, tokens - row * block)
                Vector.scale(
                    out + index * rows.columns, rows.columns, by: 1 / Float(length))
            }
        }.reshaped([sums.shape[0], x.shape[1], x.shape[2]])
    }

    /// Sums of x - center over blocks of rows. x: [tokens, heads, dim] → f32 [blocks, heads * dim]
    private func blockSums(_ x: Tensor, _ block: Int, minus center: Tensor?) -> Tensor {
        let tokens = x.shape[0]
        let width = x.shape[1] * x.shape[2]
        let rows = Rows(x, columns: width)
        let center = center.map { vector($0) }
        let sums = memory.tensor([ceilDivide(tokens, block), width], .f32)
        let out = Rows(sums)
        threads.parallel(out.count) { range in
            scratch(width) { line in
                for index in range {
                    let sum = out.floats(index)
                    sum.update(repeating: 0, count: width)
                    for token in index * block..<min(tokens, (index + 1) * block) {
                        rows.load(token, width, into: line)
                        if let center {
                            Vector.map(line, center, width) { $0 - $1 }
                            round(line, width, to: x.dtype)
                        }
                        Vector.add(sum, line, width)
                    }
                }
            }
        }
        return sums
    }

    // MARK: Selected blocks

    /// Attention of each query block to its selected key blocks. indices: i32 [heads, queryBlocks, selected]
    /// → [tokens, heads, dim] in `dtype`
    func sparseBranch(
        _ operands: TileOperands, _ indices: Tensor, _ spec: SparseAttention, as dtype: DType
    ) -> Tensor {
        let (tokens, heads, dim) = (operands.tokens, operands.heads, operands.dim)
        let result = memory.tensor([tokens, heads, dim], dtype)
        let out = Rows(result)
        let selected = indices.shape[2]
        let chosen = indices.hostAddress.assumingMemoryBound(to: Int32.self)
        let keyBlock = spec.keyBlock
        let keyBlocks = ceilDivide(tokens, keyBlock)
        let width = Panels.columns(keyBlock)
        // For one head: keys in panels, block by block, then values.
        let packed = memory.storage(byteCount: (keyBlocks * width + tokens) * dim * 4)
        let panels = packed.hostPointer!.assumingMemoryBound(to: Float.self)
        let values = panels + keyBlocks * width * dim
        // Half a query block is enough work for a chunk, and gives the threads more equal shares.
        let tile = min(64, spec.queryBlock)
        let tilesInBlock = ceilDivide(spec.queryBlock, tile)
        for head in 0..<heads {
            threads.parallel(keyBlocks) { range in
                for block in range {
                    let first = block * keyBlock
                    let count = min(keyBlock, tokens - first)
                    Panels.pack(
                        operands.k, first: first * heads + head, count: count, step: heads, dim,
                        into: panels + block * width * dim)
                    for key in first..<first + count {
                        operands.v.load(key * heads + head, dim, into: values + key * dim)
                    }
                }
            }
            threads.parallel(indices.shape[1] * tilesInBlock) { range in
                for index in range {
                    let block = index / tilesInBlock
                    let start = block * spec.queryBlock + index % tilesInBlock * tile
                    let end = min(start + tile, (block + 1) * spec.queryBlock, tokens)
                    if start >= end { continue }
                    let row = head * indices.shape[1] + block
                    OnlineSoftmax.run(
                        operands, head: head, queries: start..<end, queryBlock: block,
                        keyBlocks: UnsafeBufferPointer(
                            start: chosen + row * selected, count: selected),
                        keyBlock: keyBlock, panels: panels, width: width, values: values
                    ) { query, line in out.store(query * heads + head, dim, line) }
                }
            }
        }
        return withExtendedLifetime((packed, indices)) { result }
    }

    // MARK: Linear branch

    /// added + proj(cq (ck^T v) / (1e-5 + cq . sum ck)), where cq and ck are the softmax of q and k over the width of
    /// the head; the result of every step is rounded to `rounding`. added: [tokens, heads, dim] → same shape in `dtype`
    func linearBranch(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        rounding: DType, added: Tensor, as dtype: DType
    ) -> Tensor {
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let states = keyValueStates(k, v, rounding)
        let (stateRows, qs, sparse) = (Rows(states), Rows(q), Rows(added))
        let result = memory.tensor(q.shape, dtype)
        let out = Rows(result)
        let bias = bias.map { vector($0, roundedTo: rounding) }
        let width = Panels.columns(dim)
        let weight = [Float](unsafeUninitializedCapacity: width * dim) { panels, count in
            count = width * dim
            Panels.pack(
                Rows(projection.matrix), first: 0, count: dim, dim, into: panels.baseAddress!)
            round(panels.baseAddress!, count, to: rounding)
        }
        let block = 64
        let blocks = ceilDivide(tokens, block)
        threads.parallel(blocks * heads) { range in
            scratch(block * (2 * dim + width) + dim) { memory in
                let features = memory
                let sums = features + block * dim
                let projected = sums + block * dim
                let line = projected + block * width
                for index in range {
                    let head = index / blocks
                    let first = index % blocks * block
                    let count = min(block, tokens - first)
                    let state = stateRows.floats(head)
                    let keySum = state + dim * dim
                    for row in 0..<count {
                        let feature = features + row * dim
                        qs.load((first + row) * heads + head, dim, into: feature)
                        Vector.softmax(feature, dim)
                        round(feature, dim, to: rounding)
                    }
                    MatrixProduct.run(
                        m: count, n: dim, k: dim, a: features, aStride: dim, b: state, bStride: dim,
                        c: sums, cStride: dim)
                    round(sums, count * dim, to: rounding)
                    for row in 0..<count {
                        let feature = features + row * dim
                        Vector.multiply(feature, keySum, dim)
                        round(feature, dim, to: rounding)
                        var total = Vector.sum(feature, dim)
                        round(&total, 1, to: rounding)
                        total += 1e-5
                        round(&total, 1, to: rounding)
                        let divisor = total
                        Vector.map(sums + row * dim, dim) { $0 / divisor }
                    }
                    round(sums, count * dim, to: rounding)
                    Panels.multiply(
                        m: count, k: dim, columns: width, a: sums, aStride: dim, panels: weight,
                        c: projected, cStride: width)
                    for row in 0..<count {
                        let o = projected + row * width
                        if let bias { Vector.add(o, bias, dim) }
                        round(o, dim, to: rounding)
                        sparse.load((first + row) * heads + head, dim, into: line)
                        Vector.add(o, line, dim)
                        round(o, dim, to: rounding)
                        out.store((first + row) * heads + head, dim, o)
                    }
                }
            }
        }
        return withExtendedLifetime(states) { result }
    }

    /// ck^T v and the sum of ck over the sequence, rounded. → f32 [heads, dim * dim + dim]
    private func keyValueStates(_ k: Tensor, _ v: Tensor, _ rounding: DType) -> Tensor {
        let (tokens, heads, dim) = (k.shape[0], k.shape[1], k.shape[2])
        let (ks, vs) = (Rows(k), Rows(v))
        // At most 16 partial sums per head, each over whole blocks of 256 rows.
        let block = 256
        let share = max(1, ceilDivide(ceilDivide(tokens, block), 16)) * block
        let parts = ceilDivide(tokens, share)
        let partial = memory.tensor([heads, parts, dim * dim + dim], .f32)
        let partialRows = Rows(partial)
        threads.parallel(heads * parts) { range in
            scratch(2 * block * dim + dim) { memory in
                let features = memory  // [dim][block]
                let values = memory + block * dim  // [block][dim]
                let line = values + block * dim
                for index in range {
                    let head = index / parts
                    let start = index % parts * share
                    let state = partialRows.floats(index)
                    let keySum = state + dim * dim
                    state.update(repeating: 0, count: dim * dim + dim)
                    for first in stride(from: start, to: min(start + share, tokens), by: block) {
                        let count = min(block, tokens - first)
                        for row in 0..<count {
                            ks.load((first + row) * heads + head, dim, into: line)
                            Vector.softmax(line, dim)
                            round(line, dim, to: rounding)
                            Vector.add(keySum, line, dim)
                            for i in 0..<dim { features[i * block + row] = line[i] }
                            vs.load((first + row) * heads + head, dim, into: values + row * dim)
                        }
                        MatrixProduct.run(
                            m: dim, n: dim, k: count, a: features, aStride: block, b: values,
                            bStride: dim, c: state, cStride: dim, accumulate: true)
                    }
                }
            }
        }
        let width = dim * dim + dim
        return mapRows([heads, width], .f32) { range, out in
            for (index, head) in range.enumerated() {
                let sum = out + index * width
                partialRows.load(head * parts, width, into: sum)
                for part in 1..<max(1, parts) {
                    Vector.add(sum, partialRows.floats(head * parts + part), width)
                }
            }
            round(out, range.count * width, to: rounding)
        }
    }
}
