/// How much memory and work a run takes, known before anything is loaded: the run itself, walked on a machine that
/// computes nothing.

public import Families
import Media
import Tensors
import Tokenizers

/// The plan of a run.
public struct Plan: Sendable, Hashable, Codable {
    /// What one of the run's models takes. Bytes are of device memory.
    public struct Stage: Sendable, Hashable, Codable {
        public let part: ModelPart
        public var weightBytes = 0
        /// The largest of the weight groups that may stream in while others are used.
        public var largestGroup = 0
        /// Weights in groups, which may stream; the others must stay.
        public var groupedBytes = 0
        public var activationBytes = 0
        /// Multiplications and additions.
        public var operations = 0.0
        /// Bytes read and written by all operations.
        public var traffic = 0.0

        /// Weights that never leave while the stage lasts.
        fileprivate var fixedBytes: Int { weightBytes - groupedBytes }
    }

    /// In the order in which the run uses its models.
    public private(set) var stages: [Stage] = []
    /// What the user should know of the files, and what LoRAs will do.
    public private(set) var notices: [Notice]
    public private(set) var peakBytes = 0
    /// Bytes of grouped weights that stay on the device; nil: all.
    public private(set) var residentWeights: Int?
    public private(set) var keepsTransformer: Bool
    public private(set) var keepsBothExperts: Bool

    /// Reads the headers of the checkpoints and the files that the run starts from.
    /// - Throws: what the run itself would throw before its first stage.
    public init(_ run: Run) throws {
        keepsTransformer = run.options.keepsTransformer
        keepsBothExperts = run.options.keepsBothExperts
        let arithmetic = run.request.arithmetic
        try run.models.checkFit(
            run.parts, attention: arithmetic.attention, linears: arithmetic.linears)
        notices = try run.fileNotices()
        if run.options.start.latents == nil { notices += try run.loraNotices() }
        try walk(run)
        settle()
    }

    /// The run with what the plan decides.
    public func applied(to run: Run) -> Run {
        var run = run
        run.options.keepsTransformer = keepsTransformer
        run.options.keepsBothExperts = keepsBothExperts
        return run
    }

    /// The same run within `limit` bytes: first the transformer leaves before decoding, then experts take turns, then
    /// weights stream. Throws where even that is too much.
    public func fitted(to limit: Int?) throws(RunError) -> Plan {
        var plan = self
        guard let limit, plan.peakBytes > limit else { return plan }
        plan.keepsTransformer = false
        plan.settle()
        if plan.peakBytes > limit {
            plan.keepsBothExperts = false
            plan.settle()
        }
        if plan.peakBytes > limit {
            // Two groups are on their way or in use beside those that stay.
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
            plan.settle()
            plan.peakBytes = min(plan.peakBytes, limit)
        }
        return plan
    }

    private var transformers: [Stage] { stages.filter(\.part.isTransformer) }

    /// Bytes of weights that are on the device during a stage wherever the others are: of two experts that take
    /// turns, both keep what is in no group.
    private func fixedBytes(in stage: Stage) -> Int {
        (stage.part.isTransformer ? transformers : [stage]).reduce(0) { $0 + $1.fixedBytes }
    }

    /// The peak, with what stays on the device from stage to stage.
    private mutating func settle() {
        func weights(in stage: Stage) -> Int { fixedBytes(in: stage) + stage.groupedBytes }
        let kept =
            keepsBothExperts
            ? transformers.reduce(0) { $0 + $1.weightBytes }
            : transformers.map(weights).max() ?? 0
        peakBytes =
            stages.map { stage in
                if stage.part.isTransformer {
                    return (keepsBothExperts ? kept : weights(in: stage)) + stage.activationBytes
                }
                let stays = stage.part == .decoder && keepsTransformer
                return stage.weightBytes + stage.activationBytes + (stays ? kept : 0)
            }.max() ?? 0
    }
}

// MARK: - The run on nothing

extension Plan {
    /// Walks the run and notes what each of its models takes. Every model leaves after its use: what stays is `settle`'s
    /// to say.
    private mutating func walk(_ run: Run) throws {
        var run = run
        run.options.save = RunOptions.Files()
        run.options.keepsTextEncoder = false
        run.options.keepsTransformer = false
        run.options.keepsBothExperts = true
        let device = NullBackend(workspace: Self.workspace(of:))
        var walk = try Walk(
            run, ModelPool(), on: OpenedDevice(device, sageArchitecture: .sm90))
        walk.inspectsNumbers = false
        walk.isPlanned = true
        walk.inputs = RunInputs(planning: run)
        var held: [ModelPart: Int] = [:]
        while !walk.isDone {
            let stage = walk.upcoming
            let (placed, groupCount, work) = (device.placedBytes, device.groups.count, device.total)
            _ = try walk.advance()
            guard let stage else {
                held = held.filter { walk.state.models[$0.key] != nil }
                continue
            }
            guard let index = index(of: stage) else { continue }
            if case .load(let part) = stage {
                let groups = device.groups.dropFirst(groupCount)
                // Two groups of those that are only visited are on their way or in use.
                let visited = groups.filter(\.isVisitor).map(\.byteCount).max() ?? 0
                let lasting = groups.filter { !$0.isVisitor }.map(\.byteCount)
                held[part] = device.placedBytes - placed
                stages[index].weightBytes = device.placedBytes - placed + 2 * visited
                stages[index].largestGroup = lasting.max() ?? 0
                stages[index].groupedBytes = lasting.reduce(0, +)
            } else {
                let weights = held.values.reduce(0, +)
                stages[index].activationBytes = max(
                    stages[index].activationBytes, device.memory.peak - weights)
                stages[index].operations += Double(device.total.flops - work.flops)
                stages[index].traffic += Double(device.total.bytes - work.bytes)
            }
        }
    }

    /// The place of the model that carries out a stage.
    private mutating func index(of stage: Runs.Stage) -> Int? {
        let part: ModelPart
        switch stage {
        case .load(let loaded): part = loaded
        case .encodeText: part = .textEncoder
        case .encodeImage: part = .imageEncoder
        case .projectText(let model): part = model
        case .step(_, _, let expert): part = expert ?? .transformer
        case .decode: part = .decoder
        case .deliver: return nil
        }
        if let index = stages.firstIndex(where: { $0.part == part }) { return index }
        stages.append(Stage(part: part))
        return stages.count - 1
    }

    /// Scratch memory of sparse attention's kernels: 8-bit copies of q, k and v, the linear branch's
    /// result in bf16, block scores.
    private static func workspace(of operation: Operation) -> Int {
        guard case .sparseLinearAttention(let o) = operation else { return 0 }
        return 6 * o.q.shape.count
    }
}

extension RunInputs {
    /// The longest prompt and a black picture.
    fileprivate init(planning run: Run) {
        let tokens = Tokens([Int32](repeating: 1, count: run.family.textLength))
        prompt = tokens
        negativePrompt = run.request.sampling.isGuided ? tokens : nil
        let (width, height) = (run.request.width, run.request.height)
        image = RGBImage(
            width: width, height: height,
            pixels: [UInt8](repeating: 0, count: 3 * width * height))
    }
}
