/// The matrix product used by the definitions.

import Ground
import Tensors

/// Products of f32 matrices, which are given by the address of their first element and the distance between rows.
///
/// Each element of the result is a chain of fused multiply-adds over ascending k, cut every `chunk`, so it does not
/// depend on how the caller divides the work.
enum MatrixProduct {
    /// Products are summed in registers over this many k before they are added to the result.
    static let chunk = 512

    /// c <- a b, or c + a b if `accumulate`. a: [m, k], b: [k, n], c: [m, n]
    static func run(
        m: Int, n: Int, k: Int, a: UnsafePointer<Float>, aStride: Int, b: UnsafePointer<Float>,
        bStride: Int, c: UnsafeMutablePointer<Float>, cStride: Int, accumulate: Bool = false
    ) {
        var start = 0
        repeat {
            let depth = min(chunk, k - start)
            let whole = n / 16 * 16
            panels(
                m, whole, depth, a + start, aStride, b + start * bStride, bStride, c, cStride,
                accumulate || start > 0)
            if whole < n {
                edge(
                    m, n - whole, depth, a + start, aStride, b + start * bStride + whole, bStride,
                    c + whole, cStride, accumulate || start > 0)
            }
            start += depth
        } while start < k
    }

    /// Fewer than 16 columns, in a panel padded with zeros.
    private static func edge(
        _ m: Int, _ n: Int, _ k: Int, _ a: UnsafePointer<Float>, _ aStride: Int,
        _ b: UnsafePointer<Float>, _ bStride: Int, _ c: UnsafeMutablePointer<Float>, _ cStride: Int,
        _ accumulate: Bool
    ) {
        scratch(16 * (k + m)) { memory in
            let tile = memory + 16 * k
            memory.update(repeating: 0, count: 16 * k)
            for row in 0..<k { (memory + 16 * row).update(from: b + row * bStride, count: n) }
            panels(m, 16, k, a, aStride, memory, 16, tile, 16, false)
            for row in 0..<m {
                for column in 0..<n {
                    let value = tile[16 * row + column]
                    let index = row * cStride + column
                    c[index] = accumulate ? c[index] + value : value
                }
            }
        }
    }

    private static func panels(
        _ m: Int, _ n: Int, _ k: Int, _ a: UnsafePointer<Float>, _ aStride: Int,
        _ b: UnsafePointer<Float>, _ bStride: Int, _ c: UnsafeMutablePointer<Float>, _ cStride: Int,
        _ accumulate: Bool
    ) {
        var column = 0
        while column < n {
            var row = 0
            while row + 4 <= m {
                four(
                    k, a + row * aStride, aStride, b + column, bStride,
                    c + row * cStride + column, cStride, accumulate)
                row += 4
            }
            while row < m {
                one(
                    k, a + row * aStride, b + column, bStride, c + row * cStride + column,
                    accumulate)
                row += 1
            }
            column += 16
        }
    }

    /// A tile of 4 rows and 16 columns in registers.
    @inline(__always)
    private static func four(
        _ k: Int, _ a: UnsafePointer<Float>, _ aStride: Int, _ b: UnsafePointer<Float>,
        _ bStride: Int, _ c: UnsafeMutablePointer<Float>, _ cStride: Int, _ accumulate: Bool
    ) {
        var c00 = Lanes.zero, c01 = Lanes.zero, c10 = Lanes.zero, c11 = Lanes.zero
        var c20 = Lanes.zero, c21 = Lanes.zero, c30 = Lanes.zero, c31 = Lanes.zero
        let a1 = a + aStride, a2 = a + 2 * aStride, a3 = a + 3 * aStride
        var row = b
        for i in 0..<k {
            let b0 = row.lanes(0), b1 = row.lanes(8)
            let x0 = Lanes(repeating: a[i]), x1 = Lanes(repeating: a1[i])
            c00.addProduct(x0, b0)
            c01.addProduct(x0, b1)
            c10.addProduct(x1, b0)
            c11.addProduct(x1, b1)
            let x2 = Lanes(repeating: a2[i]), x3 = Lanes(repeating: a3[i])
            c20.addProduct(x2, b0)
            c21.addProduct(x2, b1)
            c30.addProduct(x3, b0)
            c31.addProduct(x3, b1)
            row += bStride
        }
        put(c, c00, c01, accumulate)
        put(c + cStride, c10, c11, accumulate)
        put(c + 2 * cStride, c20, c21, accumulate)
        put(c + 3 * cStride, c30, c31, accumulate)
    }

    @inline(__always)
    private static func one(
        _ k: Int, _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ bStride: Int,
        _ c: UnsafeMutablePointer<Float>, _ accumulate: Bool
    ) {
        var c0 = Lanes.zero, c1 = Lanes.zero
        var row = b
        for i in 0..<k {
            let x = Lanes(repeating: a[i])
            c0.addProduct(x, row.lanes(0))
            c1.addProduct(x, row.lanes(8))
            row += bStride
        }
        put(c, c0, c1, accumulate)
    }

    @inline(__always)
    private static func put(
        _ c: UnsafeMutablePointer<Float>, _ x: Lanes, _ y: Lanes, _ accumulate: Bool
    ) {
        if accumulate {
            c.setLanes(0, c.lanes(0) + x)
            c.setLanes(8, c.lanes(8) + y)
        } else {
            c.setLanes(0, x)
            c.setLanes(8, y)
        }
    }
}

/// A transposed matrix in panels of 16 columns, which `MatrixProduct` reads as b with stride 16.
/// Panel p contains rows 16 p ..< 16 p + 16 of the matrix as [n][16]; rows past the end are zeros.
enum Panels {
    /// Number of columns of the panels for `count` rows.
    static func columns(_ count: Int) -> Int { roundUp(count, to: 16) }

    /// Packs elements start ..< start + n of the rows first, first + step, ... into panels of [n][16].
    static func pack(
        _ x: Rows, first: Int, count: Int, step: Int = 1, from start: Int = 0, _ n: Int,
        into panels: UnsafeMutablePointer<Float>
    ) {
        scratch(n) { line in
            for index in 0..<columns(count) {
                if index < count {
                    x.load(first + index * step, from: start, n, into: line)
                } else {
                    line.update(repeating: 0, count: n)
                }
                let target = panels + index / 16 * 16 * n + index % 16
                for i in 0..<n { target[16 * i] = line[i] }
            }
        }
    }

    /// c <- a times the packed matrix, or plus c if `accumulate`. a: [m, k], c: [m, columns]; columns: a multiple of 16
    static func multiply(
        m: Int, k: Int, columns: Int, a: UnsafePointer<Float>, aStride: Int,
        panels: UnsafePointer<Float>, c: UnsafeMutablePointer<Float>, cStride: Int,
        accumulate: Bool = false
    ) {
        for column in stride(from: 0, to: columns, by: 16) {
            MatrixProduct.run(
                m: m, n: 16, k: k, a: a, aStride: aStride, b: panels + column * k, bStride: 16,
                c: c + column, cStride: cStride, accumulate: accumulate)
        }
    }
}
