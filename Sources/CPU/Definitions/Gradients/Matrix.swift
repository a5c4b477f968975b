/// Row-major f32 matrices, with which derivatives are written down plainly.

import Ground
import Tensors

/// f32 [rows, columns] in the pool's memory.
struct Matrix {
    let tensor: Tensor
    var rows: Int { tensor.shape[0] }
    var columns: Int { tensor.shape[1] }
    var base: UnsafeMutablePointer<Float> {
        tensor.hostAddress.assumingMemoryBound(to: Float.self)
    }

    func row(_ index: Int) -> UnsafeMutablePointer<Float> { base + index * columns }
}

extension Definitions {
    /// Uninitialised.
    func matrix(_ rows: Int, _ columns: Int) -> Matrix {
        Matrix(tensor: memory.tensor([rows, columns], .f32))
    }

    /// x: [..., columns] as f32 rows; shares x's memory where it is f32.
    func matrix(_ x: Tensor) -> Matrix {
        Matrix(tensor: converted(x, to: .f32).reshaped([x.shape.rows, x.shape.columns]))
    }

    /// One head of x: [tokens, heads, dim] → [tokens, dim]
    func matrix(_ x: Tensor, head: Int) -> Matrix {
        let (tokens, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        let rows = Rows(x)
        let result = matrix(tokens, dim)
        threads.parallel(tokens, grain: grain(dim)) { range in
            for token in range { rows.load(token * heads + head, dim, into: result.row(token)) }
        }
        return result
    }

    /// Writes one head of x: [tokens, heads, dim].
    func store(_ values: Matrix, in x: Tensor, head: Int) {
        let rows = Rows(x)
        let heads = x.shape[1]
        threads.parallel(values.rows, grain: grain(values.columns)) { range in
            for token in range {
                rows.store(token * heads + head, values.columns, values.row(token))
            }
        }
    }

    /// A new matrix whose rows `body` fills.
    func matrix(
        _ rows: Int, _ columns: Int,
        _ body: (_ row: Int, _ out: UnsafeMutablePointer<Float>) -> Void
    ) -> Matrix {
        let result = matrix(rows, columns)
        threads.parallel(rows, grain: grain(columns)) { range in
            for row in range { body(row, result.row(row)) }
        }
        return result
    }

    /// a b. a: [m, k], b: [k, n] → [m, n]
    func product(_ a: Matrix, _ b: Matrix) -> Matrix {
        let (m, n, k) = (a.rows, b.columns, a.columns)
        let result = matrix(m, n)
        let tile = (rows: 48, columns: 256)
        let (down, across) = (ceilDivide(m, tile.rows), ceilDivide(n, tile.columns))
        threads.parallel(down * across) { range in
            for index in range {
                let row = index % down * tile.rows
                let column = index / down * tile.columns
                MatrixProduct.run(
                    m: min(tile.rows, m - row), n: min(tile.columns, n - column), k: k,
                    a: a.row(row), aStride: k, b: b.base + column, bStride: n,
                    c: result.row(row) + column, cStride: n)
            }
        }
        return withExtendedLifetime((a, b)) { result }
    }

    /// a: [m, n] → [n, m]
    func transposed(_ a: Matrix) -> Matrix {
        let (m, n) = (a.rows, a.columns)
        let result = matrix(n, m)
        // Squares of 32: both sides stay in the first cache.
        let (down, across) = (ceilDivide(m, 32), ceilDivide(n, 32))
        threads.parallel(down * across, grain: 8) { range in
            for index in range {
                let (row, column) = (index / across * 32, index % across * 32)
                for i in row..<min(row + 32, m) {
                    for j in column..<min(column + 32, n) {
                        result.base[j * m + i] = a.base[i * n + j]
                    }
                }
            }
        }
        return withExtendedLifetime(a) { result }
    }

    /// Sums over all rows of what `add` adds for a row to some vectors in one line of `count` f64. The rows are cut
    /// the same way whatever the number of threads.
    func rowSums(
        _ rows: Int, _ count: Int, _ add: (_ rows: Range<Int>, UnsafeMutablePointer<Double>) -> Void
    ) -> [Double] {
        let block = 128
        let parts = max(1, ceilDivide(rows, block))
        let partial = memory.tensor([parts, count], .f64)
        let base = partial.hostAddress.assumingMemoryBound(to: Double.self)
        base.update(repeating: 0, count: parts * count)
        threads.parallel(parts) { range in
            for part in range {
                add(part * block..<min(rows, (part + 1) * block), base + part * count)
            }
        }
        var sums = [Double](repeating: 0, count: count)
        for part in 0..<parts { for i in 0..<count { sums[i] += base[part * count + i] } }
        return withExtendedLifetime(partial) { sums }
    }

    /// f32 [count]
    func vector(of values: ArraySlice<Double>) -> Tensor {
        let result = memory.tensor([values.count], .f32)
        result.withMutable(Float.self) { out in
            for (index, value) in values.enumerated() { out[index] = Float(value) }
        }
        return result
    }
}
