/// The product of two thin matrices, added to a large one a few rows at a time. When an adapter is
/// merged at load, every matrix of the model may pass through here, so it is vectorised.

import Ground
import Tensors

/// A matrix of f32 numbers. Their count is checked once, so that indexing need not check again.
struct Matrix {
    let rows, columns: Int
    /// [rows, columns]
    let numbers: [Float]

    init(rows: Int, columns: Int, _ numbers: [Float]) {
        ensure(
            rows >= 0 && columns >= 0 && numbers.count == rows * columns,
            "Matrix: \(numbers.count) numbers for [\(rows), \(columns)]")
        self.rows = rows
        self.columns = columns
        self.numbers = numbers
    }
}

/// up · down, a few rows at a time.
struct LowRankProduct {
    /// Columns of a panel: two vectors, whose sums for four rows fit in registers.
    private static let width = 16
    private static let rowsAtOnce = 4
    private typealias Vector = SIMD8<Float>

    let columns: Int
    private let rank: Int
    private let up: Matrix
    /// `down` cut into panels of 16 columns, each of which stays in the nearest cache while all rows
    /// use it: [panels, rank, 16], with zeros past the last column.
    private let panels: [Float]

    /// up: [rows, rank], down: [rank, columns]
    init(up: Matrix, down: Matrix) {
        ensure(
            up.columns == down.rows,
            "LowRankProduct: [\(up.rows), \(up.columns)] · [\(down.rows), \(down.columns)]")
        rank = down.rows
        columns = down.columns
        self.up = up
        let width = Self.width
        var panels = [Float](repeating: 0, count: ceilDivide(columns, width) * width * rank)
        for k in 0..<rank {
            for column in 0..<columns {
                panels[(column / width * rank + k) * width + column % width] =
                    down.numbers[k * columns + column]
            }
        }
        self.panels = panels
    }

    /// sum += scale · (up · down)[rows]. sum: [rows.count, columns]
    func add(_ rows: Range<Int>, scale: Float, to sum: UnsafeMutableBufferPointer<Float>) {
        ensure(
            rows.lowerBound >= 0 && rows.upperBound <= up.rows && sum.count == rows.count * columns,
            "LowRankProduct: rows \(rows) of \(up.rows), \(sum.count) numbers in \(columns) columns"
        )
        guard let target = sum.baseAddress, rank > 0 else { return }
        up.numbers.withUnsafeBufferPointer { up in
            panels.withUnsafeBytes { panels in
                for first in stride(from: 0, to: columns, by: Self.width) {
                    let panel = panels.baseAddress! + first * rank * MemoryLayout<Float>.stride
                    var row = rows.lowerBound
                    while row < rows.upperBound {
                        let count = min(Self.rowsAtOnce, rows.upperBound - row)
                        add(
                            panel, up.baseAddress! + row * rank, count, scale,
                            to: target + (row - rows.lowerBound) * columns + first,
                            width: min(Self.width, columns - first))
                        row += count
                    }
                }
            }
        }
    }

    /// Adds up to four rows of one panel. Rows past `count` repeat the last one and are not stored.
    @inline(__always)
    private func add(
        _ panel: UnsafeRawPointer, _ up: UnsafePointer<Float>, _ count: Int, _ scale: Float,
        to sum: UnsafeMutablePointer<Float>, width: Int
    ) {
        let up1 = up + min(1, count - 1) * rank
        let up2 = up + min(2, count - 1) * rank
        let up3 = up + min(3, count - 1) * rank
        let half = MemoryLayout<Vector>.size
        var (a0, b0, a1, b1) = (Vector.zero, Vector.zero, Vector.zero, Vector.zero)
        var (a2, b2, a3, b3) = (Vector.zero, Vector.zero, Vector.zero, Vector.zero)
        for k in 0..<rank {
            let a = panel.loadUnaligned(fromByteOffset: 2 * half * k, as: Vector.self)
            let b = panel.loadUnaligned(fromByteOffset: 2 * half * k + half, as: Vector.self)
            a0.addProduct(up[k], a)
            b0.addProduct(up[k], b)
            a1.addProduct(up1[k], a)
            b1.addProduct(up1[k], b)
            a2.addProduct(up2[k], a)
            b2.addProduct(up2[k], b)
            a3.addProduct(up3[k], a)
            b3.addProduct(up3[k], b)
        }
        store(a0, b0, scale, to: sum, width)
        if count > 1 { store(a1, b1, scale, to: sum + columns, width) }
        if count > 2 { store(a2, b2, scale, to: sum + 2 * columns, width) }
        if count > 3 { store(a3, b3, scale, to: sum + 3 * columns, width) }
    }

    @inline(__always)
    private func store(
        _ a: Vector, _ b: Vector, _ scale: Float, to sum: UnsafeMutablePointer<Float>, _ width: Int
    ) {
        guard width == Self.width else {
            for column in 0..<width {
                sum[column] += scale * (column < 8 ? a[column] : b[column - 8])
            }
            return
        }
        let raw = UnsafeMutableRawPointer(sum)
        let half = MemoryLayout<Vector>.size
        raw.storeBytes(
            of: raw.loadUnaligned(as: Vector.self) + scale * a, as: Vector.self)
        raw.storeBytes(
            of: raw.loadUnaligned(fromByteOffset: half, as: Vector.self) + scale * b,
            toByteOffset: half, as: Vector.self)
    }
}
