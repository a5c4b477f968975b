/// How far a result may be from the expected one, and how far it is.

import Glibc
import Ground
import Tensors

/// Limits for one tensor; all that are given must hold.
public struct Tolerance: Sendable, Equatable {
    /// ||a - b|| / ||b||
    public var relativeL2: Double?
    public var maximum: Double?
    public var mean: Double?
    /// Share of elements that may differ at all.
    public var mismatches: Double?
    public var isExact = false
    /// Relative L2 for engines that keep more precision than the reference; it replaces all other limits.
    public var looseRelativeL2: Double?

    public init(
        relativeL2: Double? = nil, maximum: Double? = nil, mean: Double? = nil,
        mismatches: Double? = nil, isExact: Bool = false, looseRelativeL2: Double? = nil
    ) {
        self.relativeL2 = relativeL2
        self.maximum = maximum
        self.mean = mean
        self.mismatches = mismatches
        self.isExact = isExact
        self.looseRelativeL2 = looseRelativeL2
    }

    public static let exact = Tolerance(isExact: true)

    /// Reads the form used in fixtures. An unknown kind of limit is an error: ignoring it would weaken the check.
    init(_ json: JSON) throws {
        for (key, value) in json.object ?? [:] {
            switch key {
            case "rel_l2": relativeL2 = value.double
            case "max_abs", "abs": maximum = value.double
            case "mean_abs": mean = value.double
            case "max_mismatch_fraction": mismatches = value.double
            case "exact": isExact = value.bool ?? false
            case "loose_rel_l2": looseRelativeL2 = value.double
            default: throw FixtureError("unknown tolerance '\(key)'")
            }
        }
    }
}

/// What was measured between two tensors.
public struct Difference: Sendable, Equatable {
    public var relativeL2 = 0.0
    public var maximum = 0.0
    public var mean = 0.0
    public var mismatches = 0.0
    /// Flat index of the element that is furthest off.
    public var worst = 0
    /// Elements that are finite in only one of the two, or that differ and are finite in neither.
    public var nonFinite = 0

    init(_ actual: [Double], _ expected: [Double]) {
        ensure(actual.count == expected.count, "Difference: counts differ")
        guard !expected.isEmpty else { return }
        var distance = Distance()
        var sum = 0.0
        var different = 0
        for index in expected.indices {
            let a = actual[index]
            let b = expected[index]
            if a == b || (a.isNaN && b.isNaN) {
                distance.add(a, b)
                continue
            }
            different += 1
            guard a.isFinite, b.isFinite else {
                if nonFinite == 0 { worst = index }
                nonFinite += 1
                continue
            }
            sum += abs(a - b)
            if abs(a - b) > distance.maximum, nonFinite == 0 { worst = index }
            distance.add(a, b)
        }
        relativeL2 = distance.relative
        maximum = distance.maximum
        mean = sum / Double(expected.count)
        mismatches = Double(different) / Double(expected.count)
        if nonFinite > 0 {
            relativeL2 = .infinity
            maximum = .infinity
            mean = .infinity
        }
    }

    func satisfies(_ tolerance: Tolerance) -> Bool {
        if tolerance.isExact, mismatches > 0 { return false }
        if let limit = tolerance.relativeL2, !(relativeL2 <= limit) { return false }
        if let limit = tolerance.maximum, !(maximum <= limit) { return false }
        if let limit = tolerance.mean, !(mean <= limit) { return false }
        if let limit = tolerance.mismatches, !(mismatches <= limit) { return false }
        return true
    }
}

extension Tensor {
    /// All elements of a host tensor in row-major order; only the widest integers are rounded.
    func doubles() -> [Double] {
        switch dtype {
        case .f64: withElements(Double.self) { Array($0) }
        case .i64: withElements(Int64.self) { $0.map { Double($0) } }
        case .i32: withElements(Int32.self) { $0.map { Double($0) } }
        default: floats().map { Double($0) }
        }
    }
}
