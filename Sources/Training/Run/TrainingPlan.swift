/// What a run takes, told before it begins: its iterations, walked on a device that computes nothing.

import Checkpoints
import Models
import Tensors

/// Memory and arithmetic of one iteration.
public struct TrainingPlan: Sendable, Hashable {
    /// Numbers that are trained.
    public var parameters: Int
    /// Bytes of device memory at most, weights and moments included.
    public var memory: Int
    /// FLOPs of the heaviest iteration.
    public var flops: Int

    /// - Parameter sample: a sample of the data set; only its sizes matter.
    public init(_ settings: TrainingSettings, _ models: TrainingModels, _ sample: Sample) throws {
        var settings = settings
        // The student's whole iteration and the critic's are among the first four then.
        settings.rcm.tangentWarmup = 0
        settings.rcm.studentEvery = min(settings.rcm.studentEvery, 2)
        settings.rcm.simulationSteps = 1
        settings.accumulation = min(settings.accumulation, 2)
        var outlines = models
        outlines.teacher = Outline(of: models.teacher)
        outlines.student = models.student.map { Outline(of: $0) }
        let device = NullBackend()
        let trainer = try Trainer(
            settings, outlines, Repeated(sample, count: settings.batch), on: device)
        parameters =
            trainer.student.parameters.elementCount
            + (trainer.critic?.parameters.elementCount ?? 0)
        flops = 0
        for _ in 0..<(settings.recipe == .rcm ? 4 : 2) {
            device.resetCounts()
            _ = try trainer.step()
            flops = max(flops, device.total.flops)
        }
        memory = device.memory.peak
    }

    /// One sample over and over.
    private final class Repeated: SampleSource {
        private let one: Sample
        let count: Int
        init(_ one: Sample, count: Int) { (self.one, self.count) = (one, count) }
        func sample(_ index: Int) -> Sample { one }
    }
}
