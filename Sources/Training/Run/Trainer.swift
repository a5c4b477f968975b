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
    /// Whether a process of the run wants a pause now.
    public var isPausing = false
}

/// Nets, optimisers and averages of one run, and the iteration that comes next.
public final class Trainer {
    public let settings: TrainingSettings
    /// Iterations done.
    public internal(set) var iteration = 0
    public let student: TrainedNet
    public let critic: TrainedNet?
    public let adapters: LowRankAdapters?
    /// The dense net that is imitated, distilled or adapted.
    public let teacher: Net
    private let recipe: Recipe
    private let samples: any SampleSource
    private let order: SampleOrder
    let device: any Backend
    /// Rows and columns of latents that make one token.
    private let patch: Int
    /// Channels and the text's width, as the data set's first sample has them.
    private var usual: (channels: Int, width: Int)?
    /// The processes of the run; nil: this one is alone.
    public let group: ProcessGroup?
    /// What nets compute with where processes share out tokens.
    private let sequence: SequenceDevice?
    /// What keeps the weights of nets where they are split over the processes.
    let shards: ShardedDevice?

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
        /// What other processes have of it.
        let sharing: Sharing?
        /// nil: the optimiser keeps its moments in f32.
        private let moments: EightBitMoments?

        init(
            _ net: Net, _ settings: Adam.Settings, averageRate: Double?,
            hasEightBitMoments: Bool, _ group: ProcessGroup?, on device: any Backend
        ) {
            moments = hasEightBitMoments ? EightBitMoments(on: device) : nil
            self.net = net
            optimizer = Adam(settings, on: device)
            average = averageRate.map { MovingAverage(net.parameters!, rate: $0, on: device) }
            sharing = group.map {
                Sharing(net.parameters!, $0, on: device, isSharded: net.isSharded)
            }
            keepOwn()
        }

        /// Calls `body` with the optimiser's moments in their place.
        func withMoments<Result>(_ body: () throws -> Result) rethrows -> Result {
            moments?.unpack(optimizer)
            defer { moments?.pack(optimizer) }
            return try body()
        }

        /// Lets go of what other processes keep.
        func keepOwn() {
            guard let sharing else { return }
            parameters.keepMasters(where: sharing.isOwn)
            average?.restore(average?.values.filter { sharing.isOwn($0.key) } ?? [:])
            optimizer.restore(
                means: optimizer.means.filter { sharing.isOwn($0.key) },
                squares: optimizer.squares.filter { sharing.isOwn($0.key) },
                steps: optimizer.steps)
        }
    }

    /// - Parameter group: the processes that train the model together; each calls the same methods in the same order.
    /// - Throws: `DataError` where there are too few samples or too many processes for one, `CheckpointError`.
    public convenience init(
        _ settings: TrainingSettings, _ models: TrainingModels, _ samples: any SampleSource,
        on device: any Backend, group: ProcessGroup? = nil
    ) throws {
        try self.init(
            settings, models, samples, on: device, group: group,
            shards: settings.shard == .full ? group.map { ShardedDevice(device, $0) } : nil)
    }

    /// - Parameter shards: above `device`, where weights are split.
    init(
        _ settings: TrainingSettings, _ models: TrainingModels, _ samples: any SampleSource,
        on device: any Backend, group: ProcessGroup?, shards: ShardedDevice?
    ) throws {
        // A plan's device stands for a process of a group by itself.
        let batch = try Self.batch(
            settings, of: samples.count, group?.place.count ?? device.membership.count)
        try Self.checkHeads(settings, models)
        let whole: any Backend = shards ?? device
        sequence = group.flatMap {
            settings.sequenceParallel == 1
                ? nil : SequenceDevice(whole, $0, members: settings.sequenceParallel)
        }
        let netDevice = sequence ?? whole
        patch = models.options.patch
        self.settings = settings
        self.samples = samples
        self.device = device
        self.group = group
        self.shards = shards
        order = SampleOrder(count: samples.count, batch: batch, seed: settings.seed)
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
                shards: shards.map {
                    Shards(
                        device: $0,
                        owners: Sharing.owners(of: checkpoint, count: $0.exchange.count))
                }, on: netDevice)
        }
        func parameters(
            _ checkpoint: any Checkpoint, missing: [(name: String, shape: Shape)] = []
        ) throws -> Parameters {
            guard let exchange = shards?.exchange else {
                return try Parameters(checkpoint, as: dtype, missing: missing)
            }
            let owners = Sharing.owners(of: checkpoint, missing: missing, count: exchange.count)
            return try Parameters(checkpoint, as: dtype, missing: missing) {
                owners[$0] == exchange.rank
            }
        }
        let start = models.student ?? models.teacher
        let teacher = net(models.teacher, dense)
        self.teacher = teacher
        var adapters: LowRankAdapters?
        let trained: Net
        switch settings.recipe {
        case .sla:
            let sizes = try teacher.model().config
            let missing = SparseProjection.parameters(layers: sizes.layers, headDim: sizes.headDim)
            trained = net(try parameters(start, missing: missing), sparse)
        case .rcm: trained = net(try parameters(start), dense)
        case .lora:
            let fresh = LowRankAdapters(
                of: start, rank: settings.rank, alpha: settings.alpha ?? Double(settings.rank),
                targets: settings.targets, as: dtype, seed: settings.seed)
            let strange = settings.targets.filter { target in
                !fresh.layers.contains { $0.hasSuffix(".\(target)") }
            }
            guard strange.isEmpty else {
                let names = strange.map { "'\($0.printable)'" }.joined(separator: ", ")
                throw DataError("\(start.path) has no layers called \(names) (--targets)")
            }
            adapters = fresh
            trained = net(start, sparse, fresh, models.linearFormat)
        }
        self.adapters = adapters
        student = TrainedNet(
            trained, settings.optimizer, averageRate: settings.averageRate,
            hasEightBitMoments: settings.hasEightBitMoments, group, on: device)
        // All processes go the same way, back too, so that each is there when a unit is gathered.
        let keepsPoison = settings.asReference || shards != nil
        switch settings.recipe {
        case .sla:
            critic = nil
            recipe = .whiteBox(
                WhiteBox(
                    student: trained, teacher: teacher, times: settings.times,
                    lossScale: settings.lossScale, keepsPoison: keepsPoison))
        case .lora:
            critic = nil
            recipe = .whiteBox(
                WhiteBox(
                    student: trained, teacher: models.student == nil ? nil : teacher,
                    times: settings.times, lossScale: settings.lossScale, noise: settings.noise,
                    keepsPoison: keepsPoison))
        case .rcm:
            let fake = net(try parameters(models.teacher), dense)
            critic = TrainedNet(
                fake, settings.criticOptimizer, averageRate: nil,
                hasEightBitMoments: settings.hasEightBitMoments, group, on: device)
            var rcm = settings.rcm
            if keepsPoison { rcm.keepsPoison = true }
            recipe = .rcm(RCM(student: trained, teacher: teacher, critic: fake, rcm))
        }
    }

    /// Samples of a pass of all processes.
    /// - Throws: `DataError` where the data set has fewer, or where processes that share out tokens do not add up.
    @discardableResult
    public static func batch(
        _ settings: TrainingSettings, of samples: Int, _ processes: Int
    ) throws(DataError) -> Int {
        let members = settings.sequenceParallel
        guard processes % members == 0 else {
            throw DataError(
                "\(members) processes are to share out a sample's tokens (--sequence-parallel), but "
                    + "the run has \(processes): start a multiple of \(members) with torchrun, srun "
                    + "or the like")
        }
        let batch = settings.batch * (processes / members)
        guard samples >= batch else {
            throw DataError("the data set has \(samples) samples, fewer than a batch of \(batch)")
        }
        return batch
    }

    /// In self-attention each process has some heads.
    private static func checkHeads(_ settings: TrainingSettings, _ models: TrainingModels) throws {
        let members = settings.sequenceParallel
        guard members > 1,
            case .wanTransformer(let sizes) = try CheckpointSummary(
                models.teacher, heads: models.options.heads, patch: models.options.patch
            ).require(.wanTransformer)
        else { return }
        guard sizes.heads >= members else {
            throw DataError(
                "--sequence-parallel is \(members), but the transformer has \(sizes.heads) heads: "
                    + "expected at most \(sizes.heads)")
        }
    }

    /// Whether nets compute whole samples in this process, by itself: for passes that the others do not make. Only where
    /// processes share out tokens.
    public var isApart: Bool {
        get { sequence?.isApart ?? false }
        set { sequence?.isApart = newValue }
    }

    private var schedule: LearningRateSchedule {
        LearningRateSchedule([LearningRateSchedule.Cycle(warmup: settings.warmup)])
    }

    /// One iteration. Steps that are not finite are skipped, and the report says why.
    /// - Parameter pausing: whether this process wants a pause, asked once, late in the step; the report says whether any
    ///   does.
    public func step(pausing: () -> Bool = { false }) throws -> IterationReport {
        var trained = student
        var averaging: Int? = iteration
        if case .rcm(let rcm) = recipe {
            let turns = RCMSchedule(rcm.settings, hasCritic: critic != nil)
            let isStudent = turns.isStudent(iteration)
            trained = isStudent ? student : critic ?? student
            averaging = isStudent ? turns.effective(iteration) : nil
        }
        let result = StepResult(on: student.net.device)
        for part in 0..<settings.accumulation {
            let (batch, first) = try batch(part)
            try meet()
            let draws = SampleDraws(seed: settings.seed, iteration: iteration, first: first)
            let found =
                switch recipe {
                case .whiteBox(let recipe): try recipe.step(batch, draws)
                case .rcm(let rcm): try rcm.step(batch, iteration: iteration, draws)
                }
            try checkProcesses()
            result.add(found)
        }
        shards?.drop()
        let sums = try sum(result, of: trained, pausing: pausing)
        var (gradients, norm) = (sums.gradients, sums.norm)
        if settings.asReference, !norm.isFinite {
            gradients = gradients.mapValues {
                device.place(GradientNorm.withoutNonFinite(device.read($0)), as: .f32)
            }
            norm = try self.norm(gradients, of: trained)
        }
        let factor = schedule.factor(trained.optimizer.steps)
        var report = IterationReport(
            iteration: iteration + 1, net: trained === student ? "student" : "critic",
            loss: share * sums.loss, norm: share * norm,
            learningRate: trained.optimizer.settings.learningRate * factor)
        report.isPausing = sums.isPausing
        if sums.isSpoiled, !settings.asReference {
            report.skipped = "a sample's numbers are not finite"
        } else if !norm.isFinite {
            report.skipped = "the gradients are not finite"
        } else {
            let clipping =
                settings.largestNorm.map { GradientNorm.clipping(share * norm, to: $0) } ?? 1
            trained.withMoments {
                trained.optimizer.step(
                    trained.parameters, gradients, factor: factor, scale: Float(share) * clipping,
                    average: averaging.flatMap { iteration in
                        student.average.map { ($0, $0.weight(iteration)) }
                    })
            }
            try trained.sharing?.spread()
        }
        iteration += 1
        try device.synchronize()
        return report
    }

    /// Waits for the other processes where nets need them. One that has ended is noticed here: NCCL would wait for it.
    public func meet() throws {
        if sequence != nil || shards != nil { _ = try group?.sum([0]) }
    }

    /// Throws where processes could not give each other what nets need: what nets have given since then means nothing.
    public func checkProcesses() throws {
        try sequence?.check()
        try shards?.check()
    }

    /// By what sums over passes and processes count. Losses of rCM are sums over samples, those of the others means; the
    /// original takes rCM's mean over processes, too.
    private var share: Double {
        let isMean = settings.recipe != .rcm || settings.asReference
        return 1 / Double(settings.accumulation * (isMean ? groups : 1))
    }

    /// Processes that share out tokens count as one.
    private var groups: Int { group.map { $0.place.count / settings.sequenceParallel } ?? 1 }

    /// This process's samples of a pass, and the number of the first one among all samples of the iteration.
    private func batch(_ part: Int) throws -> (samples: [Sample], first: Int) {
        let place = settings.batch * ((group?.place.rank ?? 0) / settings.sequenceParallel)
        let numbers = order.batch(iteration * settings.accumulation + part)
        let found = try numbers[place..<place + settings.batch].map(samples.sample)
        try check(found)
        if shards != nil, settings.batch > 1, let group {
            let shape = found[0].latents.shape
            student.net.leastTokens = try group.largest(student.net.tokens(of: shape))
        }
        return (found, part * order.batch + place)
    }

    /// Throws where samples do not fit the transformer, which the first one of the data set does, or each other.
    private func check(_ batch: [Sample]) throws {
        let usual: (channels: Int, width: Int)
        if let known = self.usual {
            usual = known
        } else {
            let first = try samples.sample(0)
            usual = (first.latents.shape[0], first.text.rows.shape[1])
            self.usual = usual
        }
        for sample in batch {
            let (shape, text) = (sample.latents.shape, sample.text.rows.shape)
            guard shape[0] == usual.channels, text[1] == usual.width, shape[2] % patch == 0,
                shape[3] % patch == 0
            else {
                throw DataError(
                    "a sample has latents of \(shape) and text of \(text): expected "
                        + "\(usual.channels) channels, heights and widths that are multiples of "
                        + "\(patch), and text of width \(usual.width), as the first sample has")
            }
            guard shape == batch[0].latents.shape else {
                throw DataError(
                    "the samples of a batch have different sizes, \(batch[0].latents.shape) and "
                        + "\(shape): --batch-size 1 takes them one by one")
            }
            let (tokens, membership) = (
                student.net.tokens(of: shape), student.net.device.membership
            )
            guard tokens > 0 else {
                throw DataError(
                    "a sample has latents of \(shape), which make no tokens: expected a frame or "
                        + "more, and \(patch) rows and columns or more")
            }
            guard membership.isAlone || membership.sequence(tokens).smallest > 0 else {
                let blocks = max(1, tokens / Int8Blocks.side)
                throw DataError(
                    "--sequence-parallel is \(membership.count), but a sample's \(tokens) tokens make "
                        + "\(blocks) blocks of \(Int8Blocks.side): expected at most \(blocks)")
            }
        }
    }

    private struct Sums {
        /// Of own parameters.
        var gradients: [String: Tensor]
        /// Of all parameters, and the losses; neither is divided by their number.
        var norm, loss: Double
        var isSpoiled, isPausing: Bool
    }

    /// Adds up what all processes have found.
    private func sum(
        _ result: StepResult, of trained: TrainedNet, pausing: () -> Bool
    ) throws -> Sums {
        // Processes that share out tokens find the same loss: the first one tells it.
        let loss = (sequence?.membership.isFirst ?? true) ? result.losses.reduce(0, +) : 0
        guard let group, let sharing = trained.sharing else {
            return Sums(
                gradients: result.gradients, norm: try norm(result.gradients, of: trained),
                loss: loss, isSpoiled: result.isSpoiled, isPausing: pausing())
        }
        let facts = try group.sum([loss, result.isSpoiled ? 1 : 0, pausing() ? 1 : 0])
        let gradients = try sharing.sum(result.gradients)
        return Sums(
            gradients: gradients, norm: try norm(gradients, of: trained), loss: facts[0],
            isSpoiled: facts[1] > 0, isPausing: facts[2] > 0)
    }

    private func norm(_ own: [String: Tensor], of trained: TrainedNet) throws -> Double {
        let norm = GradientNorm.norm(own, on: device)
        guard let group else { return norm }
        return try group.sum([norm * norm])[0].squareRoot()
    }
}
