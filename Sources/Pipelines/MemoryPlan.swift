/// How much memory and work a request takes, known before anything is loaded: the models' own code is run on a machine
/// that computes nothing.

import Checkpoints
import Diffusion
import Models
import Tensors

/// The plan of a run.
public struct MemoryPlan: Sendable, Codable, Equatable {
    /// One stage. Bytes are of device memory.
    public struct Stage: Sendable, Codable, Equatable {
        public var name: String
        public var weightBytes: Int
        /// The largest of the weight groups that may stream in while others are used.
        public var largestGroup: Int
        /// Weights in groups, which may stream; the others must stay.
        public var groupedBytes: Int
        public var activationBytes: Int
        /// Multiplications and additions.
        public var operations: Double
        /// Bytes read and written by all operations.
        public var traffic: Double

        /// Weights that never leave while the stage lasts.
        fileprivate var fixedBytes: Int { weightBytes - groupedBytes }
    }

    public var stages: [Stage]
    /// What LoRAs will do, for people.
    public var loras: [String] = []
    public var peakBytes: Int
    /// Bytes of grouped weights that stay on the device; nil: all.
    public var residentWeights: Int?
    public var keepsTransformer = true
    public var keepsBothExperts = true

    /// `options` with what the plan decides.
    public var options: RunOptions {
        var options = base
        options.keepsTransformer = options.keepsTransformer && keepsTransformer
        options.keepsBothExperts = options.keepsBothExperts && keepsBothExperts
        return options
    }
    private var base = RunOptions()

    private enum CodingKeys: CodingKey {
        case stages, loras, peakBytes, residentWeights, keepsTransformer, keepsBothExperts
    }

    /// Reads the headers of the checkpoints, and nothing else.
    public init(_ models: ModelSet, _ request: VideoRequest, _ options: RunOptions) throws {
        base = options
        stages = []
        peakBytes = 0
        if options.latents == nil {
            loras = try models.effects(of: request)
            if options.textEmbedding == nil {
                stages.append(try Self.textEncoder(models, request))
            }
            if request.image != nil { stages.append(try Self.imageEncoder(models, request)) }
            let steps = try request.makeSampler(roundTimesteps: true).steps
            for role in models.experts(for: steps, of: request) {
                stages.append(try Self.transformer(role, steps, models, request))
            }
        }
        stages.append(try Self.decoder(models, request))
        settle()
    }

    /// The same run within `limit` bytes: first the transformer leaves before decoding, then experts take turns, then
    /// weights stream. Throws where even that is too much.
    public func fitted(to limit: Int?, _ options: RunOptions) throws(RequestError) -> MemoryPlan {
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
            let least =
                plan.stages.map { stage in
                    plan.fixedBytes(in: stage) + 2 * stage.largestGroup + stage.activationBytes
                }.max() ?? 0
            guard least <= limit else {
                throw RequestError(
                    "this request needs at least \(least >> 20) MiB of device memory, the limit is "
                        + "\(limit >> 20) MiB: choose fewer frames or a smaller size")
            }
            // What allocators lose between blocks of different sizes.
            let usable = limit - limit / 32 - (256 << 20)
            plan.residentWeights = plan.stages.filter { $0.groupedBytes > 0 }.map { stage in
                usable - plan.fixedBytes(in: stage) - 2 * stage.largestGroup
                    - stage.activationBytes
            }.min().map { max(0, $0) }
            plan.settle()
            plan.peakBytes = min(plan.peakBytes, limit)
        }
        return plan
    }

    private var transformers: [Stage] { stages.filter { $0.name.contains("transformer") } }

    /// Bytes of weights that are on the device during a stage wherever the others are: of two experts that take
    /// turns, both keep what is in no group.
    private func fixedBytes(in stage: Stage) -> Int {
        (transformers.contains(stage) ? transformers : [stage]).reduce(0) { $0 + $1.fixedBytes }
    }

    /// The peak, with what stays on the device from stage to stage.
    private mutating func settle() {
        func weights(in stage: Stage) -> Int {
            fixedBytes(in: stage) + stage.groupedBytes
        }
        let kept =
            keepsBothExperts
            ? transformers.reduce(0) { $0 + $1.weightBytes }
            : transformers.map(weights).max() ?? 0
        peakBytes =
            stages.map { stage in
                if transformers.contains(stage) {
                    return (keepsBothExperts ? kept : weights(in: stage)) + stage.activationBytes
                }
                let stays = stage.name == ModelRole.decoder.rawValue && keepsTransformer
                return stage.weightBytes + stage.activationBytes + (stays ? kept : 0)
            }.max() ?? 0
    }
}

// MARK: - Stages

extension MemoryPlan {
    /// Loads and runs a model on nothing.
    private static func stage(
        _ name: String, _ body: (NullBackend) throws -> (() -> Void)
    ) throws -> Stage {
        let device = NullBackend(workspace: workspace(of:))
        let run = try body(device)
        let placed = device.placedBytes
        let groups = device.groups.filter { !$0.isVisitor }.map(\.byteCount)
        // Two groups of those that are only visited are on their way or in use.
        let visited = device.groups.filter(\.isVisitor).map(\.byteCount).max() ?? 0
        device.resetCounts()
        device.resetPeak()
        run()
        return Stage(
            name: name, weightBytes: placed + 2 * visited, largestGroup: groups.max() ?? 0,
            groupedBytes: groups.reduce(0, +), activationBytes: device.memory.peak - placed,
            operations: Double(device.total.flops), traffic: Double(device.total.bytes))
    }

    /// Scratch memory of sparse attention's kernels: 8-bit copies of q, k and v, the linear branch's
    /// result in bf16, block scores.
    private static func workspace(of operation: Operation) -> Int {
        guard case .sparseLinearAttention(let o) = operation else { return 0 }
        return 6 * o.q.shape.count
    }

    private static func textEncoder(_ models: ModelSet, _ request: VideoRequest) throws -> Stage {
        try stage(ModelRole.textEncoder.rawValue) { device in
            let encoder = try UMT5(
                models.weights(
                    .textEncoder, of: models.checkpoint(.textEncoder), for: request, on: device))
            let length = models.defaults.textLength
            return {
                let ids = [Int32](repeating: 1, count: length)
                for _ in 0..<(request.isGuided ? 2 : 1) {
                    _ = encoder(ids, textLength: length, on: device)
                }
            }
        }
    }

    private static func imageEncoder(_ models: ModelSet, _ request: VideoRequest) throws -> Stage {
        try stage(ModelRole.imageEncoder.rawValue) { device in
            let encoder = try WanVAE.Encoder(
                models.weights(
                    .imageEncoder, of: models.checkpoint(.imageEncoder), for: request, on: device),
                statistics: models.statistics)
            let dtype = request.precision.dtype
            return {
                let picture = device.place(
                    .zeros([request.height, request.width, 3], dtype), as: dtype)
                _ = encoder.encodeImage(picture, frameCount: request.frames, on: device)
            }
        }
    }

    private static func transformer(
        _ role: ModelRole, _ steps: [DenoisingStep], _ models: ModelSet, _ request: VideoRequest
    ) throws -> Stage {
        let count = steps.count { models.expert(for: $0, of: request) == role }
        let experts = models.experts(for: steps, of: request).count
        return try stage(role.rawValue) { device in
            let model = try models.makeTransformer(
                role, from: models.checkpoint(role), for: request, sage: .sm90, on: device)
            let size = request.latentSize
            let length = models.defaults.textLength
            return {
                let text = TextEmbedding(
                    rows: device.place(
                        .zeros([length, model.config.textDim], request.precision.dtype),
                        as: request.precision.dtype), count: length)
                // Both experts see the texts before the first step.
                let prompts = request.isGuided ? 2 : 1
                let contexts = (0..<experts * prompts).map { _ in
                    model.prepare(text, size: size, on: device)
                }
                let x = device.place(.zeros([16, size.t, size.h, size.w], .f32), as: .f32)
                let conditioning = request.image.map { _ in
                    device.place(.zeros([20, size.t, size.h, size.w], .f32), as: .f32)
                }
                let state = device.combine([x], [1], as: .f64)
                for _ in 0..<count * request.samples {
                    for context in contexts.prefix(prompts) {
                        _ = model(
                            [x] + (conditioning.map { [$0] } ?? []), timestep: 500, context,
                            on: device)
                    }
                }
                withExtendedLifetime(state) {}
            }
        }
    }

    private static func decoder(_ models: ModelSet, _ request: VideoRequest) throws -> Stage {
        try stage(ModelRole.decoder.rawValue) { device in
            let decoder = try WanVAE.Decoder(
                models.weights(.decoder, of: models.checkpoint(.decoder), for: request, on: device),
                statistics: models.statistics)
            let size = request.latentSize
            return {
                for _ in 0..<request.samples {
                    let latents = device.place(
                        .zeros([16, size.t, size.h, size.w], .f32), as: .f32)
                    for chunk in decoder(latents, on: device) { _ = device.rgb8(chunk) }
                }
            }
        }
    }
}
