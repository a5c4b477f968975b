/// The results of a verification: one line per case, and details of what failed.

/// One tensor or statement that was checked.
public struct CheckResult: Sendable, Codable, Equatable {
    public enum Verdict: String, Sendable, Codable { case passed, failed, skipped }

    public var name: String
    public var verdict: Verdict
    /// The name of the measure that is closest to its limit or furthest beyond it, such as "rel_l2".
    public var measure: String?
    public var measured: Double?
    public var allowed: Double?
    /// Why it failed or was skipped, or under which rule it passed.
    public var note: String?
    /// Whether it passed only with f32 results that differ in their last places: it depends on a rounding boundary.
    public var hangsOnRounding = false

    /// measured / allowed; 0 if there is nothing to compare.
    var usage: Double {
        guard let measured, let allowed else { return 0 }
        if measured == 0 { return 0 }
        return allowed == 0 ? .infinity : measured / allowed
    }
}

/// All checks of one case.
public struct CaseResult: Sendable, Codable, Equatable {
    public var group: String
    public var name: String
    public var operation: String
    public var checks: [CheckResult]
    public var seconds: Double
    /// How long one launch takes, if it was timed.
    public var time: OperationTime?

    public var id: String { group.isEmpty ? name : "\(group)/\(name)" }

    public var verdict: CheckResult.Verdict {
        if checks.contains(where: { $0.verdict == .failed }) || checks.isEmpty { return .failed }
        return checks.contains { $0.verdict == .passed } ? .passed : .skipped
    }

    /// The case, failed: its process did not survive it.
    public func ended(because reason: String) -> CaseResult {
        var result = self
        result.checks = [
            CheckResult(name: "case", verdict: .failed, note: "it ended the process: \(reason)")
        ]
        return result
    }

    /// The check that came closest to its limit.
    public var tightest: CheckResult? {
        checks.filter { $0.verdict != .skipped }.max { $0.usage < $1.usage }
    }

    /// "ok    attention/x  rel_l2 0.0012 of 0.006 (out.sla.o), 21 checks"
    public var line: String {
        let mark =
            switch verdict {
            case .passed: "ok  "
            case .failed: "FAIL"
            case .skipped: "skip"
            }
        var parts: [String] = []
        if let tightest, let measure = tightest.measure, let measured = tightest.measured,
            let allowed = tightest.allowed
        {
            parts.append(
                "\(measure) \(brief(measured)) of \(brief(allowed)) (\(tightest.name))")
        }
        if let time { parts.append(time.line) }
        let passed = checks.count { $0.verdict == .passed }
        parts.append("\(passed) of \(checks.count) checks passed")
        let skipped = checks.count { $0.verdict == .skipped }
        if skipped > 0 { parts.append("\(skipped) skipped") }
        return "\(mark) \(id)  " + parts.joined(separator: ", ")
    }

    /// One line for each failed check.
    public var failures: [String] {
        if checks.isEmpty { return ["nothing was checked"] }
        return checks.filter { $0.verdict == .failed }.map { check in
            var text = check.name
            if let measure = check.measure, let measured = check.measured,
                let allowed = check.allowed
            {
                text += ": \(measure) \(brief(measured)), allowed \(brief(allowed))"
            }
            if let note = check.note { text += ": \(note)" }
            return text
        }
    }
}

/// A number with three significant digits, independent of the locale.
func brief(_ value: Double) -> String {
    guard value.isFinite, value != 0 else { return value == 0 ? "0" : "\(value)" }
    var exponent = 0
    var mantissa = abs(value)
    while mantissa >= 10 {
        mantissa /= 10
        exponent += 1
    }
    while mantissa < 1 {
        mantissa *= 10
        exponent -= 1
    }
    let digits = (mantissa * 100).rounded() / 100
    let sign = value < 0 ? "-" : ""
    if (-2...3).contains(exponent) {
        let places = 2 - exponent
        var scale = 1.0
        for _ in 0..<abs(places) { scale *= 10 }
        let rounded =
            places >= 0
            ? (abs(value) * scale).rounded() / scale : (abs(value) / scale).rounded() * scale
        return sign + trimmed(rounded)
    }
    return sign + trimmed(digits) + "e\(exponent)"
}

private func trimmed(_ value: Double) -> String {
    value == value.rounded() ? "\(Int(value))" : "\(value)"
}
