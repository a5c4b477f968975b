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

    public init(student: Net, teacher: Net?, times: TimeDistribution, lossScale: Double = 1) {
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
        var total = 0.0
        for (index, sample) in batch.enumerated() {
            let t = times.rectifiedFlow(draws[index])
            let x = ((1 - t) * sample.latents + t * noises[index]).tensor
            let timestep = 1000 * t
            let target =
                try teacher.map { teacher throws(CheckpointError) in
                    LatentValues(try teacher.velocity(x, at: timestep, sample.text))
                } ?? noises[index] - sample.latents
            let pass = try student.recorded(x, at: timestep, sample.text)
            let velocity = LatentValues(pass.velocity)
            observe("t", [t])
            observe("student_v", velocity.values)
            observe("teacher_v", target.values)
            let difference = velocity - target
            let count = Double(difference.values.count * batch.count)
            total += difference.squares / count * lossScale
            guard difference.isFinite else {
                result.isSpoiled = true
                continue
            }
            result.add(pass.gradients((2 * lossScale / count * difference).tensor).parameters)
        }
        result.losses = [total]
        return result
    }
}
