/// Small arithmetic that several rooms need.

/// How many pieces of size `size` hold `count` elements: `count / size`, rounded up.
/// - Parameter count: not negative.
@inlinable
@inline(__always)
public func ceilDivide<T: BinaryInteger>(_ count: T, _ size: T) -> T {
    count / size + (count % size > 0 ? 1 : 0)
}

/// The middle of the sorted values, or the mean of the two in the middle; not a number where there are none.
public func median(_ values: some Sequence<Double>) -> Double {
    let sorted = values.sorted()
    if sorted.isEmpty { return .nan }
    return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
}

/// How far numbers are from those that were expected, one pair after the other.
public struct Distance: Sendable, Equatable {
    /// Sum of (found - expected)².
    public private(set) var squaredError = 0.0
    /// Sum of expected².
    public private(set) var squaredNorm = 0.0
    /// The largest |found - expected|; infinite where one was not a number.
    public private(set) var maximum = 0.0

    public init() {}

    /// Pairs of equal infinities, or of two NaNs, are no distance apart.
    public mutating func add(_ found: Double, _ expected: Double) {
        let equal = found == expected || (found.isNaN && expected.isNaN)
        let error = equal ? 0 : found - expected
        squaredError += error * error
        if !equal || expected.isFinite { squaredNorm += expected * expected }
        if error.magnitude > maximum { maximum = error.magnitude }
        if error.isNaN { maximum = .infinity }
    }

    /// - Parameter expected: as many as `found`.
    public mutating func add(_ found: [Float], _ expected: [Float]) {
        ensure(
            found.count == expected.count, "Distance: \(found.count) and \(expected.count) values")
        for index in found.indices { add(Double(found[index]), Double(expected[index])) }
    }

    /// ||found - expected|| / ||expected||; the error itself where everything expected is 0. Not a number, or
    /// infinite, where a pair of which only one is finite was added.
    public var relative: Double {
        squaredNorm > 0 ? (squaredError / squaredNorm).squareRoot() : squaredError.squareRoot()
    }
}
