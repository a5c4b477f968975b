/// Collects the checks of one case against its tolerances.

import Tensors

/// The results of a case so far.
final class Checks {
    /// Whether results may use `loose_rel_l2`, for engines that keep more precision than the reference.
    let acceptsLoose: Bool
    private(set) var results: [CheckResult] = []

    init(acceptsLoose: Bool) { self.acceptsLoose = acceptsLoose }

    /// Compares a result with the fixture's tensor `name`. `actual`: host memory, any shape of equal count.
    func compare(_ name: String, _ actual: Tensor, in fixture: Fixture) throws {
        try compare(name, actual.doubles(), in: fixture)
    }

    func compare(_ name: String, _ actual: [Double], in fixture: Fixture) throws {
        let expected = try fixture.tensor(name)
        guard let tolerance = fixture.tolerance(for: name) else {
            return skip(name, "the fixture gives no tolerance")
        }
        compare(name, actual, expected.doubles(), tolerance)
    }

    /// Like ``compare(_:_:in:)``, for results of 8-bit layers. A single code on a rounding boundary can
    /// move the whole result by more than the limit, though both ways of rounding are right. So it is
    /// enough if one of `others`, made with f32 results that differ in their last places, is within it.
    /// - Parameter others: computes the result for a seed.
    func compare(
        _ name: String, _ actual: Tensor, in fixture: Fixture, others: (UInt64) throws -> Tensor
    ) throws {
        try compare(name, actual, in: fixture)
        guard let first = results.last, first.verdict == .failed, let measure = first.measure,
            let measured = first.measured
        else { return }
        for seed in 1...Self.otherCount {
            try compare(name, try others(seed), in: fixture)
            var other = results.removeLast()
            guard other.verdict == .passed else { continue }
            other.hangsOnRounding = true
            other.note =
                "\(measure) \(brief(measured)) unchanged: an 8-bit code lies on a rounding boundary; "
                + "this is with f32 results changed in their last places (seed \(seed))"
            results[results.count - 1] = other
            return
        }
    }

    /// Enough for four codes on a boundary.
    private static let otherCount: UInt64 = 64

    func compare(
        _ name: String, _ actual: [Double], _ expected: [Double], _ tolerance: Tolerance
    ) {
        guard actual.count == expected.count else {
            return fail(name, "\(actual.count) elements, expected \(expected.count)")
        }
        let difference = Difference(actual, expected)
        var result = CheckResult(name: name, verdict: .failed)
        if difference.satisfies(tolerance) {
            result.verdict = .passed
            result.describe(difference, tolerance)
        } else if acceptsLoose, let loose = tolerance.looseRelativeL2,
            difference.relativeL2 <= loose
        {
            result.verdict = .passed
            result.describe(difference, Tolerance(relativeL2: loose))
            result.note = "allowed for an engine that keeps more precision"
        } else {
            result.describe(difference, tolerance)
            result.note =
                "element \(difference.worst) is \(actual[difference.worst]), "
                + "expected \(expected[difference.worst])"
            if difference.nonFinite > 0 {
                result.note! += "; \(difference.nonFinite) elements are not finite"
            }
        }
        results.append(result)
    }

    func skip(_ name: String, _ reason: String) {
        results.append(CheckResult(name: name, verdict: .skipped, note: reason))
    }

    func pass(_ name: String, _ note: String) {
        results.append(CheckResult(name: name, verdict: .passed, note: note))
    }

    func fail(_ name: String, _ reason: String) {
        results.append(CheckResult(name: name, verdict: .failed, note: reason))
    }

    /// Checks that a statement is true; `note` says what was found if it is not.
    func expect(_ isTrue: Bool, _ name: String, _ note: @autoclosure () -> String) {
        results.append(
            CheckResult(
                name: name, verdict: isTrue ? .passed : .failed, note: isTrue ? nil : note()))
    }

    /// Fails for every expected result that was neither compared nor skipped.
    func finish(_ fixture: Fixture) {
        let seen = Set(results.map(\.name))
        for name in fixture.expectedNames where !seen.contains(name) {
            fail(name, "this program does not compute it")
        }
    }
}

extension CheckResult {
    /// Keeps the measure that came closest to its limit.
    fileprivate mutating func describe(_ difference: Difference, _ tolerance: Tolerance) {
        var candidates: [(String, Double, Double)] = []
        if tolerance.isExact { candidates.append(("mismatches", difference.mismatches, 0)) }
        if let limit = tolerance.relativeL2 {
            candidates.append(("rel_l2", difference.relativeL2, limit))
        }
        if let limit = tolerance.maximum {
            candidates.append(("max_abs", difference.maximum, limit))
        }
        if let limit = tolerance.mean { candidates.append(("mean_abs", difference.mean, limit)) }
        if let limit = tolerance.mismatches {
            candidates.append(("mismatches", difference.mismatches, limit))
        }
        var most = -1.0
        for (name, value, limit) in candidates {
            let usage = value == 0 ? 0 : limit == 0 ? .infinity : value / limit
            guard usage > most else { continue }
            most = usage
            (measure, measured, allowed) = (name, value, limit)
        }
    }
}
