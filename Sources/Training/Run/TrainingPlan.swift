/// What a run takes, told before it begins: its iterations, walked on a device that computes nothing.

import Checkpoints
import Models
import Tensors

/// Memory and arithmetic of one iteration.
public struct TrainingPlan: Sendable, Hashable {
    /// Numbers that are trained.
    public var parameters: Int
    /// Bytes of tensors, weights and moments included.
    public var memory: Int
    /// Bytes that a GPU takes for itself: the driver's context, kernels, and what its pool loses between tensors of
    /// different sizes. LoRA runs of 43 and 70 GiB took 2.7 and 2.9 GiB more on a card. None of a CPU.
    public var overhead: Int
    /// Bytes that must be free.
    public var needed: Int { memory + overhead }
    /// Bytes of a checkpoint: masters and moments in f32, and the student's average.
    public var checkpoint: Int
    /// FLOPs of the heaviest iteration.
    public var flops: Int

    /// - Parameters:
    ///   - sample: a sample of the data set; only its sizes matter.
    ///   - isGPU: whether the scratch memory of a GPU's gradients counts too.
    ///   - processes: that share masters, moments and averages, and with `shard` weights and gradients, too; the plan is
    ///     one process's.
    public init(
        _ settings: TrainingSettings, _ models: TrainingModels, _ sample: Sample,
        isGPU: Bool = false, processes: Int = 1
    ) throws {
        var settings = settings
        settings.shortenCycle()
        settings.accumulation = min(settings.accumulation, 2)
        var outlines = models
        outlines.teacher = Outline(of: models.teacher)
        outlines.student = models.student.map { Outline(of: $0) }
        let device = NullBackend(
            workspace: { isGPU ? Self.workspace(of: $0) : 0 },
            membership: Self.largest(sample.latents.shape, settings, models))
        let isSharded = settings.shard == .full && processes > 1
        let trainer = try Trainer(
            settings, outlines, RepeatedSample(sample, count: settings.batch), on: device,
            group: nil,
            shards: isSharded ? ShardedDevice(device, PlannedProcesses(processes)) : nil)
        overhead = isGPU ? 3 << 30 : 0
        parameters =
            trainer.student.parameters.elementCount
            + (trainer.critic?.parameters.elementCount ?? 0)
        let averaged =
            trainer.student.average == nil ? 0 : trainer.student.parameters.elementCount
        checkpoint = 12 * parameters + 4 * averaged
        flops = 0
        for _ in 0..<(settings.recipe == .rcm ? 4 : 2) {
            device.resetCounts()
            _ = try trainer.step()
            flops = max(flops, device.total.flops)
        }
        if trainer.student.net.isSharded {
            // The walk was that of one process. Adapters stay whole, and what belongs to them is shared out as below.
            memory = device.memory.peak
            return
        }
        // Moments in f32 (in 8 bits they are not there at the peak), masters beside bf16 weights (in f32 the net
        // sees the masters, which all keep), and the student's average.
        let each = (settings.hasEightBitMoments ? 0 : 8) + (settings.isHalf ? 4 : 0)
        let shared = each * parameters + 4 * averaged
        // The sums of own gradients lie beside the whole gradients.
        let sums = processes > 1 ? 4 * parameters / processes : 0
        memory = device.memory.peak - shared / processes * (processes - 1) + sums
    }

    /// Bytes of the checkpoints that a run has yet to write beside those that are there: those that stay, and the one that is
    /// being written when the oldest goes.
    public func room(for settings: TrainingSettings, there: Int) -> Int {
        // One is written at the end, too.
        let written = (settings.iterations - 1) / settings.saveEvery + 1
        let most = settings.kept < written ? settings.kept + 1 : written
        let (bytes, isTooMuch) = checkpoint.multipliedReportingOverflow(by: max(0, most - there))
        return isTooMuch ? .max : bytes
    }

    /// The process with the most of a sample's tokens. shape: of the latents
    private static func largest(
        _ shape: Shape, _ settings: TrainingSettings, _ models: TrainingModels
    ) -> Membership {
        let count = settings.sequenceParallel
        let patch = models.options.patch
        let shares = Membership(index: 0, of: count).sequence(
            shape[1] * (shape[2] / patch) * (shape[3] / patch))
        let index = shares.ranges.indices.max { shares[$0].count < shares[$1].count }
        return Membership(index: index ?? 0, of: count)
    }

    /// Bytes that a GPU needs beside operands and results: transposed matrices of products, and the f32 tensors of
    /// attention's derivatives, which are as large as its operands.
    static func workspace(of operation: Operation) -> Int {
        switch operation {
        case .training(.inputGradient(let o)): return 4 * o.weight.inputs * o.weight.outputs
        case .training(.weightGradient(let o)):
            return 4 * (o.cotangent.shape.count + o.x.shape.count)
        case .training(.attentionGradient(let o)):
            return 4 * 2 * (o.q.shape.count + o.k.shape.count + o.v.shape.count)
        case .training(.attentionTangent(let o)):
            return 4 * (3 * o.q.shape.count + 2 * (o.k.shape.count + o.v.shape.count))
        // q, k, v, g; dq, dk, dv; both features, y and the shares of its sums, and one more product.
        case .training(.sparseAttentionGradient(let o)): return 4 * 13 * o.q.shape.count
        case .training(.sparseAttentionTangent(let o)): return 4 * 13 * o.q.shape.count
        // What is packed for other processes, or comes packed.
        case .exchange(let o): return o.x.byteCount
        default: return 0
        }
    }
}
