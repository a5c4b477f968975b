/// How two checkpoints differ: names, shapes, types and values.

import Ground
import Tensors

/// The differences of two checkpoints, tensor by tensor.
public struct CheckpointDifference: Sendable {
    public struct Change: Sendable, Hashable {
        public let name: String
        public let first, second: TensorInfo
        /// Of the values as real numbers; nil where the shapes differ or the values were not
        /// compared.
        public let largest: Double?
        /// ||first - second|| / ||second||
        public let relative: Double?
    }

    /// In the order of the file that has them.
    public private(set) var onlyInFirst: [TensorInfo] = []
    public private(set) var onlyInSecond: [TensorInfo] = []
    /// Tensors of both with another shape, type or value.
    public private(set) var changes: [Change] = []
    /// Tensors of both without any difference.
    public private(set) var equal = 0

    public var isEmpty: Bool { onlyInFirst.isEmpty && onlyInSecond.isEmpty && changes.isEmpty }

    /// - Parameters:
    ///   - values: compare the elements too, which reads both files wholly.
    ///   - progress: is told the share of the bytes compared so far.
    public init(
        _ first: any Checkpoint, _ second: any Checkpoint, values: Bool = true,
        progress: (Double) -> Void = { _ in }
    ) throws(CheckpointError) {
        let total = first.names.reduce(0) { $0 + (first.info($1)?.byteCount ?? 0) }
        var done = 0
        for name in first.names {
            guard let a = first.info(name) else { continue }
            guard let b = second.info(name) else {
                onlyInFirst.append(a)
                continue
            }
            var distance: Distance?
            if values, a.shape == b.shape, let x = try first.tensor(name),
                let y = try second.tensor(name)
            {
                distance = Self.distance(x, y)
                first.forget(name)
                second.forget(name)
            }
            if a.shape == b.shape, a.dtype == b.dtype, distance?.maximum ?? 0 == 0 {
                equal += 1
            } else {
                changes.append(
                    Change(
                        name: name, first: a, second: b, largest: distance?.maximum,
                        relative: distance?.relative))
            }
            done += a.byteCount
            progress(Double(done) / Double(max(total, 1)))
        }
        onlyInSecond = second.names.filter { first.info($0) == nil }
            .compactMap { second.info($0) }
    }

    /// In pieces that fit the cache.
    private static func distance(_ x: Tensor, _ y: Tensor) -> Distance {
        let count = x.shape.count
        let x = x.reshaped([count])
        let y = y.reshaped([count])
        var distance = Distance()
        var start = 0
        while start < count {
            let end = min(start + 1 << 16, count)
            distance.add(x.slice(start..<end).floats(), y.slice(start..<end).floats())
            start = end
        }
        return distance
    }
}
