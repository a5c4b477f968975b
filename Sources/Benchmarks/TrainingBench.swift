/// A training run measured iteration by iteration, with random weights and samples.

import CUDA
import Checkpoints
import Families
import Ground
import Models
public import Runs
public import Tensors
public import Training

/// Measures the iterations of a recipe: a first one, which places weights and loads kernels, some more, and one whose
/// operations are timed. Of rCM the student's and the critic's iterations are measured, with one simulated step.
public struct TrainingBench {
    private let settings: TrainingSettings
    private let models: TrainingModels
    private let sample: Sample
    private let repeats: Int
    /// The device, behind a backend that can time operations.
    private let timer: OperationTimer
    /// What an iteration takes, by the count.
    public let plan: TrainingPlan

    /// - Parameters:
    ///   - models: the model to measure; its teacher and its student start from equal weights.
    ///   - request: the size of the samples, the form of a LoRA's base, and the seed.
    ///   - settings: of the run.
    ///   - tokens: how many tokens the prompts have; nil: as many as the model takes.
    ///   - repeats: how many iterations are timed after the first one.
    /// - Throws: ``BenchError``, `RequestError` or `RunError` if this cannot be measured.
    public init(
        _ models: BenchModel, _ request: Request, _ settings: TrainingSettings,
        on device: any Backend, tokens: Int? = nil, repeats: Int = 3
    ) throws {
        let (family, most) = (models.family, models.family.textLength)
        try request.validate(for: family, hasConditioning: true)
        if let fault = settings.fault { throw BenchError.settings(fault) }
        if let tokens, tokens > most { throw BenchError.tokens(tokens, most: most) }
        let format = request.arithmetic.linears.format
        guard family.conditioning == .none || settings.recipe == .lora else {
            throw BenchError.takesPicture(model: models.name, recipe: settings.recipe.rawValue)
        }
        guard device.supportsTraining else { throw BenchError.gradients(device: device.name) }
        guard device.supports(format) else {
            throw RunError.unsupported(
                linears: request.arithmetic.linears, device: device.name)
        }
        var settings = settings
        settings.shortenCycle()
        settings.iterations = .max
        self.settings = settings
        self.repeats = repeats
        timer = OperationTimer(
            device,
            (device as? CUDABackend).map { EventStopwatch($0.context) } ?? HostStopwatch())
        timer.isTiming = false

        let sizes = try models.transformerSizes(.transformer)
        let outline = try models.checkpoint(.transformer)
        let weights = RandomWeights(device, seed: request.seed)
        self.models = TrainingModels(
            teacher: models.isRandom ? MadeCheckpoint(outline, by: weights) : outline,
            options: WanTransformerOptions(heads: sizes.heads, patch: sizes.patch),
            roundsTimesteps: family.roundsTimesteps,
            linearFormat: settings.recipe == .lora ? format : .plain)
        func noise(_ shape: Shape) -> Tensor {
            var generator = PhiloxNoise(seed: request.seed)
            return device.read(device.noise(shape, generator: &generator))
        }
        let stride = family.geometry.stride
        let size: Shape = [
            (request.frames - 1) / stride.t + 1, request.height / stride.h,
            request.width / stride.w,
        ]
        let text = try Text(noise([tokens ?? most, sizes.textDim])).padded(to: most)
        sample = Sample(
            latents: LatentValues(noise(Shape([family.geometry.channels] + size.dimensions))),
            text: text, negative: settings.recipe == .rcm ? text : nil,
            conditioning: family.conditioning == .none
                ? nil : noise(Shape([family.conditioningChannels] + size.dimensions)))
        plan = try TrainingPlan(
            settings, self.models, sample, isGPU: device is CUDABackend)
    }

    /// - Parameters:
    ///   - ceilings: nil if single operations are not to be measured.
    ///   - tell: called with the figures as they come.
    public func measure(against ceilings: Ceilings?, tell: (BenchEvent) -> Void) throws {
        let trainer = try Trainer(
            settings, models, RepeatedSample(sample, count: settings.batch), on: timer)
        var found: [StageFigures] = []
        /// One iteration, added to the figures of its net.
        func iterate() throws -> Int {
            timer.resetPeak()
            let start = ContinuousClock.now
            let report = try trainer.step()
            let seconds = (ContinuousClock.now - start) / .seconds(1)
            let name = "\(settings.recipe.rawValue), the \(report.net)'s iteration"
            let index = found.firstIndex { $0.name == name } ?? found.count
            if index == found.count {
                found.append(StageFigures(name: name))
                found[index].cold = seconds
                found[index].plannedBytes = plan.memory
            } else if !timer.isTiming {
                found[index].warm.append(seconds)
            }
            found[index].peakBytes = max(found[index].peakBytes, timer.memory.peak)
            return index
        }
        let nets = settings.recipe == .rcm ? 2 : 1
        for _ in 0..<(1 + repeats) * nets { _ = try iterate() }
        guard let ceilings else { return found.forEach { tell(.stage($0)) } }
        timer.isTiming = true
        for _ in 0..<nets {
            let index = try iterate()
            let operations = try timer.takeOperations()
            found[index].add(operations, against: ceilings)
            tell(.stage(found[index]))
            tell(.operations(operations, of: found[index].name))
        }
    }
}

/// Random weights as a file would have them: made on a device, in bf16, and read.
private final class MadeCheckpoint: Checkpoint {
    private let outline: any Checkpoint
    private let device: RandomWeights

    init(_ outline: any Checkpoint, by device: RandomWeights) {
        self.outline = outline
        self.device = device
    }

    var path: String { outline.path }
    var names: [String] { outline.names }
    func info(_ name: String) -> TensorInfo? {
        outline.info(name).map { TensorInfo(name: name, shape: $0.shape, dtype: .bf16) }
    }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        try outline.tensor(name).map { device.read(device.place($0, as: .bf16, in: nil)) }
    }
}
