/// White-box tuning: a student imitates its teacher's velocity (port of T2VModel_SLA.training_step); without a teacher
/// flow matching, whose target is the data's own velocity.

public import Checkpoints
import Glibc
import Tensors

/// Student against target at the same noisy latents, no guidance. With a teacher the clean latents are only where noise
/// is added.
public struct WhiteBox {
    public let student: Net
    /// nil: the target is noise - latents.
    public let teacher: Net?
    public var times: TimeDistribution
    public var lossScale: Double
    /// Shares of noise that are trained, where the net is an expert for some; nil: all.
    public var noise: ClosedRange<Double>?
    /// Whether gradients that are not finite are handed on, as the original does; otherwise their pass is left out.
    public var keepsPoison: Bool

    public init(
        student: Net, teacher: Net?, times: TimeDistribution, lossScale: Double = 1,
        noise: ClosedRange<Double>? = nil, keepsPoison: Bool = false
    ) {
        self.keepsPoison = keepsPoison
        self.noise = noise
        self.student = student
        self.teacher = teacher
        self.times = times
        self.lossScale = lossScale
    }

    /// loss = mean over the batch and all elements of (student - target)^2.
    public func step(
        _ batch: [Sample], _ random: any RandomSource, observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let result = StepResult(on: student.device)
        let draws = times.draws(batch.count, from: random)
        let noises = random.noise(batch.count, batch[0].latents.shape)
        let ts = draws.map { times.rectifiedFlow($0, within: noise) }
        let noisy = eachSample(batch.count) {
            ((1 - ts[$0]) * batch[$0].latents + ts[$0] * noises[$0]).tensor
        }
        var total = 0.0
        for part in passes(batch) {
            let (xs, samples) = (Array(noisy[part]), Array(batch[part]))
            let (timesteps, texts) = (part.map { 1000 * ts[$0] }, samples.map(\.text))
            let conditioning = samples[0].conditioning
            let taught = try teacher?.velocities(
                xs, at: timesteps, texts, conditioning: conditioning)
            let pass = try student.recorded(
                xs, at: timesteps, texts, conditioning: conditioning)
            let count = Double(xs[0].shape.count * batch.count)
            let found = eachSample(samples.count) { index in
                let velocity = LatentValues(pass.velocities[index])
                let target =
                    taught.map { LatentValues($0[index]) }
                    ?? noises[part.lowerBound + index] - samples[index].latents
                let difference = velocity - target
                return (
                    velocity: velocity, target: target, loss: difference.squares / count,
                    isFinite: difference.isFinite,
                    cotangent: (2 * lossScale / count * difference).tensor
                )
            }
            for (index, one) in found.enumerated() {
                observe("t", [ts[part.lowerBound + index]])
                observe("student_v", one.velocity.values)
                observe("teacher_v", one.target.values)
                total += one.loss * lossScale
            }
            // The whole step is lost then.
            if !found.allSatisfy(\.isFinite) {
                result.isSpoiled = true
                if !keepsPoison { continue }
            }
            result.add(pass.gradients(found.map(\.cotangent)))
        }
        result.losses = [total]
        return result
    }

    /// Samples that go through the nets together. Those with a picture of their own go alone.
    private func passes(_ batch: [Sample]) -> [Range<Int>] {
        batch.contains { $0.conditioning != nil }
            ? batch.indices.map { $0..<$0 + 1 }
            : student.passes(batch.count, of: batch[0].latents.shape)
    }
}
