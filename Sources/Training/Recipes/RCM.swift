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
        /// As the original: samples that are not finite are masked (but in dCM), and yet spoil what their zero cotangents
        /// meet on the way back. Otherwise they are left out, and the step is told to be spoiled.
        public var keepsPoison = false

        public init() {}
    }

    public enum Consistency: String, Sendable, Hashable, Codable, CaseIterable {
        case continuous, discrete
    }

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
        for part in student.passes(batch.count, of: batch[0].latents.shape) {
            let samples = Array(batch[part])
            let texts = samples.map(\.text)
            let ts = part.map { settings.consistencyTimes.angle(draws[$0]) }
            let xs = eachSample(samples.count) {
                cos(ts[$0]) * samples[$0].latents + sin(ts[$0]) * noises[part.lowerBound + $0]
            }
            let targets = try teacher.guided(
                xs, at: ts, samples, guidance: settings.guidance
            ).map(\.field)
            let moved = try derivative(xs, ts, along: targets, texts)
            let pulls = eachSample(samples.count) {
                let (s, c) = (sin(ts[$0]), cos(ts[$0]))
                // The derivative is not scaled by the warm-up, unlike in the paper.
                let raw =
                    -c * (1 - warmup * warmup * s * s).squareRoot()
                    * (moved[$0].field - targets[$0])
                    - (warmup * c * s * xs[$0] + moved[$0].tangent)
                return 1 / (raw.squares.squareRoot() + 0.1) * raw
            }
            var (kept, cotangents): ([Int], [LatentValues]) = ([], [])
            for (index, pull) in pulls.enumerated() {
                let field = moved[index].field
                let isMasked = pull.hasNaN || field.hasNaN
                observe("scm.t", [ts[index]])
                observe("scm.F_teacher", targets[index].values)
                observe(
                    "scm.F_theta",
                    isMasked ? [Double](repeating: 0, count: field.values.count) : field.values)
                observe("scm.dF", moved[index].tangent.values)
                observe("scm.g_normalised", pull.values)
                observe("scm.nan_mask", [isMasked ? 1 : 0])
                result.losses.append(isMasked ? 0 : settings.lossScale * pull.squares)
                if isMasked || !samples[index].latents.isFinite { result.isSpoiled = true }
                if isMasked, !settings.keepsPoison { continue }
                kept.append(index)
                cotangents.append(isMasked ? pull.zeros : -2 * settings.lossScale * pull)
            }
            if kept.isEmpty { continue }
            let pass = try student.recordedTrig(
                kept.map { xs[$0] }, at: kept.map { ts[$0] }, kept.map { texts[$0] })
            result.add(pass.gradients(fields: cotangents))
        }
        return result
    }

    /// F of the student, and cos t sin t times its derivative along the teacher's flow.
    public func derivative(_ x: LatentValues, _ t: Double, along flow: LatentValues, _ text: Text)
        throws(CheckpointError) -> (field: LatentValues, tangent: LatentValues)
    {
        try derivative([x], [t], along: [flow], [text])[0]
    }

    /// The same of the samples of one pass.
    func derivative(
        _ xs: [LatentValues], _ ts: [Double], along flows: [LatentValues], _ texts: [Text]
    ) throws(CheckpointError) -> [(field: LatentValues, tangent: LatentValues)] {
        let speeds = ts.map { cos($0) * sin($0) }
        let directions = eachSample(xs.count) { speeds[$0] * flows[$0] }
        let h = settings.difference
        switch settings.derivative {
        case .exact:
            return try student.movingField(xs, along: directions, at: ts, along: speeds, texts)
        case .differenceInTime:
            let moved = try student.movingField(
                xs, along: directions, at: ts, along: ts.map { _ in 0 }, texts)
            let before = try student.denoised(xs, at: ts.map { $0 - h }, texts)
            return eachSample(xs.count) {
                let field = moved[$0].field
                return (
                    field,
                    moved[$0].tangent + speeds[$0] / sin(h) * (cos(h) * field - before[$0].field)
                )
            }
        case .difference:
            let now = try student.denoised(xs, at: ts, texts)
            let earlier = eachSample(xs.count) { cos(h) * xs[$0] - sin(h) * flows[$0] }
            let before = try student.denoised(earlier, at: ts.map { $0 - h }, texts)
            return eachSample(xs.count) {
                let field = now[$0].field
                return (field, speeds[$0] / sin(h) * (cos(h) * field - before[$0].field))
            }
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
        for part in student.passes(batch.count, of: batch[0].latents.shape) {
            let samples = Array(batch[part])
            let texts = samples.map(\.text)
            let times = part.map { index in
                Self.discreteAngles(
                    draws[index], steps: settings.discreteSteps, skip: settings.discreteSkip,
                    shift: settings.discreteShift
                ).map { Double($0) }
            }
            let noisy = eachSample(samples.count) {
                cos(times[$0][0]) * samples[$0].latents
                    + sin(times[$0][0]) * noises[part.lowerBound + $0]
            }
            var xs = noisy
            for step in 0..<settings.discreteSkip {
                let flows = try teacher.guided(
                    xs, at: times.map { $0[step] }, samples, guidance: settings.guidance)
                let before = xs
                xs = eachSample(xs.count) {
                    before[$0] - (times[$0][step] - times[$0][step + 1]) * flows[$0].field
                }
            }
            let targets = try student.denoised(xs, at: times.map { $0.last! }, texts)
            let pass = try student.recordedTrig(noisy, at: times.map { $0[0] }, texts)
            var cotangents: [LatentValues] = []
            for index in samples.indices {
                let (clean, target) = (pass.answers[index].clean, targets[index].clean)
                observe("dcm.times", times[index])
                observe("dcm.x0_pred", clean.values)
                observe("dcm.x0_target", target.values)
                let difference = clean - target
                if difference.hasNaN { result.isSpoiled = true }
                // The original masks nothing here: its loss is NaN.
                let isMasked = difference.hasNaN && !settings.keepsPoison
                result.losses.append(isMasked ? 0 : settings.lossScale * difference.squares)
                cotangents.append(
                    isMasked ? difference.zeros : 2 * settings.lossScale * difference)
            }
            // What is not finite in one sample spoils the whole pass; the step is skipped then.
            if result.isSpoiled, !settings.keepsPoison { continue }
            result.add(pass.gradients(cleans: cotangents))
        }
        return result
    }
}
