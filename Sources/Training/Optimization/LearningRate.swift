/// Factors of the learning rate by the number of the optimiser's steps. Port of imaginaire's LambdaLinearScheduler and
/// LambdaWarmUpCosineScheduler.

import Glibc

/// Cycles, each a linear ramp and then a way from the highest to the lowest factor.
public struct LearningRateSchedule: Sendable, Hashable, Codable {
    public struct Cycle: Sendable, Hashable, Codable {
        /// Steps of the ramp.
        public var warmup: Int
        /// Steps in all.
        public var length: Int
        public var start, highest, lowest: Double

        public init(
            warmup: Int, length: Int = 10_000_000_000_000, start: Double = 1e-6,
            highest: Double = 1, lowest: Double = 1
        ) {
            self.warmup = warmup
            self.length = length
            self.start = start
            self.highest = highest
            self.lowest = lowest
        }
    }

    public enum Way: String, Sendable, Hashable, Codable { case linear, cosine }

    public var cycles: [Cycle]
    public var way: Way

    public init(_ cycles: [Cycle], _ way: Way = .linear) {
        self.cycles = cycles
        self.way = way
    }

    /// The factor of step n, from 0.
    public func factor(_ step: Int) -> Double {
        var n = step
        var cycle = cycles[0]
        for next in cycles {
            cycle = next
            if n <= next.length { break }
            n -= next.length
        }
        if n < cycle.warmup {
            return cycle.start + (cycle.highest - cycle.start) / Double(cycle.warmup) * Double(n)
        }
        let share = min(1, Double(n - cycle.warmup) / Double(cycle.length - cycle.warmup))
        let height =
            switch way {
            case .linear: 1 - share
            case .cosine: 0.5 * (1 + cos(share * .pi))
            }
        return cycle.lowest + (cycle.highest - cycle.lowest) * height
    }
}
