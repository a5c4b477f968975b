/// The weight differences that adapters store in factored form: their shapes, from headers, and their numbers.

import Ground
import Tensors

/// A tensor of an adapter as a matrix: the first axis is the rows, the other axes together the columns.
struct StoredMatrix {
    let file: any Checkpoint
    let name: String
    let rows, columns: Int

    init(_ name: String, in file: any Checkpoint) throws(CheckpointError) {
        let shape = file.info(name)?.shape ?? []
        let (rows, columns) = foldedExtents(shape)
        guard !shape.isEmpty, rows > 0, columns > 0 else {
            throw .incompatible(path: file.path, reason: "'\(name)' \(shape) is not a matrix")
        }
        self.init(name, in: file, rows: rows, columns: columns)
    }

    /// The same elements under other extents with the same product.
    init(_ name: String, in file: any Checkpoint, rows: Int, columns: Int) {
        self.file = file
        self.name = name
        self.rows = rows
        self.columns = columns
    }

    /// - Throws: `.malformed` if a number is not finite.
    func read() throws(CheckpointError) -> Matrix {
        let tensor = try file.require(name)
        try requireFinite(tensor, name, in: file)
        return Matrix(rows: rows, columns: columns, tensor.floats())
    }
}

/// [out, in, kernel…] → (out, in · kernel…); a vector is one column.
func foldedExtents(_ shape: [Int]) -> (rows: Int, columns: Int) {
    (shape.first ?? 1, shape.dropFirst().reduce(1, *))
}

/// - Throws: `.malformed` if the tensor contains infinities or NaNs, as f32 at most.
func requireFinite(
    _ tensor: Tensor, _ name: String, in file: any Checkpoint
) throws(CheckpointError) {
    guard tensor.allFinite else {
        throw .malformed(path: file.path, reason: "'\(name)' holds infinities or NaNs")
    }
}

/// A matrix that is stored as it is or as the product of two.
enum Factor {
    case whole(StoredMatrix)
    case product(StoredMatrix, StoredMatrix)

    /// - Throws: `.incompatible` if the shapes of the two cannot be multiplied.
    static func product(
        _ a: String, _ b: String, in file: any Checkpoint
    ) throws(CheckpointError) -> Factor {
        let (a, b) = (try StoredMatrix(a, in: file), try StoredMatrix(b, in: file))
        guard a.columns == b.rows else {
            throw .incompatible(
                path: file.path,
                reason: "'\(a.name)' [\(a.rows), \(a.columns)] and '\(b.name)' "
                    + "[\(b.rows), \(b.columns)] do not multiply")
        }
        return .product(a, b)
    }

    var rows: Int {
        switch self {
        case .whole(let matrix), .product(let matrix, _): matrix.rows
        }
    }

    var columns: Int {
        switch self {
        case .whole(let matrix), .product(_, let matrix): matrix.columns
        }
    }

    var file: any Checkpoint {
        switch self {
        case .whole(let matrix), .product(let matrix, _): matrix.file
        }
    }

    /// nil if the matrix is stored as it is.
    var rank: Int? {
        guard case .product(let a, _) = self else { return nil }
        return a.columns
    }

    func read() throws(CheckpointError) -> LoadedFactor {
        switch self {
        case .whole(let matrix): .whole(try matrix.read())
        case .product(let a, let b):
            .product(LowRankProduct(up: try a.read(), down: try b.read()), rows: a.rows)
        }
    }
}

/// The numbers of a factor.
enum LoadedFactor {
    case whole(Matrix)
    case product(LowRankProduct, rows: Int)

    /// sum += scale · self[rows]. sum: [rows.count, columns]
    func add(_ rows: Range<Int>, scale: Float, to sum: UnsafeMutableBufferPointer<Float>) {
        switch self {
        case .product(let product, _): product.add(rows, scale: scale, to: sum)
        case .whole(let matrix):
            let part = rows.lowerBound * matrix.columns..<rows.upperBound * matrix.columns
            ensure(
                matrix.numbers.indices.contains(part) && part.count == sum.count,
                "LoadedFactor: rows \(rows) of \(matrix.rows), \(sum.count) numbers")
            matrix.numbers.withUnsafeBufferPointer { numbers in
                for index in 0..<part.count {
                    sum[index] += scale * numbers[part.lowerBound + index]
                }
            }
        }
    }

    /// The whole matrix, multiplied out.
    func matrix() -> Matrix {
        switch self {
        case .whole(let matrix): return matrix
        case .product(let product, let rows):
            var numbers = [Float](repeating: 0, count: rows * product.columns)
            numbers.withUnsafeMutableBufferPointer { product.add(0..<rows, scale: 1, to: $0) }
            return Matrix(rows: rows, columns: product.columns, numbers)
        }
    }
}

/// What an adapter adds to a matrix.
enum Difference {
    /// A low-rank product (LoRA), or the full difference.
    case factor(Factor)
    /// The elementwise product of two matrices: LoHa.
    case elementwise(Factor, Factor)
    /// The Kronecker product: LoKr.
    case kronecker(Factor, Factor)

    var rows: Int {
        switch self {
        case .factor(let factor), .elementwise(let factor, _): factor.rows
        case .kronecker(let a, let b): a.rows * b.rows
        }
    }

    var columns: Int {
        switch self {
        case .factor(let factor), .elementwise(let factor, _): factor.columns
        case .kronecker(let a, let b): a.columns * b.columns
        }
    }

    /// The adapter that it comes from.
    var file: any Checkpoint {
        switch self {
        case .factor(let factor), .elementwise(let factor, _), .kronecker(let factor, _):
            factor.file
        }
    }

    func read() throws(CheckpointError) -> LoadedDifference {
        switch self {
        case .factor(let factor): .factor(try factor.read())
        case .elementwise(let a, let b): .elementwise(try a.read(), try b.read())
        case .kronecker(let a, let b): .kronecker(try a.read().matrix(), try b.read().matrix())
        }
    }
}

/// The numbers of a difference.
enum LoadedDifference {
    case factor(LoadedFactor)
    case elementwise(LoadedFactor, LoadedFactor)
    case kronecker(Matrix, Matrix)

    /// sum += scale · self[rows]. sum: [rows.count, columns]
    func add(_ rows: Range<Int>, scale: Float, to sum: UnsafeMutableBufferPointer<Float>) {
        switch self {
        case .factor(let factor): factor.add(rows, scale: scale, to: sum)
        case .elementwise(let a, let b):
            func numbers(_ factor: LoadedFactor) -> [Float] {
                var numbers = [Float](repeating: 0, count: sum.count)
                numbers.withUnsafeMutableBufferPointer { factor.add(rows, scale: 1, to: $0) }
                return numbers
            }
            for (index, (x, y)) in zip(numbers(a), numbers(b)).enumerated() {
                sum[index] += scale * x * y
            }
        case .kronecker(let a, let b):
            let columns = a.columns * b.columns
            for row in rows {
                let start = (row - rows.lowerBound) * columns
                for j in 0..<a.columns {
                    let factor = scale * a.numbers[row / b.rows * a.columns + j]
                    let line = row % b.rows * b.columns
                    for k in 0..<b.columns {
                        sum[start + j * b.columns + k] += factor * b.numbers[line + k]
                    }
                }
            }
        }
    }
}
