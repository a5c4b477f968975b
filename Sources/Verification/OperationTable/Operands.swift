/// The inputs of a row of the table: the same numbers on every device, of which a slow device may get only a sample.

import Ground
import Tensors

/// One axis of an input.
struct Axis {
    let count: Int
    /// The entries that are generated.
    let kept: [Range<Int>]

    init(_ count: Int) { self.init(count, kept: [0..<count]) }

    init(_ count: Int, kept: [Range<Int>]) {
        self.count = count
        self.kept = kept
    }

    var keptCount: Int { kept.reduce(0) { $0 + $1.count } }
}

/// Makes the inputs of one row on one device.
///
/// Element i of an input is number i modulo `period` of the input's own random sequence. So any part of a tensor of
/// any size can be made without the rest: along long axes, the reference computes only the entries that are compared.
final class Operands {
    /// What a large result is compared with on the device itself.
    struct Substitute {
        let name: String
        let tolerance: Tolerance
        let launch: () -> Tensor
    }

    /// A prime, so that rows, blocks and tiles of a large tensor all differ.
    private static let period = 1_048_573

    let device: any Backend
    /// Another way to compute a large result, for operations that cannot be computed in part.
    var substitute: Substitute?

    private let samples: Bool
    private let isCut: Bool
    private var random: SplitMix64
    /// For each axis of the result: the entries that are compared, in a whole result and in a cut one.
    private var compared: [Int: (whole: [Int], cut: [Int])] = [:]

    /// - Parameters:
    ///   - samples: whether long axes are compared in parts.
    ///   - isCut: whether only those parts are made.
    init(on device: any Backend, seed: UInt64, samples: Bool, isCut: Bool = false) {
        self.device = device
        self.samples = samples
        self.isCut = isCut
        random = SplitMix64(seed: seed)
    }

    // MARK: Axes

    /// An axis along which each entry of the result comes from the same entry of the inputs.
    /// - Parameters:
    ///   - index: its place in the result.
    ///   - part: three parts of this many entries are sampled, each starting at a multiple of it.
    func axis(_ index: Int, _ count: Int, part: Int = 128) -> Axis {
        guard samples, count > 4 * part else { return Axis(count) }
        let kept = [0, count / 2 / part * part, (count - 1) / part * part].map {
            $0..<min($0 + part, count)
        }
        let whole = kept.flatMap { $0 }
        compared[index] = (whole, Array(whole.indices))
        return isCut ? Axis(count, kept: kept) : Axis(count)
    }

    /// An axis along which a window slides, and the resulting axis of the result. Both ends are sampled; entries that
    /// touch the cut between them are not compared.
    func window(_ index: Int, _ count: Int, to outputs: Int) -> (input: Axis, output: Axis) {
        let (end, reach) = (8, 8 * outputs / count)
        guard samples, count > 4 * end else { return (Axis(count), Axis(outputs)) }
        compared[index] = (
            Array(0..<reach - 1) + (outputs - reach + 1..<outputs),
            Array(0..<reach - 1) + (reach + 1..<2 * reach)
        )
        guard isCut else { return (Axis(count), Axis(outputs)) }
        return (
            Axis(count, kept: [0..<end, count - end..<count]),
            Axis(outputs, kept: [0..<reach, outputs - reach..<outputs])
        )
    }

    // MARK: Inputs

    /// Approximately normal numbers (sums of four uniform ones), times `scale`, plus `offset`.
    func normal(
        _ axes: [Axis], _ dtype: DType = .f32, scale: Float = 1, offset: Float = 0
    ) -> Tensor {
        let shape = Shape(axes.map(\.keptCount))
        let whole = axes.reduce(1) { $0 * $1.count }
        if !device.readsNumbers { return device.place(.outline(shape, dtype), as: dtype) }
        let numbers = (0..<min(whole, Self.period)).map { _ in random.normal() * scale + offset }
        func placed(_ values: [Float], _ shape: Shape) -> Tensor {
            device.place(Tensor(values, shape).converted(to: dtype), as: dtype)
        }
        if shape.count < whole {
            let places = Self.places(axes.map { ($0.count, $0.kept.flatMap { $0 }) })
            return placed(places.map { numbers[$0 % Self.period] }, shape)
        }
        if whole <= Self.period { return placed(numbers, shape) }
        let once = placed(numbers, [Self.period])
        let rest = once.slice(0..<whole % Self.period)
        let parts = [Tensor](repeating: once, count: whole / Self.period) + [rest]
        return device.concatenate(parts).reshaped(shape)
    }

    func normal(_ shape: [Int], _ dtype: DType = .f32, scale: Float = 1, offset: Float = 0)
        -> Tensor
    {
        normal(shape.map { Axis($0) }, dtype, scale: scale, offset: offset)
    }

    /// Normal numbers in a tensor that stays on the host.
    func host(_ shape: [Int], _ dtype: DType) -> Tensor {
        let shape = Shape(shape)
        if !device.readsNumbers { return .outline(shape, dtype) }
        return Tensor((0..<shape.count).map { _ in random.normal() }, shape).converted(to: dtype)
    }

    func integers(_ count: Int, below bound: Int) -> [Int32] {
        (0..<count).map { _ in Int32(random.next() % UInt64(bound)) }
    }

    // MARK: Results

    /// The compared elements of a result, row-major; 8-bit codes times their scales.
    func values(of result: Tensor) -> [Double] {
        let (codes, scales) = parts(of: result)
        let lists = (0..<result.shape.rank).map { index in
            compared[index].map { isCut ? $0.cut : $0.whole } ?? Array(0..<result.shape[index])
        }
        let width = result.shape.tail.count
        let columns = Self.places(
            zip(result.shape.dimensions, lists).dropFirst().map { ($0, $1) })
        let factors = scales.map { device.read($0).doubles() }
        let blocks = ceilDivide(result.shape.columns, 128)
        var values: [Double] = []
        values.reserveCapacity(lists[0].count * columns.count)
        for run in Self.runs(lists[0]) {
            let elements = device.read(codes.slice(run)).doubles()
            for row in run {
                let start = (row - run.lowerBound) * width
                for column in columns {
                    let factor =
                        switch codes.dtype {
                        case .i8: factors?[row / 128 * blocks + column / 128]
                        default: factors?[row]
                        }
                    values.append(elements[start + column] * (factor ?? 1))
                }
            }
        }
        return values
    }

    /// Whether two results have the same bits.
    func isRepeated(_ a: Tensor, by b: Tensor) -> Bool {
        let (a, b) = (parts(of: a), parts(of: b))
        guard device.equalBits(a.codes, b.codes) else { return false }
        guard let scales = a.scales, let others = b.scales else { return true }
        return device.equalBits(scales, others)
    }

    /// The parts of a result: its elements or codes, and the scales of the codes.
    private func parts(of result: Tensor) -> (codes: Tensor, scales: Tensor?) {
        let type = Operation.ResultType(result.shape, result.dtype, result.format)
        let count = (type.scaleBytes ?? 0) / 4
        return (
            Tensor(
                result.shape, result.dtype, storage: result.storage, byteOffset: result.byteOffset),
            result.scales.map { Tensor([count], .f32, storage: $0) }
        )
    }

    /// Flat indices of the elements at the listed entries of each axis. axes: (count, entries)
    private static func places(_ axes: [(Int, [Int])]) -> [Int] {
        axes.reduce([0]) { starts, axis in
            starts.flatMap { start in axis.1.map { start * axis.0 + $0 } }
        }
    }

    /// Ascending numbers as ranges without gaps.
    private static func runs(_ numbers: [Int]) -> [Range<Int>] {
        numbers.reduce(into: []) { runs, number in
            if runs.last?.upperBound == number {
                runs[runs.count - 1] = runs[runs.count - 1].lowerBound..<number + 1
            } else {
                runs.append(number..<number + 1)
            }
        }
    }
}

extension SplitMix64 {
    /// The sum of four uniform numbers, of variance 1.
    fileprivate mutating func normal() -> Float {
        let bits = next()
        var sum: Float = 0
        for part in 0..<4 {
            let word = UInt16(truncatingIfNeeded: bits >> UInt64(16 * part))
            sum += Float(word) * 0x1p-16 - 0.5
        }
        return sum * 1.7320508
    }
}
