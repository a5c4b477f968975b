/// Adding low-rank and full differences to a tensor: at load a model's every matrix comes through
/// here, so it is done on all threads, in memory that does not grow with the model.

import Tensors

/// The tensor with all changes, in its own type. Sums are in f32 and do not depend on the number
/// of threads.
/// - Throws: `.malformed` where a difference holds infinities or NaNs.
func changed(_ tensor: Tensor, by changes: [Change]) throws(CheckpointError) -> Tensor {
    let rows = tensor.shape.rank == 0 ? 1 : max(tensor.shape[0], 1)
    let columns = tensor.shape.count / rows
    guard columns > 0 else { return tensor }
    var additions: [Addition] = []
    for change in changes { additions.append(try Addition(change, columns)) }
    let flat = tensor.reshaped([tensor.shape.count])
    return computed(tensor.shape, tensor.dtype, unit: columns) { range in
        var sum = flat.slice(range).floats()
        let rows = range.lowerBound / columns..<range.upperBound / columns
        sum.withUnsafeMutableBufferPointer { sum in
            for addition in additions { addition.add(rows, to: sum) }
        }
        return sum
    }
}

/// A change with its numbers at hand.
private enum Addition {
    case lowRank(LowRankProduct)
    /// difference: [rows, columns]
    case full(difference: [Float], columns: Int, scale: Float)

    init(_ change: Change, _ columns: Int) throws(CheckpointError) {
        switch change {
        case .full(let file, let name, let scale):
            self = .full(
                difference: try finite(name, in: file).floats(), columns: columns, scale: scale)
        case .lowRank(let file, let up, let down, let scale):
            self = .lowRank(
                LowRankProduct(
                    up: try finite(up, in: file), down: try finite(down, in: file).floats(),
                    columns: columns, scale: scale))
        }
    }

    /// sum: the numbers of `rows`
    func add(_ rows: Range<Int>, to sum: UnsafeMutableBufferPointer<Float>) {
        switch self {
        case .lowRank(let product): product.add(rows, to: sum)
        case .full(let difference, let columns, let scale):
            let start = rows.lowerBound * columns
            difference.withUnsafeBufferPointer { difference in
                for index in sum.indices { sum[index] += scale * difference[start + index] }
            }
        }
    }
}

private func finite(
    _ name: String, in file: any Checkpoint
) throws(CheckpointError) -> Tensor {
    let tensor = try file.require(name)
    guard tensor.floats().allSatisfy(\.isFinite) else {
        throw .malformed(path: file.path, reason: "'\(name)' holds infinities or NaNs")
    }
    return tensor
}

/// scale · up · down, a few rows at a time.
private struct LowRankProduct {
    /// Columns of one panel: two vectors, which four rows keep in registers.
    private static let width = 16
    private static let rowsAtOnce = 4
    private typealias Vector = SIMD8<Float>

    private let rank, columns: Int
    private let scale: Float
    /// [rows, rank]
    private let up: [Float]
    /// `down` cut into panels of 16 columns, each of which stays in the nearest cache while rows go
    /// past it: [panels, rank, 16], with zeros past the last column.
    private let panels: [Float]

    /// up: [rows, rank], down: [rank, columns]
    init(up: Tensor, down: [Float], columns: Int, scale: Float) {
        rank = down.count / columns
        self.columns = columns
        self.scale = scale
        self.up = up.floats()
        let width = Self.width
        var panels = [Float](
            repeating: 0, count: (columns + width - 1) / width * width * rank)
        for k in 0..<rank {
            for column in 0..<columns {
                panels[(column / width * rank + k) * width + column % width] =
                    down[k * columns + column]
            }
        }
        self.panels = panels
    }

    func add(_ rows: Range<Int>, to sum: UnsafeMutableBufferPointer<Float>) {
        up.withUnsafeBufferPointer { up in
            panels.withUnsafeBytes { panels in
                for first in stride(from: 0, to: columns, by: Self.width) {
                    let panel = panels.baseAddress! + first * rank * MemoryLayout<Float>.stride
                    var row = rows.lowerBound
                    while row < rows.upperBound {
                        let count = min(Self.rowsAtOnce, rows.upperBound - row)
                        add(
                            panel, up.baseAddress! + row * rank, count,
                            to: sum.baseAddress! + (row - rows.lowerBound) * columns + first,
                            width: min(Self.width, columns - first))
                        row += count
                    }
                }
            }
        }
    }

    /// Up to four rows of one panel. Rows past `count` repeat the last one and are not stored.
    @inline(__always)
    private func add(
        _ panel: UnsafeRawPointer, _ up: UnsafePointer<Float>, _ count: Int,
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
        store(a0, b0, to: sum, width)
        if count > 1 { store(a1, b1, to: sum + columns, width) }
        if count > 2 { store(a2, b2, to: sum + 2 * columns, width) }
        if count > 3 { store(a3, b3, to: sum + 3 * columns, width) }
    }

    @inline(__always)
    private func store(
        _ a: Vector, _ b: Vector, to sum: UnsafeMutablePointer<Float>, _ width: Int
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
