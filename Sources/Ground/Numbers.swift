/// Arithmetic that several rooms need.

/// `count / size`, rounded up: how many pieces of `size` elements contain `count` elements.
/// - Parameter count: not negative.
@inlinable
@inline(__always)
public func ceilDivide<T: BinaryInteger>(_ count: T, _ size: T) -> T {
    count / size + (count % size > 0 ? 1 : 0)
}

/// The smallest multiple of `size` that is at least `count`.
/// - Parameter count: not negative.
@inlinable
@inline(__always)
public func roundUp<T: BinaryInteger>(_ count: T, to size: T) -> T {
    ceilDivide(count, size) * size
}

/// The median: the middle of the sorted values, or the mean of the two in the middle; NaN if there are none.
public func median(_ values: some Sequence<Double>) -> Double {
    let sorted = values.sorted()
    if sorted.isEmpty { return .nan }
    return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
}

/// The distance between found and expected numbers, which are added in pairs.
public struct Distance: Sendable, Equatable {
    /// Sum of (found - expected)².
    public private(set) var squaredError = 0.0
    /// Sum of expected².
    public private(set) var squaredNorm = 0.0
    /// The largest |found - expected|; infinite if only one of a pair is NaN.
    public private(set) var maximum = 0.0

    public init() {}

    /// Adds a pair. Equal infinities, or two NaNs, have the distance 0.
    public mutating func add(_ found: Double, _ expected: Double) {
        let equal = found == expected || (found.isNaN && expected.isNaN)
        let error = equal ? 0 : found - expected
        squaredError += error * error
        if !equal || expected.isFinite { squaredNorm += expected * expected }
        if error.magnitude > maximum { maximum = error.magnitude }
        if error.isNaN { maximum = .infinity }
    }

    /// Adds pairs.
    /// - Parameter expected: as many values as `found`.
    public mutating func add(_ found: [Float], _ expected: [Float]) {
        ensure(
            found.count == expected.count, "Distance: \(found.count) and \(expected.count) values")
        for index in found.indices { add(Double(found[index]), Double(expected[index])) }
    }

    /// ||found - expected|| / ||expected||, or ||found - expected|| if all expected values are 0. NaN or infinite if
    /// only one value of a pair is finite.
    public var relative: Double {
        squaredNorm > 0 ? (squaredError / squaredNorm).squareRoot() : squaredError.squareRoot()
    }
}
