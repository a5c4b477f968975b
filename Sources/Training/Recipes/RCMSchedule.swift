/// Which net an iteration of rCM trains, and how.

public import Checkpoints

/// Pure functions of the iteration, from 0.
public struct RCMSchedule: Sendable, Hashable {
    public var warmup, studentEvery, simulationSteps: Int
    public var hasCritic: Bool
    /// Which of the student's closures count. One that does not is left out with all that it would draw.
    public var hasConsistency, hasMatching: Bool

    public init(_ settings: RCM.Settings, hasCritic: Bool) {
        warmup = settings.tangentWarmup
        studentEvery = settings.studentEvery
        simulationSteps = settings.simulationSteps
        self.hasCritic = hasCritic
        hasConsistency = settings.lossScale > 0
        hasMatching = settings.distributionLossScale > 0
    }

    /// The student's iterations; the others are the critic's, who has none where nobody asks for its judgement.
    public func isStudent(_ iteration: Int) -> Bool {
        !hasCritic || !hasMatching || iteration < warmup || (iteration - warmup) % studentEvery == 0
    }

    /// Whether a student's iteration matches distributions too.
    public func matchesDistribution(_ iteration: Int) -> Bool {
        hasCritic && hasMatching && iteration >= warmup && isStudent(iteration)
    }

    /// Counts the student's iterations as if a critic that is there took its turns, as the original does.
    public func effective(_ iteration: Int) -> Int {
        hasCritic && iteration >= warmup
            ? warmup + (iteration - warmup) / studentEvery : iteration
    }

    /// Counts the critic's.
    public func effectiveCritic(_ iteration: Int) -> Int { iteration - effective(iteration) - 1 }

    /// Steps of the simulation in this iteration; 0 where it has none.
    public func steps(_ iteration: Int) -> Int {
        guard matchesDistribution(iteration) || !isStudent(iteration) else { return 0 }
        let count = isStudent(iteration) ? effective(iteration) : effectiveCritic(iteration)
        return count % simulationSteps + 1
    }

    /// The tangent's weight.
    public func tangentWeight(_ iteration: Int) -> Double {
        warmup == 0 ? 1 : min(1, Double(iteration) / Double(warmup))
    }
}

extension RCM {
    /// One iteration, from 0: the student's closures, whose gradients add up, or the critic's.
    public func step(
        _ batch: [Sample], iteration: Int, _ random: any RandomSource,
        observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let schedule = RCMSchedule(settings, hasCritic: critic != nil)
        guard schedule.isStudent(iteration) else {
            return try criticStep(
                batch, steps: schedule.steps(iteration), random, observe: observe)
        }
        let result = StepResult(on: student.device)
        if schedule.hasConsistency {
            result.add(
                try consistency(batch, iteration: iteration, random, observe: observe))
        }
        if schedule.matchesDistribution(iteration) {
            result.add(
                try distributionMatching(
                    batch, steps: schedule.steps(iteration), random, observe: observe))
        }
        return result
    }

    /// The student's closure that the settings choose.
    public func consistency(
        _ batch: [Sample], iteration: Int, _ random: any RandomSource,
        observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        switch settings.consistency {
        case .continuous:
            let schedule = RCMSchedule(settings, hasCritic: critic != nil)
            return try continuousConsistency(
                batch, warmup: schedule.tangentWeight(iteration), random, observe: observe)
        case .discrete: return try discreteConsistency(batch, random, observe: observe)
        }
    }
}
