/// rCM (arXiv 2510.08431): distillation by a continuous-time consistency model and by distribution matching.
/// Port of T2VDistillModel_rCM.

public import Checkpoints
import Glibc
import Tensors

/// The three nets and the settings of a distillation. All states are in angles of TrigFlow.
public struct RCM {
    public let student, teacher: Net
    /// Learns the student's own distribution (the fake score).
    public let critic: Net?
    public var settings: Settings

    public struct Settings: Sendable, Hashable, Codable {
        public var guidance = 5.0
        /// Times of the consistency model, and of all else.
        public var consistencyTimes = TimeDistribution.logNormal(mean: 0.7, deviation: 1.6)
        public var distributionTimes = TimeDistribution.uniformShift(5)
        public var consistency = Consistency.continuous
        public var derivative = Derivative.exact
        /// h of the finite differences.
        public var difference = 1e-4
        public var lossScale = 100.0
        public var distributionLossScale = 1.0
        /// Iterations until the tangent counts fully; until then only the consistency model trains the student.
        public var tangentWarmup = 0
        /// Every so many iterations the student, in between the critic.
        public var studentEvery = 5
        public var simulationSteps = 4
        /// nil: drawn; else these angles follow the first step of a simulation.
        public var fixedAngles: [Double]?
        public var discreteSteps = 48
        public var discreteSkip = 1
        public var discreteShift = 5.0
        /// As the original: samples that are not finite are masked, and yet spoil what their zero cotangents meet on the
        /// way back. Otherwise they are left out, and the step is told to be spoiled.
        public var keepsPoison = false

        public init() {}
    }

    public enum Consistency: String, Sendable, Hashable, Codable { case continuous, discrete }

    /// How dF/dt along the teacher's flow is found.
    public enum Derivative: String, Sendable, Hashable, Codable {
        /// Forward mode.
        case exact
        /// Forward mode for the latents, a difference in time.
        case differenceInTime
        /// One difference along the trajectory.
        case difference
    }

    public init(student: Net, teacher: Net, critic: Net?, _ settings: Settings) {
        self.student = student
        self.teacher = teacher
        self.critic = critic
        self.settings = settings
    }

    // MARK: Consistency in continuous time (sCM)

    /// - Parameter warmup: the tangent's weight, 0...1.
    public func continuousConsistency(
        _ batch: [Sample], warmup: Double, _ random: any RandomSource,
        observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let result = StepResult(on: student.device)
        let draws = settings.consistencyTimes.draws(batch.count, from: random)
        let noises = random.noise(batch.count, batch[0].latents.shape)
        for (index, sample) in batch.enumerated() {
            let t = settings.consistencyTimes.angle(draws[index])
            let (s, c) = (sin(t), cos(t))
            let x = c * sample.latents + s * noises[index]
            let target = try teacher.guided(
                x, at: t, sample.text, negative: sample.negative, guidance: settings.guidance
            ).field
            let (field, tangent) = try derivative(x, t, along: target, sample.text)
            // The derivative is not scaled by the warm-up, unlike in the paper.
            let raw =
                -c * (1 - warmup * warmup * s * s).squareRoot() * (field - target)
                - (warmup * c * s * x + tangent)
            let pull = 1 / (raw.squares.squareRoot() + 0.1) * raw
            let isMasked = pull.hasNaN || field.hasNaN
            observe("scm.t", [t])
            observe("scm.F_teacher", target.values)
            observe(
                "scm.F_theta",
                isMasked ? [Double](repeating: 0, count: field.values.count) : field.values)
            observe("scm.dF", tangent.values)
            observe("scm.g_normalised", pull.values)
            observe("scm.nan_mask", [isMasked ? 1 : 0])
            result.losses.append(isMasked ? 0 : settings.lossScale * pull.squares)
            if field.hasNaN || !sample.latents.isFinite { result.isSpoiled = true }
            if isMasked, !settings.keepsPoison { continue }
            let pass = try student.recordedTrig(x, at: t, sample.text)
            result.add(
                pass.gradients(
                    field: isMasked ? pull.zeros : -2 * settings.lossScale * pull))
        }
        return result
    }

    /// F of the student, and cos t sin t times its derivative along the teacher's flow.
    public func derivative(_ x: LatentValues, _ t: Double, along flow: LatentValues, _ text: Text)
        throws(CheckpointError) -> (field: LatentValues, tangent: LatentValues)
    {
        let (s, c) = (sin(t), cos(t))
        let direction = c * s * flow
        let h = settings.difference
        switch settings.derivative {
        case .exact:
            return try student.movingField(x, along: direction, at: t, along: c * s, text)
        case .differenceInTime:
            let moved = try student.movingField(x, along: direction, at: t, along: 0, text)
            let before = try student.denoised(x, at: t - h, text).field
            return (
                moved.field,
                moved.tangent + c * s / sin(h) * (cos(h) * moved.field - before)
            )
        case .difference:
            let field = try student.denoised(x, at: t, text).field
            let before = try student.denoised(cos(h) * x - sin(h) * flow, at: t - h, text).field
            return (field, c * s / sin(h) * (cos(h) * field - before))
        }
    }

    // MARK: Consistency in steps (dCM)

    /// The angles of a sample, from the noisiest; in f32 throughout. → skip + 1 of them
    public static func discreteAngles(_ uniform: Float, steps: Int, skip: Int, shift: Double)
        -> [Float]
    {
        let width = 1 / Double(steps)
        let start = uniform * Float(1 - Double(skip) * width)
        return (0...skip).map { k in
            let rest = 1 - (start + Float(Double(k) * width))
            return NoiseTime.angle(rectifiedFlow: NoiseTime.shifted(rest, by: Float(shift)))
        }
    }

    public func discreteConsistency(
        _ batch: [Sample], _ random: any RandomSource, observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let result = StepResult(on: student.device)
        let noises = random.noise(batch.count, batch[0].latents.shape)
        let draws = random.uniforms(batch.count)
        for (index, sample) in batch.enumerated() {
            let times = Self.discreteAngles(
                draws[index], steps: settings.discreteSteps, skip: settings.discreteSkip,
                shift: settings.discreteShift
            ).map { Double($0) }
            let noisy = cos(times[0]) * sample.latents + sin(times[0]) * noises[index]
            var x = noisy
            for (time, next) in zip(times, times.dropFirst()) {
                let flow = try teacher.guided(
                    x, at: time, sample.text, negative: sample.negative,
                    guidance: settings.guidance
                ).field
                x = x - (time - next) * flow
            }
            let target = try student.denoised(x, at: times.last!, sample.text).clean
            let pass = try student.recordedTrig(noisy, at: times[0], sample.text)
            observe("dcm.times", times)
            observe("dcm.x0_pred", pass.clean.values)
            observe("dcm.x0_target", target.values)
            let difference = pass.clean - target
            let isMasked = difference.hasNaN
            if pass.clean.hasNaN { result.isSpoiled = true }
            result.losses.append(isMasked ? 0 : settings.lossScale * difference.squares)
            if isMasked, !settings.keepsPoison { continue }
            result.add(
                pass.gradients(
                    clean: isMasked ? difference.zeros : 2 * settings.lossScale * difference))
        }
        return result
    }
}
