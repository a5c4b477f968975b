/// How two checkpoints differ: names, shapes, types and values.

import Ground
import Tensors

/// The differences of two checkpoints, tensor by tensor.
public struct CheckpointDifference: Sendable {
    /// A tensor that both have.
    public struct Comparison: Sendable, Hashable {
        public let name: String
        public let first, second: TensorInfo
        /// The distance of the values; nil if the shapes differ or values were not compared.
        public let distance: ValueDistance?

        public var isEqual: Bool {
            first.shape == second.shape && first.dtype == second.dtype
                && distance?.isEqual ?? true
        }
    }

    /// How far the values of two tensors of one shape are apart.
    public struct ValueDistance: Sendable, Hashable {
        /// The largest absolute difference; infinite if only one of two values is a finite number. One that f64 does not
        /// hold is its largest number.
        public let largest: Double
        /// ||first - second|| / ||second||, over the pairs of finite numbers.
        public let relative: Double
        /// The number of pairs of which only one is finite, or whose infinities differ.
        public let nonFinite: Int
        /// Whether the values are the same, though perhaps not the bits (zeros, NaNs).
        public let isEqual: Bool
    }

    /// In the order of the file that has them.
    public private(set) var onlyInFirst: [TensorInfo] = []
    public private(set) var onlyInSecond: [TensorInfo] = []
    /// Tensors in both, in the order of the first file.
    public private(set) var common: [Comparison] = []
    /// Tensors that were not compared because their element type is not supported.
    public private(set) var notCompared: [String] = []

    /// Tensors in both that differ in shape, type or value.
    public var changes: [Comparison] { common.filter { !$0.isEqual } }
    /// The number of tensors in both without any difference.
    public var equal: Int { common.count { $0.isEqual } }

    public var isEmpty: Bool {
        onlyInFirst.isEmpty && onlyInSecond.isEmpty && notCompared.isEmpty
            && common.allSatisfy(\.isEqual)
    }

    /// - Parameters:
    ///   - values: whether to compare the elements too, which reads both files completely.
    ///   - progress: called with the share of the bytes compared so far, 0...1.
    /// - Throws: `.malformed` for damaged tensors.
    public init(
        _ first: any Checkpoint, _ second: any Checkpoint, values: Bool = true,
        progress: (Double) -> Void = { _ in }
    ) throws(CheckpointError) {
        let total = first.infos.reduce(0) { $0 + $1.byteCount }
        var done = 0
        for a in first.infos {
            guard let b = second.info(a.name) else {
                onlyInFirst.append(a)
                continue
            }
            var distance: ValueDistance?
            if values, a.shape == b.shape {
                distance = ValueDistance(
                    try first.require(a.name), try second.require(a.name))
                first.forget(a.name)
                second.forget(a.name)
            }
            common.append(Comparison(name: a.name, first: a, second: b, distance: distance))
            done += a.byteCount
            progress(Double(done) / Double(max(total, 1)))
        }
        onlyInSecond = second.infos.filter { first.info($0.name) == nil }
        notCompared = Set(first.foreignTypes.keys).union(second.foreignTypes.keys).sorted()
    }
}

extension CheckpointDifference.ValueDistance {
    /// x, y: of one shape
    fileprivate init(_ x: Tensor, _ y: Tensor) {
        var distance = Distance()
        var nonFinite = 0
        var isEqual = true
        // Integers of more than 53 bits may differ although they are equal as doubles.
        let isExact = x.dtype != y.dtype || x.dtype != .i64
        // Squares of f64 may leave its range, those of multiples of the largest number's power of two do not.
        let hasWide = x.dtype == .f64 || y.dtype == .f64
        let unit = hasWide ? max(x.largestMagnitude, y.largestMagnitude).binade : 1
        for (a, b) in zip(x.pieces, y.pieces) {
            let (p, q) = (a.doubles(), b.doubles())
            for index in p.indices {
                let (u, v) = (p[index], q[index])
                let same = u == v || u.isNaN && v.isNaN
                isEqual = isEqual && same
                if u.isFinite && v.isFinite {
                    distance.add(u / unit, v / unit)
                } else if !same {
                    nonFinite += 1
                }
            }
            if !isExact,
                a.withElements(Int64.self, Array.init) != b.withElements(Int64.self, Array.init)
            {
                isEqual = false
            }
        }
        func inRange(_ multiple: Double) -> Double {
            min(multiple * unit, .greatestFiniteMagnitude)
        }
        largest = nonFinite > 0 ? .infinity : inRange(distance.maximum)
        relative =
            distance.squaredNorm > 0 ? distance.relative : inRange(distance.relative)
        self.nonFinite = nonFinite
        self.isEqual = isEqual
    }
}

extension Tensor {
    /// All elements, in flat pieces that fit the cache.
    var pieces: some Sequence<Tensor> {
        let flat = reshaped([shape.count])
        return stride(from: 0, to: flat.shape.count, by: 1 << 16).lazy.map { start in
            flat.slice(start..<min(start + 1 << 16, flat.shape.count))
        }
    }

    /// The largest magnitude of the finite elements; 1 if all of them are zero.
    fileprivate var largestMagnitude: Double {
        var largest = 0.0
        for piece in pieces {
            for value in piece.doubles() where value.isFinite {
                largest = max(largest, value.magnitude)
            }
        }
        return largest > 0 ? largest : 1
    }

    /// The elements of a host tensor as doubles, which are exact for every type but the widest integers.
    func doubles() -> [Double] {
        switch dtype {
        case .f64: withElements(Double.self) { Array($0) }
        case .i64: withElements(Int64.self) { $0.map(Double.init) }
        case .i32: withElements(Int32.self) { $0.map(Double.init) }
        default: floats().map(Double.init)
        }
    }
}
