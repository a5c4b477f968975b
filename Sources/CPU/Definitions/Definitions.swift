/// The definition of every operation, in plain Swift. Other versions are tested against it, and it runs where nothing
/// faster exists.

import Tensors

/// The memory and threads that the definitions use. The operations are in extensions, related ones in one file.
struct Definitions {
    let memory: MemoryPool
    let threads: Threads

    /// How many rows make one chunk of a parallel loop: about 16 thousand elements, whatever the number of threads.
    func grain(_ columns: Int) -> Int { max(1, 16_384 / max(1, columns)) }

    /// A new tensor whose rows are computed in f32, a few thousand elements at a time. `body` is given the indices of
    /// some rows and the address to write them to.
    func mapRows(
        _ shape: Shape, _ dtype: DType,
        _ body: (_ rows: Range<Int>, _ out: UnsafeMutablePointer<Float>) -> Void
    ) -> Tensor {
        let result = memory.tensor(shape, dtype)
        let rows = Rows(result)
        let block = max(1, 4096 / max(1, rows.columns))
        threads.parallel(rows.count, grain: 4 * block) { range in
            scratch(block * rows.columns) { out in
                for first in stride(from: range.lowerBound, to: range.upperBound, by: block) {
                    let some = first..<min(first + block, range.upperBound)
                    body(some, out)
                    rows.store(some.lowerBound, some.count * rows.columns, out)
                }
            }
        }
        return result
    }

    /// The elements of a vector as f32, rounded to `dtype`.
    func vector(_ x: Tensor, roundedTo dtype: DType = .f32) -> [Float] {
        [Float](unsafeUninitializedCapacity: x.shape.count) { out, count in
            count = x.shape.count
            Rows(x, columns: count).load(0, count, into: out.baseAddress!)
            round(out.baseAddress!, count, to: dtype)
        }
    }

    /// The values of x in another floating-point type.
    func converted(_ x: Tensor, to dtype: DType) -> Tensor {
        if x.dtype == dtype { return x }
        let columns = max(1, min(x.shape.count, 4096))
        let result = memory.tensor(x.shape, dtype)
        let (from, to) = (Line(x), Line(result))
        threads.parallel(x.shape.count, grain: columns * 16) { range in
            scratch(columns) { line in
                for start in stride(from: range.lowerBound, to: range.upperBound, by: columns) {
                    let n = min(columns, range.upperBound - start)
                    from.rows.load(0, from: start, n, into: line)
                    to.rows.store(0, from: start, n, line)
                }
            }
        }
        return result
    }

    /// A tensor as a single row.
    struct Line {
        let rows: Rows
        init(_ x: Tensor) { rows = Rows(x, columns: x.shape.count) }
    }
}
