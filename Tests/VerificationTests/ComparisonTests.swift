/// A check that cannot fail checks nothing: limits, non-finite numbers and missing results.

import Testing

@testable import Verification

struct ComparisonTests {
    private func verdict(
        _ actual: [Double], _ expected: [Double], _ tolerance: Tolerance, loose: Bool = false
    ) -> CheckResult {
        let checks = Checks(acceptsLoose: loose)
        checks.compare("x", actual, expected, tolerance)
        return checks.results[0]
    }

    @Test func everyLimitCounts() {
        let expected = [1.0, 2, 3, 4]
        let near = [1.0, 2, 3, 4.004]
        #expect(verdict(near, expected, Tolerance(relativeL2: 1e-3)).verdict == .passed)
        #expect(verdict(near, expected, Tolerance(relativeL2: 1e-4)).verdict == .failed)
        #expect(verdict(near, expected, Tolerance(maximum: 0.005)).verdict == .passed)
        #expect(verdict(near, expected, Tolerance(maximum: 0.003)).verdict == .failed)
        #expect(verdict(near, expected, Tolerance(mean: 0.0005)).verdict == .failed)
        #expect(verdict(near, expected, Tolerance(mismatches: 0.25)).verdict == .passed)
        #expect(verdict(near, expected, Tolerance(mismatches: 0.2)).verdict == .failed)
        #expect(verdict(near, expected, .exact).verdict == .failed)
        #expect(
            verdict(near, expected, Tolerance(relativeL2: 1e-3, maximum: 0.001)).verdict == .failed)
    }

    @Test func looseLimitsAreForThoseWhoKeepMore() {
        let tolerance = Tolerance(relativeL2: 1e-6, maximum: 1e-6, looseRelativeL2: 0.1)
        #expect(verdict([1.05], [1], tolerance).verdict == .failed)
        #expect(verdict([1.05], [1], tolerance, loose: true).verdict == .passed)
        #expect(verdict([1.2], [1], tolerance, loose: true).verdict == .failed)
    }

    @Test func nonFiniteNumbersFail() {
        let wide = Tolerance(relativeL2: 1e9, maximum: 1e9)
        #expect(verdict([.nan], [1], wide).verdict == .failed)
        #expect(verdict([1], [.infinity], wide).verdict == .failed)
        #expect(verdict([.infinity], [.infinity], wide).verdict == .passed)
        #expect(verdict([.nan, 1], [.nan, 1], wide).verdict == .passed)
    }

    @Test func anotherCountFails() {
        #expect(verdict([1], [1, 2], Tolerance(relativeL2: 1)).verdict == .failed)
    }

    @Test func aCaseWithoutChecksFails() {
        let result = CaseResult(group: "", name: "x", operation: "x", checks: [], seconds: 0)
        #expect(result.verdict == .failed)
    }

    @Test func unknownLimitsAreErrors() {
        #expect(throws: FixtureError.self) { try Tolerance(.object(["about": .number(1)])) }
    }

    @Test func numbersAreShort() {
        #expect(brief(0) == "0")
        #expect(brief(0.000123456) == "1.23e-4")
        #expect(brief(0.0123456) == "0.0123")
        #expect(brief(41.23) == "41.2")
        #expect(brief(1234) == "1230")
        #expect(brief(-2) == "-2")
    }
}
