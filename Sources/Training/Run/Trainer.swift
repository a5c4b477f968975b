/// A run: batch after batch, one net's step after the other.

public import Checkpoints
import Ground
public import Models
public import Tensors

/// What training starts from.
public struct TrainingModels {
    /// The dense net that is imitated, distilled or adapted.
    public var teacher: any Checkpoint
    /// What the student starts from; nil: the teacher.
    public var student: (any Checkpoint)?
    /// Heads and patch; the attention is the recipe's.
    public var options: WanTransformerOptions
    /// Whether timesteps are rounded to bf16 before the embedding.
    public var roundsTimesteps: Bool
    /// The layers' form of a LoRA's base.
    public var linearFormat: LinearFormat

    public init(
        teacher: any Checkpoint, student: (any Checkpoint)? = nil, options: WanTransformerOptions,
        roundsTimesteps: Bool, linearFormat: LinearFormat = .plain
    ) {
        self.teacher = teacher
        self.student = student
        self.options = options
        self.roundsTimesteps = roundsTimesteps
        self.linearFormat = linearFormat
    }
}

/// One iteration as curves show it.
public struct IterationReport: Sendable, Hashable {
    /// From 1.
    public var iteration: Int
    /// "student" or "critic".
    public var net: String
    public var loss: Double
    public var norm: Double
    public var learningRate: Double
    /// Why the parameters were left as they are.
    public var skipped: String?
}

/// Nets, optimisers and averages of one run, and the iteration that comes next.
public final class Trainer {
    public let settings: TrainingSettings
    /// Iterations done.
    public private(set) var iteration = 0
    public let student: TrainedNet
    public let critic: TrainedNet?
    public let adapters: LowRankAdapters?
    private let recipe: Recipe
    private let samples: any SampleSource
    private let order: SampleOrder
    private let device: any Backend

    private enum Recipe {
        case whiteBox(WhiteBox)
        case rcm(RCM)
    }

    /// A net whose parameters move, with what moves them.
    public final class TrainedNet {
        public let net: Net
        public let optimizer: Adam
        /// Of what the net sees; the critic has none.
        public let average: MovingAverage?
        public var parameters: Parameters { net.parameters! }

        init(_ net: Net, _ settings: Adam.Settings, averageRate: Double?) {
            self.net = net
            optimizer = Adam(settings, on: net.device)
            average = averageRate.map { MovingAverage(net.parameters!, rate: $0, on: net.device) }
        }
    }

    /// - Throws: `DataError` where there are too few samples, `CheckpointError`.
    public init(
        _ settings: TrainingSettings, _ models: TrainingModels, _ samples: any SampleSource,
        on device: any Backend
    ) throws {
        guard samples.count >= settings.batch else {
            throw DataError(
                "the data set has \(samples.count) samples, fewer than a batch of \(settings.batch)"
            )
        }
        self.settings = settings
        self.samples = samples
        self.device = device
        order = SampleOrder(count: samples.count, batch: settings.batch, seed: settings.seed)
        let dtype: DType = settings.isHalf ? .bf16 : .f32
        var dense = models.options
        dense.attention = .original
        var sparse = dense
        if let topK = settings.topK {
            sparse.attention = .sparse(
                SparseAttention(
                    topK: topK, arithmetic: settings.isHalf ? .bf16 : .exact,
                    queryBlock: settings.queryBlock, keyBlock: settings.keyBlock))
        }
        func net(
            _ checkpoint: any Checkpoint, _ options: WanTransformerOptions,
            _ adapters: LowRankAdapters? = nil, _ format: LinearFormat = .plain
        ) -> Net {
            Net(
                checkpoint, options, activations: dtype,
                timestepType: models.roundsTimesteps ? .bf16 : .f32,
                recomputation: settings.recomputation, adapters: adapters, linearFormat: format,
                on: device)
        }
        let start = models.student ?? models.teacher
        let teacher = net(models.teacher, dense)
        var adapters: LowRankAdapters?
        let trained: Net
        switch settings.recipe {
        case .sla:
            let sizes = try teacher.model().config
            let missing = SparseProjection.parameters(layers: sizes.layers, headDim: sizes.headDim)
            trained = net(try Parameters(start, as: dtype, missing: missing), sparse)
        case .rcm: trained = net(try Parameters(start, as: dtype), dense)
        case .lora:
            let fresh = LowRankAdapters(
                of: start, rank: settings.rank, alpha: settings.alpha, targets: settings.targets,
                as: dtype, seed: settings.seed)
            guard !fresh.layers.isEmpty else {
                throw DataError(
                    "\(start.path) has no layers called \(settings.targets.joined(separator: ", "))"
                )
            }
            adapters = fresh
            trained = net(start, sparse, fresh, models.linearFormat)
        }
        self.adapters = adapters
        student = TrainedNet(trained, settings.optimizer, averageRate: settings.averageRate)
        switch settings.recipe {
        case .sla:
            critic = nil
            recipe = .whiteBox(
                WhiteBox(
                    student: trained, teacher: teacher, times: settings.times,
                    lossScale: settings.lossScale))
        case .lora:
            critic = nil
            recipe = .whiteBox(
                WhiteBox(
                    student: trained, teacher: models.student == nil ? nil : teacher,
                    times: settings.times, lossScale: settings.lossScale))
        case .rcm:
            let fake = net(try Parameters(models.teacher, as: dtype), dense)
            critic = TrainedNet(fake, settings.criticOptimizer, averageRate: nil)
            recipe = .rcm(RCM(student: trained, teacher: teacher, critic: fake, settings.rcm))
        }
    }

    private var schedule: LearningRateSchedule {
        LearningRateSchedule([LearningRateSchedule.Cycle(warmup: settings.warmup)])
    }

    /// One iteration. Steps that are not finite are skipped, and the report says why.
    public func step() throws -> IterationReport {
        var trained = student
        var averaging: Int? = iteration
        if case .rcm(let rcm) = recipe {
            let turns = RCMSchedule(rcm.settings, hasCritic: critic != nil)
            let isStudent = turns.isStudent(iteration)
            trained = isStudent ? student : critic ?? student
            averaging = isStudent ? turns.effective(iteration) : nil
        }
        let result = StepResult(on: device)
        for part in 0..<settings.accumulation {
            let batch = try order.batch(iteration * settings.accumulation + part)
                .map(samples.sample)
            let draws = SeededDraws(seed: settings.seed, iteration: iteration, part: part)
            switch recipe {
            case .whiteBox(let recipe): result.add(try recipe.step(batch, draws))
            case .rcm(let rcm): result.add(try rcm.step(batch, iteration: iteration, draws))
            }
        }
        let share = 1 / Double(settings.accumulation)
        let norm = share * GradientNorm.norm(result.gradients, on: device)
        let factor = schedule.factor(trained.optimizer.steps)
        var report = IterationReport(
            iteration: iteration + 1, net: trained === student ? "student" : "critic",
            loss: share * result.losses.reduce(0, +), norm: norm,
            learningRate: trained.optimizer.settings.learningRate * factor)
        if result.isSpoiled {
            report.skipped = "a sample's numbers are not finite"
        } else if !norm.isFinite {
            report.skipped = "the gradients are not finite"
        } else {
            let clipping = settings.largestNorm.map { GradientNorm.clipping(norm, to: $0) } ?? 1
            trained.optimizer.step(
                trained.parameters, result.gradients, factor: factor,
                scale: Float(share) * clipping,
                average: averaging.flatMap { iteration in
                    student.average.map { ($0, $0.weight(iteration)) }
                })
        }
        iteration += 1
        try device.synchronize()
        return report
    }
}

// MARK: - To a file and back

extension Trainer {
    /// Everything that the next iteration depends on, but for settings, models and data.
    public func state() -> any Checkpoint {
        var tensors: [(name: String, tensor: Tensor)] = []
        func add(_ role: String, _ kind: String, _ values: [String: Tensor], _ names: [String]) {
            for name in names {
                if let value = values[name] {
                    tensors.append(("\(role).\(kind).\(name)", device.read(value)))
                }
            }
        }
        for (role, trained) in nets {
            let names = trained.parameters.names
            add(role, "master", trained.parameters.masters, names)
            add(role, "exp_avg", trained.optimizer.means, names)
            add(role, "exp_avg_sq", trained.optimizer.squares, names)
            if let average = trained.average { add(role, "ema", average.values, names) }
        }
        var facts = ["iteration": "\(iteration)", "recipe": settings.recipe.rawValue]
        for (role, trained) in nets { facts["\(role).steps"] = "\(trained.optimizer.steps)" }
        return TensorCollection("state of iteration \(iteration)", tensors, metadata: facts)
    }

    private var nets: [(String, TrainedNet)] {
        [("student", student)] + (critic.map { [("critic", $0)] } ?? [])
    }

    /// Goes on where a state was taken: the next iteration has the same bits.
    /// - Throws: `CheckpointError` where it is another model's.
    public func restore(_ state: any Checkpoint) throws(CheckpointError) {
        guard let iteration = state.metadata["iteration"].flatMap({ Int($0) }), iteration >= 0,
            state.metadata["recipe"] == settings.recipe.rawValue
        else {
            throw .incompatible(
                path: state.path, reason: "it is no state of a run of '\(settings.recipe.rawValue)'"
            )
        }
        for (role, trained) in nets {
            let parameters = trained.parameters
            func read(_ kind: String, _ name: String) throws(CheckpointError) -> Tensor? {
                let full = "\(role).\(kind).\(name)"
                guard let tensor = try state.tensor(full) else { return nil }
                let expected = parameters.info(name)!.shape
                guard tensor.shape.dimensions == expected, tensor.dtype == .f32 else {
                    throw .shape(
                        full, in: state.path, expected: expected, found: tensor.shape.dimensions)
                }
                // A copy: the file may be removed while the run goes on.
                return Tensor(tensor.floats(), tensor.shape)
            }
            var (means, squares, averages): ([String: Tensor], [String: Tensor], [String: Tensor]) =
                ([:], [:], [:])
            for name in parameters.names {
                guard let master = try read("master", name) else {
                    throw .missing("\(role).master.\(name)", in: state.path, nearest: [])
                }
                parameters.set(name, master)
                means[name] = try read("exp_avg", name).map { device.place($0, as: .f32) }
                squares[name] = try read("exp_avg_sq", name).map { device.place($0, as: .f32) }
                averages[name] = try read("ema", name).map { device.place($0, as: .f32) }
            }
            let steps = state.metadata["\(role).steps"].flatMap { Int($0) } ?? 0
            trained.optimizer.restore(means: means, squares: squares, steps: max(0, steps))
            if !averages.isEmpty { trained.average?.restore(averages) }
        }
        self.iteration = iteration
    }

    /// What is published: the trained net or its average, in bf16.
    public func exported(average: Bool) -> any Checkpoint {
        let parameters = student.parameters
        let values = average ? student.average?.values ?? [:] : parameters.masters
        let host = values.mapValues { device.read($0) }
        if let adapters { return adapters.exported(.comfyui, host) }
        return TensorCollection(
            "trained transformer",
            parameters.names.compactMap { name in
                host[name].map { (name, $0.converted(to: .bf16)) }
            })
    }
}
