/// How far a run has come, measured by the work of its plan.

/// Follows the events of a run. The share that is done grows by what the plan says a stage takes; the time left is what
/// stages of the same kind have taken so far, as soon as there is one.
public struct Progress: Sendable {
    /// Seconds that a stage takes on a typical machine: what counts is how stages stand to each other.
    public struct Rates: Sendable, Hashable {
        /// In a second: multiplications and additions, bytes of operands, bytes of weights that are opened.
        public var operations, traffic, weights: Double

        public init(operations: Double, traffic: Double, weights: Double) {
            self.operations = operations
            self.traffic = traffic
            self.weights = weights
        }

        public static let cpu = Rates(operations: 2.5e11, traffic: 1e10, weights: 4e8)
        public static let gpu = Rates(operations: 4e14, traffic: 2.5e12, weights: 1e10)

        func seconds(_ work: Plan.Work) -> Double {
            max(work.operations / operations, work.traffic / traffic) + work.weights / weights
                + 1e-4
        }
    }

    private struct Part {
        var expected: Double
        var measured: Double?
        var share = 0.0
    }
    private var order: [Stage]
    private var parts: [Stage: Part] = [:]
    private var highest = 0.0

    public init(_ plan: Plan, _ rates: Rates) {
        order = plan.work.map(\.stage)
        for work in plan.work { parts[work.stage] = Part(expected: rates.seconds(work)) }
    }

    public mutating func take(_ event: RunEvent) {
        switch event {
        case .stageStarted(let stage):
            // What comes before and was not told of was there already.
            guard let index = order.firstIndex(of: stage) else { return }
            for earlier in order[..<index] where parts[earlier]?.measured == nil {
                parts[earlier]?.measured = 0
            }
        case .stageProgress(let stage, let fraction):
            if fraction.isFinite { parts[stage]?.share = min(max(fraction, 0), 1) }
        case .stageFinished(let report): parts[report.stage]?.measured = report.seconds
        case .notice: break
        }
        highest = max(highest, share)
    }

    /// Share of the whole run that is done, 0 ... 1. Never falls.
    public var done: Double { highest }

    private var share: Double {
        let all = parts.values.reduce(0) { $0 + $1.expected }
        let done = parts.values.reduce(0) {
            $0 + $1.expected * ($1.measured == nil ? $1.share : 1)
        }
        return all > 0 ? min(1, done / all) : 0
    }

    /// Seconds that are left; nil before anything has been measured.
    /// - Parameter secondsInStage: what the stage has taken that is not finished.
    public func secondsLeft(secondsInStage: Double = 0) -> Double? {
        /// Measured to expected, of stages that took time.
        func ratio(_ isAlike: (Stage) -> Bool) -> Double? {
            var (measured, expected) = (0.0, 0.0)
            for (stage, part) in parts where isAlike(stage) {
                if let seconds = part.measured, seconds > 0 {
                    measured += seconds
                    expected += part.expected
                }
            }
            return expected > 0 ? measured / expected : nil
        }
        guard let overall = ratio({ _ in true }) else { return nil }
        return order.reduce(0) { left, stage in
            guard let part = parts[stage], part.measured == nil else { return left }
            if part.share > 0.05, secondsInStage > 0 {
                return left + secondsInStage * (1 / part.share - 1)
            }
            let alike = ratio { $0.isLike(stage) } ?? overall
            return left + max(0, part.expected * alike * (1 - part.share))
        }
    }
}

extension Stage {
    /// Whether one takes the time of the other, work for work.
    fileprivate func isLike(_ other: Stage) -> Bool {
        switch (self, other) {
        case (.load, .load), (.step, .step), (.projectText, .projectText): true
        default: self == other
        }
    }
}
