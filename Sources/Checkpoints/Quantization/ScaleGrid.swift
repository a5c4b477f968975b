/// Which numbers of an 8-bit matrix each scale applies to, as told by the shapes.

import Ground
import Tensors

/// One scale for each block of rows and columns: the whole matrix, rows, groups along rows, or
/// blocks.
struct ScaleGrid: Equatable {
    /// Extents of the matrix, with the axes after the first folded into one.
    let rows, columns: Int
    /// Rows and columns that share a scale; the last ones may be fewer.
    let rowBlock, columnBlock: Int

    /// nil if the shapes do not fit each other.
    init?(scale: [Int], matrix: [Int]) {
        (rows, columns) = foldedExtents(matrix)
        let down = scale.first ?? 1
        let across = scale.dropFirst().filter { $0 != 1 }
        guard rows > 0, columns > 0, down > 0, across.count <= 1 else { return nil }
        let right = across.first ?? 1
        // If several block lengths would fit, blocks in both directions are taken to be 128x128.
        let isBlocked = (2..<max(rows, 2)).contains(down) && right > 1
        guard let rowBlock = Self.block(rows, down, mayEnd: isBlocked),
            let columnBlock = Self.block(columns, right, mayEnd: isBlocked)
        else { return nil }
        self.rowBlock = rowBlock
        self.columnBlock = columnBlock
    }

    private static func block(_ extent: Int, _ scales: Int, mayEnd: Bool) -> Int? {
        let isOfSides = ceilDivide(extent, Int8Blocks.side) == scales
        if isOfSides, mayEnd || extent % scales != 0 { return Int8Blocks.side }
        return extent % scales == 0 ? extent / scales : nil
    }

    /// Scales along a row of the matrix.
    private var across: Int { ceilDivide(columns, columnBlock) }

    /// Whether there is one scale per row, or one for all.
    var isByRows: Bool { columnBlock == columns && (rowBlock == 1 || rowBlock == rows) }

    /// Whether the blocks are those of this program's own int8 format.
    var isByOwnBlocks: Bool {
        func isOwn(_ block: Int, _ extent: Int) -> Bool {
            block == Int8Blocks.side || block == extent && extent <= Int8Blocks.side
        }
        return isOwn(rowBlock, rows) && isOwn(columnBlock, columns)
    }

    /// Multiplies numbers by their scales, or divides them.
    /// - Parameters:
    ///   - scales: all of them, in order.
    ///   - numbers: the rows of `range`.
    func apply(
        _ scales: [Float], to numbers: UnsafeMutableBufferPointer<Float>, rows range: Range<Int>,
        dividing: Bool = false
    ) {
        ensure(
            numbers.count == range.count * columns
                && scales.count == across * ceilDivide(rows, rowBlock)
                && range.upperBound <= rows,
            "ScaleGrid: \(numbers.count) numbers and \(scales.count) scales for \(self)")
        for row in range {
            let line = (row - range.lowerBound) * columns
            for block in 0..<across {
                let scale = scales[row / rowBlock * across + block]
                let end = min((block + 1) * columnBlock, columns)
                for index in line + block * columnBlock..<line + end {
                    numbers[index] = dividing ? numbers[index] / scale : numbers[index] * scale
                }
            }
        }
    }
}
