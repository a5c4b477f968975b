/// How much memory and work a run takes, found out before anything is loaded, by executing the run on a backend that
/// computes nothing.

public import Families
import Ground
import Media
import Tensors
import Tokenizers

/// The plan of a run.
public struct Plan: Sendable, Hashable, Codable {
    /// What one of the run's models takes. All bytes are device memory.
    public struct Stage: Sendable, Hashable, Codable {
        public let part: ModelPart
        public var weightBytes = 0
        /// Bytes of the largest weight group that can be streamed.
        public var largestGroup = 0
        /// Bytes of the weights in groups, which can be streamed; all other weights must stay.
        public var groupedBytes = 0
        /// Bytes of weights that are used once for each prompt and held by this device of a group for all, if all its weights
        /// stay.
        public var heldBytes = 0
        public var activationBytes = 0
        /// Multiplications and additions.
        public var operations = 0.0
        /// Bytes read and written by all operations.
        public var traffic = 0.0
        /// Bytes for the other devices of a group.
        public var sentBytes = 0.0

        /// Bytes of the weights that never leave during the stage.
        fileprivate var fixedBytes: Int { weightBytes - groupedBytes - heldBytes }
    }

    /// One stage of the run: what its progress is measured by.
    public struct Work: Sendable, Hashable, Codable {
        public let stage: Runs.Stage
        /// Multiplications and additions.
        public var operations = 0.0
        /// Bytes read and written by all operations.
        public var traffic = 0.0
        /// Bytes of weights that are opened. They come to the device when they are required, with the first step.
        public var weights = 0.0
    }

    /// In the order in which the run uses its models.
    public private(set) var stages: [Stage] = []
    /// In the order of the run.
    public private(set) var work: [Work] = []
    /// What the user should know of the files, and what LoRAs will do.
    public private(set) var notices: [Notice]
    /// The most device memory that the run takes at once.
    public private(set) var peakBytes = 0
    /// Bytes of grouped weights that stay on the device while the others are streamed; nil if all stay.
    public private(set) var residentWeights: Int?
    public private(set) var keepsTransformer: Bool
    public private(set) var keepsBothExperts: Bool
    public let devices: Int
    /// Whether they copy weights from each other's memory.
    public let sharesWeights: Bool

    /// Plans a run. Reads the headers of its checkpoints, and the files that it starts from.
    /// - Parameters:
    ///   - devices: that make the video together; bytes and work are those of the first one, which has the largest share.
    ///   - sharesWeights: whether they copy weights from each other's memory.
    /// - Throws: what the run itself would throw before its first stage.
    public init(_ run: Run, devices: Int = 1, sharesWeights: Bool = false) throws {
        self.devices = devices
        self.sharesWeights = sharesWeights && devices > 1
        keepsTransformer = run.options.keepsTransformer
        keepsBothExperts = run.options.keepsBothExperts
        let arithmetic = run.request.arithmetic
        try run.models.checkFit(
            run.parts, attention: arithmetic.attention, linears: arithmetic.linears)
        notices = try run.requestNotices + run.fileNotices()
        if run.options.start.latents == nil { notices += try run.loraNotices() }
        try walk(run)
        updatePeak()
    }

    /// The same plan with the notices of another request that differs in its words only.
    package func withNotices(of run: Run) -> Plan {
        var plan = self
        let others = notices.filter { if case .untrained = $0 { false } else { true } }
        plan.notices = run.requestNotices + others
        return plan
    }

    /// The run with the plan's decisions in its options.
    public func applied(to run: Run) -> Run {
        var run = run
        run.options.keepsTransformer = keepsTransformer
        run.options.keepsBothExperts = keepsBothExperts
        return run
    }

    /// The run, set to keep what fits of its models, and of other runs' models, within `limit` bytes of device memory.
    /// The plan must be fitted to that limit.
    public func applied(to run: Run, keepingWithin limit: Int) -> Run {
        var run = applied(to: run)
        let residency = Residency(self, within: limit)
        run.options.residency = residency
        run.options.keepsTextEncoder = residency.kept.contains(.textEncoder)
        run.options.keepsImageEncoder = residency.kept.contains(.imageEncoder)
        run.options.keepsTransformer = residency.kept.contains { $0.isTransformer }
        return run
    }

    /// A plan of the same run that stays within `limit` bytes on each device. To save memory, first the transformer leaves
    /// before decoding, then experts take turns, then weights are streamed: from the devices that hold them, as far as there
    /// are others with room, else from host memory.
    /// - Throws: `RunError.memory` if even that needs more than `limit`.
    public func fitted(to limit: Int?) throws(RunError) -> Plan {
        var plan = self
        guard let limit, plan.peakBytes > limit else { return plan }
        plan.keepsTransformer = false
        plan.updatePeak()
        if plan.peakBytes > limit {
            plan.keepsBothExperts = false
            plan.updatePeak()
        }
        if plan.peakBytes > limit {
            // Beside the weights that stay, two groups are being copied or used.
            func least(_ stage: Stage) -> Int {
                plan.fixedBytes(in: stage) + 2 * stage.largestGroup + stage.activationBytes
            }
            let needed = plan.stages.map(least).max() ?? 0
            guard needed <= limit else {
                throw .memory(neededBytes: needed, limitBytes: limit)
            }
            // What allocators lose between blocks of different sizes.
            let usable = limit - limit / 32 - (256 << 20)
            plan.residentWeights = plan.stages.filter { $0.groupedBytes > 0 }.map {
                usable - least($0)
            }.min().map { max(0, $0) }
            plan.updatePeak()
            plan.peakBytes = min(plan.peakBytes, limit)
        }
        return plan
    }

    /// Bytes of a transformer's weights that come anew for each of its steps.
    public var streamedBytes: Int {
        guard let residentWeights else { return 0 }
        return max(0, (transformers.map(\.groupedBytes).max() ?? 0) - residentWeights)
    }

    /// Of these bytes, those that come from host memory because no device of a group has room for them: 0 where the weights
    /// are split among its devices. Every weight has one owner, and owners' shares differ by one weight at most.
    public var bytesFromHost: Int {
        guard let residentWeights else { return 0 }
        guard sharesWeights else { return streamedBytes }
        return transformers.map { stage in
            let share = min(stage.groupedBytes, stage.groupedBytes / devices + stage.largestGroup)
            return residentWeights >= share
                ? 0 : max(1, stage.groupedBytes - devices * residentWeights)
        }.max() ?? 0
    }

    private var transformers: [Stage] { stages.filter(\.part.isTransformer) }

    /// Bytes of weights that are always on the device during a stage. Even if two experts take turns, both keep the
    /// weights that are in no group.
    private func fixedBytes(in stage: Stage) -> Int {
        (stage.part.isTransformer ? transformers : [stage]).reduce(0) { $0 + $1.fixedBytes }
    }

    /// Computes `peakBytes` from the stages and from what stays on the device between them.
    private mutating func updatePeak() {
        let held = residentWeights == nil ? transformers.reduce(0) { $0 + $1.heldBytes } : 0
        func weights(in stage: Stage) -> Int {
            fixedBytes(in: stage) + stage.groupedBytes + (stage.part.isTransformer ? held : 0)
        }
        let kept =
            keepsBothExperts
            ? transformers.reduce(0) { $0 + $1.weightBytes }
            : transformers.map(weights).max() ?? 0
        // The decoder comes behind the last step where the transformer stays.
        let ahead =
            keepsTransformer ? stages.first { $0.part == .decoder }?.weightBytes ?? 0 : 0
        peakBytes =
            stages.map { stage in
                if stage.part.isTransformer {
                    return (keepsBothExperts ? kept : weights(in: stage)) + stage.activationBytes
                        + ahead
                }
                let stays = stage.part == .decoder && keepsTransformer
                return stage.weightBytes + stage.activationBytes + (stays ? kept : 0)
            }.max() ?? 0
    }
}

// MARK: - Executing the run on a backend that computes nothing

extension Plan {
    /// Executes the run and records what each of its models takes. Here every model leaves after its use; `updatePeak`
    /// adds what stays.
    private mutating func walk(_ run: Run) throws {
        var run = run
        run.options.save = RunOptions.Files()
        run.options.keepsTextEncoder = false
        run.options.keepsTransformer = false
        run.options.keepsBothExperts = true
        let device = NullBackend(
            workspace: Self.workspace(of:), membership: Membership(index: 0, of: devices))
        var walk = try Walk(
            run, ModelPool(), on: OpenedDevice(device, sageArchitecture: .sm90))
        walk.inspectsNumbers = false
        walk.isPlanned = true
        walk.inputs = RunInputs(planning: run)
        var held: [ModelPart: Int] = [:]
        while !walk.isDone {
            let stage = walk.upcoming
            let (placed, groupCount, before) = (
                device.placedBytes, device.groups.count, device.total
            )
            _ = try walk.advance()
            guard let stage else {
                held = held.filter { walk.state.models[$0.key] != nil }
                continue
            }
            guard let index = index(of: stage) else { continue }
            if work.last?.stage != stage { work.append(Work(stage: stage)) }
            let last = work.count - 1
            work[last].operations += Double(device.total.flops - before.flops)
            work[last].traffic += Double(device.total.bytes - before.bytes)
            if case .load(let part) = stage {
                work[last].weights = Double(device.placedBytes - placed)
                let groups = device.groups.dropFirst(groupCount)
                // Of the groups that leave after use, two are being copied or used at a time.
                let visited = groups.filter(\.isVisitor).map(\.byteCount).max() ?? 0
                let lasting = groups.filter { !$0.isVisitor }.map(\.byteCount)
                held[part] = device.placedBytes - placed
                if sharesWeights {
                    let once = groups.filter(\.isVisitor).map(\.byteCount).reduce(0, +)
                    stages[index].heldBytes = ceilDivide(once, devices)
                }
                stages[index].weightBytes =
                    device.placedBytes - placed + 2 * visited + stages[index].heldBytes
                stages[index].largestGroup = lasting.max() ?? 0
                stages[index].groupedBytes = lasting.reduce(0, +)
            } else {
                let weights = held.values.reduce(0, +)
                stages[index].activationBytes = max(
                    stages[index].activationBytes, device.memory.peak - weights)
                stages[index].operations += Double(device.total.flops - before.flops)
                stages[index].traffic += Double(device.total.bytes - before.bytes)
                stages[index].sentBytes += Double(device.total.sentBytes - before.sentBytes)
            }
        }
    }

    /// The index in `stages` of the model that executes a stage.
    private mutating func index(of stage: Runs.Stage) -> Int? {
        guard let part = stage.part else { return nil }
        if let index = stages.firstIndex(where: { $0.part == part }) { return index }
        stages.append(Stage(part: part))
        return stages.count - 1
    }

    /// Scratch bytes of the kernels of sparse attention: 8-bit copies of q, k and v, the linear branch's result in
    /// bf16, block scores.
    private static func workspace(of operation: Operation) -> Int {
        guard case .sparseLinearAttention(let o) = operation else { return 0 }
        return 6 * o.q.shape.count
    }
}

extension RunInputs {
    /// Inputs that take the most memory: prompts of full length, and a black picture.
    fileprivate init(planning run: Run) {
        // Every table of tokens has a first row.
        let tokens = Tokens([Int32](repeating: 0, count: run.family.textLength))
        prompt = tokens
        negativePrompt = run.request.sampling.isGuided ? tokens : nil
        let (width, height) = (run.request.width, run.request.height)
        image = RGBImage(
            width: width, height: height,
            pixels: [UInt8](repeating: 0, count: 3 * width * height))
    }
}
