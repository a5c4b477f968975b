/// Applies the changes of adapters to a tensor of a model, in f32 and on all threads.

import Ground
import Tensors

/// One change of one tensor. Its shape has been checked against the tensor's.
enum Change {
    /// tensor + scale · difference
    case add(Difference, scale: Float)
    /// DoRA: with W' = tensor + scale · difference, tensor + strength · (magnitude · W' / |W'| − tensor);
    /// the norms are those of the rows, or of the columns.
    case decompose(
        Difference, scale: Float, magnitude: StoredMatrix, alongRows: Bool, strength: Float)
    /// tensor + strength · (other − tensor)
    case replace(StoredMatrix, strength: Float)

    var rows: Int {
        switch self {
        case .add(let difference, _), .decompose(let difference, _, _, _, _): difference.rows
        case .replace(let matrix, _): matrix.rows
        }
    }

    var columns: Int {
        switch self {
        case .add(let difference, _), .decompose(let difference, _, _, _, _): difference.columns
        case .replace(let matrix, _): matrix.columns
        }
    }

    /// The adapter that it comes from.
    var file: any Checkpoint {
        switch self {
        case .add(let difference, _), .decompose(let difference, _, _, _, _): difference.file
        case .replace(let matrix, _): matrix.file
        }
    }
}

/// Applies all changes to the tensor, one after the other. Sums are in f32 and do not depend on the
/// number of threads.
/// - Parameter file: the model's, for messages.
/// - Returns: the tensor as `dtype`.
/// - Throws: `.malformed` if the tensor or a change is not finite; `.incompatible` if the result is not, naming the first
///   adapter that makes it so.
func changed(
    _ tensor: Tensor, by changes: [Change], as dtype: DType, _ name: String, in file: any Checkpoint
) throws(CheckpointError) -> Tensor {
    let (rows, columns) = foldedExtents(tensor.shape.dimensions)
    var steps: [Step] = []
    for change in changes {
        ensure(
            change.rows == rows && change.columns == columns,
            "changed: '\(name)' \(tensor.shape) by [\(change.rows), \(change.columns)]")
        steps.append(try Step(change) { applied(steps, to: tensor, as: .f32) })
    }
    let result = applied(steps, to: tensor, as: dtype)
    if result.allFinite { return result }
    try requireFinite(tensor, name, in: file)
    let last = steps.indices.first { last in
        !applied(Array(steps[...last]), to: tensor, as: dtype).allFinite
    }
    throw .incompatible(
        path: changes[last ?? steps.count - 1].file.path,
        reason:
            "with it '\(name)' of \(file.path) would hold numbers that are not finite in \(dtype)")
}

private func applied(_ steps: [Step], to tensor: Tensor, as dtype: DType) -> Tensor {
    let (rows, columns) = foldedExtents(tensor.shape.dimensions)
    let flat = tensor.reshaped([rows * columns])
    return computed(tensor.shape, dtype, unit: columns) { range in
        var numbers = flat.slice(range).floats()
        let rows = range.lowerBound / columns..<range.upperBound / columns
        numbers.withUnsafeMutableBufferPointer { numbers in
            for step in steps { step.apply(rows, to: numbers) }
        }
        return numbers
    }
}

/// A change whose numbers have been read.
private enum Step {
    case add(LoadedDifference, scale: Float)
    case decomposeRows(LoadedDifference, scale: Float, magnitude: [Float], strength: Float)
    /// factors: magnitude / norm of each column
    case decomposeColumns(LoadedDifference, scale: Float, factors: [Float], strength: Float)
    case replace(LoadedFactor, strength: Float)

    /// - Parameter before: the tensor after the earlier changes, f32.
    init(_ change: Change, before: () -> Tensor) throws(CheckpointError) {
        switch change {
        case .add(let difference, let scale): self = .add(try difference.read(), scale: scale)
        case .replace(let matrix, let strength):
            self = .replace(.whole(try matrix.read()), strength: strength)
        case .decompose(let difference, let scale, let magnitude, let alongRows, let strength):
            let loaded = try difference.read()
            let magnitude = try magnitude.read().numbers
            if alongRows {
                self = .decomposeRows(
                    loaded, scale: scale, magnitude: magnitude, strength: strength)
                return
            }
            var squares = [Double](repeating: 0, count: difference.columns)
            let sum = applied([.add(loaded, scale: scale)], to: before(), as: .f32)
            for (index, value) in sum.floats().enumerated() {
                squares[index % difference.columns] += Double(value) * Double(value)
            }
            self = .decomposeColumns(
                loaded, scale: scale, factors: zip(magnitude, squares).map(Self.factor),
                strength: strength)
        }
    }

    private static func factor(_ magnitude: Float, _ squares: Double) -> Float {
        squares > 0 ? Float(Double(magnitude) / squares.squareRoot()) : 0
    }

    /// numbers: [rows.count, columns]
    func apply(_ rows: Range<Int>, to numbers: UnsafeMutableBufferPointer<Float>) {
        let columns = numbers.count / max(rows.count, 1)
        switch self {
        case .add(let difference, let scale): difference.add(rows, scale: scale, to: numbers)
        case .replace(let other, let strength):
            for index in numbers.indices { numbers[index] *= 1 - strength }
            other.add(rows, scale: strength, to: numbers)
        case .decomposeRows(let difference, let scale, let magnitude, let strength):
            let before = Array(numbers)
            difference.add(rows, scale: scale, to: numbers)
            for row in 0..<rows.count {
                let range = row * columns..<(row + 1) * columns
                let squares = range.reduce(0) { $0 + Double(numbers[$1]) * Double(numbers[$1]) }
                let factor = Self.factor(magnitude[rows.lowerBound + row], squares)
                for index in range {
                    numbers[index] =
                        before[index] + strength * (factor * numbers[index] - before[index])
                }
            }
        case .decomposeColumns(let difference, let scale, let factors, let strength):
            let before = Array(numbers)
            difference.add(rows, scale: scale, to: numbers)
            for index in numbers.indices {
                let factor = factors[index % columns]
                numbers[index] =
                    before[index] + strength * (factor * numbers[index] - before[index])
            }
        }
    }
}
