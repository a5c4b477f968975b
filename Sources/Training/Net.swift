/// A transformer as recipes see it: a velocity, its tangent, and the way back to the parameters.

public import Checkpoints
import Ground
public import Models
public import Tensors

/// Whether a block's activations are kept for the way back or computed again.
public enum Recomputation: String, Sendable, Hashable, Codable, CaseIterable {
    case none, block
}

/// A prompt's embedding in host memory.
public struct Text {
    /// [rows, textDim]; rows past `count` are zero.
    public let rows: Tensor
    public let count: Int

    public init(rows: Tensor, count: Int) {
        self.rows = rows
        self.count = count
    }

    /// Rows up to the last that is not zero are the prompt's.
    public init(_ rows: Tensor) {
        let values = rows.floats()
        let dim = rows.shape[1]
        self.init(rows: rows, count: values.lastIndex { $0 != 0 }.map { $0 / dim + 1 } ?? 0)
    }

    /// The same with rows of zeros up to `length`: cross attention counts them all, and files may hold the prompt's
    /// rows alone.
    /// - Throws: `DataError` where there are more rows.
    public func padded(to length: Int) throws(DataError) -> Text {
        let (found, dim) = (rows.shape[0], rows.shape[1])
        guard found <= length else {
            throw DataError(
                "a text embedding has \(found) rows, expected at most \(length), the model's length "
                    + "of a text")
        }
        if found == length { return self }
        let zeros = [Float](repeating: 0, count: (length - found) * dim)
        let whole = Tensor(rows.floats() + zeros, [length, dim])
        return Text(rows: whole.converted(to: rows.dtype), count: count)
    }
}

/// A net with constant or with trained parameters on one device.
public final class Net {
    public let checkpoint: any Checkpoint
    public let options: WanTransformerOptions
    public let activations: DType
    /// To what timesteps are rounded before the embedding: bf16 in the published models.
    public let timestepType: DType
    public let device: any Backend
    /// Where the weights of nets are placed: those of a checkpoint that is not trained once.
    private let weightDevice: any Backend
    /// Sums gradients over processes as soon as they are complete, where trained weights are split.
    private let reducer: ShardedNet?
    public let recomputation: Recomputation
    /// Adapters that are trained in place of the checkpoint's own tensors.
    public let adapters: LowRankAdapters?
    /// What the linear layers of the blocks become while they are placed.
    public let linearFormat: LinearFormat
    private let named: NamedCheckpoint
    private var built: (version: Int, net: Built)?

    /// A model and the backend that its operations go to.
    private struct Built {
        let model: WanTransformer
        let device: any Backend
    }

    /// - Parameter checkpoint: `Parameters` where they are trained.
    public convenience init(
        _ checkpoint: any Checkpoint, _ options: WanTransformerOptions, activations: DType,
        timestepType: DType? = nil, recomputation: Recomputation = .none,
        adapters: LowRankAdapters? = nil, linearFormat: LinearFormat = .plain,
        on device: any Backend
    ) {
        self.init(
            checkpoint, options, activations: activations, timestepType: timestepType,
            recomputation: recomputation, adapters: adapters, linearFormat: linearFormat,
            shards: nil, on: device)
    }

    /// - Parameter shards: of the checkpoint's tensors, on a device that `device` is or forwards to; nil: all are here.
    init(
        _ checkpoint: any Checkpoint, _ options: WanTransformerOptions, activations: DType,
        timestepType: DType?, recomputation: Recomputation, adapters: LowRankAdapters?,
        linearFormat: LinearFormat, shards: Shards?, on device: any Backend
    ) {
        self.checkpoint = checkpoint
        self.options = options
        self.activations = activations
        self.timestepType = timestepType ?? activations
        self.recomputation = recomputation
        self.adapters = adapters
        self.linearFormat = linearFormat
        self.device = device
        let named = NamedCheckpoint(checkpoint)
        self.named = named
        let trained = adapters == nil ? checkpoint as? Parameters : nil
        if let shards {
            let sharded = ShardedNet(shards, isConstant: trained == nil, on: device) {
                trained?.name(of: $0) ?? named.name(of: $0)
            }
            weightDevice = sharded
            reducer = trained == nil ? nil : sharded
        } else {
            weightDevice = trained == nil ? PlacedOnce(device, names: named) : device
            reducer = nil
        }
    }

    /// The parameters, where this net has some to train.
    public var parameters: Parameters? { adapters?.parameters ?? checkpoint as? Parameters }

    /// Whether the parameters are split over processes.
    var isSharded: Bool { reducer != nil }

    /// Whether the checkpoint's own tensors are trained.
    private var isTrained: Bool { adapters == nil && checkpoint is Parameters }

    /// The net of this moment's parameters.
    public func model() throws(CheckpointError) -> WanTransformer { try current().model }

    private func current() throws(CheckpointError) -> Built {
        let version = parameters?.version ?? 0
        if let built, built.version == version { return built.net }
        let net = try build(on: weightDevice)
        built = (version, net)
        return net
    }

    private func build(on base: any Backend) throws(CheckpointError) -> Built {
        let device = adapters.map { AdaptedBackend(base, $0, names: named) } ?? base
        let weights = Weights(
            isTrained ? checkpoint : named, on: device, activations: activations,
            linearFormat: linearFormat)
        return Built(model: try WanTransformer(weights, options), device: device)
    }

    private func rounded(_ timestep: Double) -> Double {
        switch timestepType {
        case .bf16: Double(BFloat16(Float(timestep)).float)
        case .f32: Double(Float(timestep))
        default: timestep
        }
    }

    private func size(_ x: Tensor) -> Extent { Extent(t: x.shape[1], h: x.shape[2], w: x.shape[3]) }

    /// In which passes a batch is taken: as many samples at once as fill a device. Processes that share out tokens take
    /// sample after sample.
    func passes(_ count: Int, of shape: Shape) -> [Range<Int>] {
        let most = device.membership.isAlone ? count : 1
        let size = max(
            1, min(most, Self.passTokens / max(1, tokens(of: shape), leastTokens)))
        return stride(from: 0, to: count, by: size).map { $0..<min($0 + size, count) }
    }

    private static let passTokens = 65_000
    /// The tokens that samples count as at least, so that all processes take as many passes.
    var leastTokens = 0

    /// The tokens of latents [C, T, H, W].
    func tokens(of shape: Shape) -> Int {
        shape[1] * (shape[2] / options.patch) * (shape[3] / options.patch)
    }

    private func context(
        _ model: WanTransformer, _ text: Text, _ x: Tensor, on device: any Backend
    ) -> WanTransformer.Context {
        let rows = device.place(text.rows, as: activations)
        return model.prepare(
            TextEmbedding(rows: rows, count: text.count), size: size(x), on: device)
    }

    private func sinusoid(_ model: WanTransformer, _ timestep: Double) -> Tensor {
        TimeEmbedding.sinusoid(rounded(timestep), model.config.frequencyDim)
    }

    // MARK: Values

    /// x: f32 [C, T, H, W] on the host; timestep in 0...1000; conditioning: of `Sample` → f32, as x, on the host
    public func velocity(
        _ x: Tensor, at timestep: Double, _ text: Text, conditioning: Tensor? = nil
    ) throws(CheckpointError) -> Tensor {
        let net = try current()
        let (model, device) = (net.model, net.device)
        let modulation = model.modulation(at: rounded(timestep), on: device)
        let context = context(model, text, x, on: device)
        return device.read(
            model(
                ([x] + (conditioning.map { [$0] } ?? [])).map { device.place($0, as: .f32) },
                modulation, context, on: device))
    }

    /// Of samples of one size in one pass.
    /// - Parameter conditioning: of a single sample.
    func velocities(
        _ xs: [Tensor], at timesteps: [Double], _ texts: [Text], conditioning: Tensor? = nil
    ) throws(CheckpointError) -> [Tensor] {
        if xs.count == 1 {
            return [
                try velocity(xs[0], at: timesteps[0], texts[0], conditioning: conditioning)
            ]
        }
        let net = try current()
        let (model, device) = (net.model, net.device)
        let modulation = model.modulation(
            sinusoid: device.place(sinusoids(model, timesteps), as: .f32), on: device)
        let context = context(model, texts, xs[0], on: device)
        var state = model.embed(batch: inputs(xs, on: device), on: device)
        for index in 0..<model.config.layers {
            model.step(&state, block: index, modulation, context, on: device)
        }
        return apart(
            device.read(answers(model, state, modulation, xs, on: device)), xs.count)
    }

    private func context(
        _ model: WanTransformer, _ texts: [Text], _ x: Tensor, on device: any Backend
    ) -> WanTransformer.Context {
        model.prepare(
            batch: texts.map { TextEmbedding(rows: $0.rows, count: $0.count) }, size: size(x),
            on: device)
    }

    private func sinusoids(_ model: WanTransformer, _ timesteps: [Double]) -> Tensor {
        let rows = timesteps.map { sinusoid(model, $0) }
        return Tensor(
            rows.flatMap { $0.floats() }, [rows.count, model.config.frequencyDim])
    }

    /// Latents side by side on the host, [samples * C, T, H, W].
    private func joined(_ xs: [Tensor]) -> Tensor {
        let shape = xs[0].shape
        let whole = Tensor.host(shape.replacingFirst(xs.count * shape[0]), .f32)
        for (index, x) in xs.enumerated() {
            ensure(x.shape == shape && x.dtype == .f32, "samples of one pass must be alike")
            (whole.hostAddress + index * x.byteCount).copyMemory(
                from: x.hostAddress, byteCount: x.byteCount)
        }
        return whole
    }

    /// Undoes `joined`.
    private func apart(_ whole: Tensor, _ count: Int) -> [Tensor] {
        let channels = whole.shape[0] / count
        return (0..<count).map { whole.slice($0 * channels..<($0 + 1) * channels) }
    }

    private func inputs(_ xs: [Tensor], on device: any Backend) -> [Tensor] {
        let (whole, channels) = (device.place(joined(xs), as: .f32), xs[0].shape[0])
        return xs.indices.map { device.slice(whole, $0 * channels..<($0 + 1) * channels) }
    }

    /// The velocities of a batch, [samples * C, T, H, W].
    private func answers(
        _ model: WanTransformer, _ state: Tensor, _ modulation: Modulation, _ xs: [Tensor],
        on device: any Backend
    ) -> Tensor {
        device.concatenate(
            model.latents(
                batch: model.project(state, modulation, on: device), samples: xs.count,
                size: size(xs[0]), on: device))
    }

    // MARK: Forward mode

    /// Of samples of one size in one pass: velocities and their derivatives.
    func moving(
        _ xs: [Tensor], along tangents: [Tensor], at timesteps: [Double],
        along timestepTangents: [Double], _ texts: [Text]
    ) throws(CheckpointError) -> [(velocity: Tensor, tangent: Tensor)] {
        if xs.count == 1 {
            return [
                try moving(
                    xs[0], along: tangents[0], at: timesteps[0], along: timestepTangents[0],
                    texts[0])
            ]
        }
        ensure(adapters == nil, "moving: adapters are trained without tangents")
        let model = try model()
        let context = context(model, texts, xs[0], on: device)
        let moving = Tangents(device)
        let (input, channels) = (device.place(joined(xs), as: .f32), xs[0].shape[0])
        moving.move(input, along: device.place(joined(tangents), as: .f32))
        let sinusoid = device.place(sinusoids(model, timesteps), as: .f32)
        let width = model.config.frequencyDim
        let slopes = zip(timesteps, timestepTangents).flatMap { timestep, tangent in
            let speed = rounded(tangent)
            return TimeEmbedding.sinusoidSlope(rounded(timestep), width).floats().map {
                Float(Double($0) * speed)
            }
        }
        moving.move(
            sinusoid, along: device.place(Tensor(slopes, [xs.count, width]), as: .f32))
        let modulation = model.modulation(sinusoid: sinusoid, on: moving)
        let parts = xs.indices.map { moving.slice(input, $0 * channels..<($0 + 1) * channels) }
        var state = model.embed(batch: parts, on: moving)
        for index in 0..<model.config.layers {
            model.step(&state, block: index, modulation, context, on: moving)
        }
        let whole = answers(model, state, modulation, xs, on: moving)
        let velocities = apart(device.read(whole), xs.count)
        guard let moved = moving.tangent(of: whole) else {
            return velocities.map { ($0, .zeros($0.shape, .f32)) }
        }
        return zip(velocities, apart(device.read(moved), xs.count)).map { ($0, $1) }
    }

    /// The velocity and its derivative along (tangent, timestepTangent); the text and the parameters are constant.
    /// x, tangent: f32 [C, T, H, W] on the host → same
    public func moving(
        _ x: Tensor, along tangent: Tensor, at timestep: Double, along timestepTangent: Double,
        _ text: Text
    ) throws(CheckpointError) -> (velocity: Tensor, tangent: Tensor) {
        ensure(adapters == nil, "moving: adapters are trained without tangents")
        let model = try model()
        let context = context(model, text, x, on: device)
        let tangents = Tangents(device)
        let input = device.place(x, as: .f32)
        tangents.move(input, along: device.place(tangent, as: .f32))
        let sinusoid = device.place(sinusoid(model, timestep), as: .f32)
        let slope = TimeEmbedding.sinusoidSlope(rounded(timestep), model.config.frequencyDim)
        let speed = rounded(timestepTangent)
        tangents.move(
            sinusoid,
            along: device.place(
                Tensor(slope.floats().map { Float(Double($0) * speed) }, slope.shape), as: .f32))
        let modulation = model.modulation(sinusoid: sinusoid, on: tangents)
        let velocity = model([input], modulation, context, on: tangents)
        let moved = tangents.tangent(of: velocity)
        return (device.read(velocity), moved.map(device.read) ?? .zeros(x.shape, .f32))
    }

    // MARK: Reverse mode

    /// A velocity that remembers how it was made.
    public struct Recorded {
        /// f32 [C, T, H, W] on the host
        public let velocity: Tensor
        fileprivate let result, input: Tensor
        fileprivate let recorder: Recorder
        fileprivate let reducer: ShardedNet?
        fileprivate let device: any Backend

        /// The derivatives of sum <velocity, cotangent>. cotangent: f32, as the velocity
        /// → by the parameters' names, f32 on the device, in the parameters' shapes, where weights are split sums over
        /// processes of own parameters; by the latents where they were watched, f32 [C, T, H, W]
        public func gradients(_ cotangent: Tensor) -> (
            parameters: [String: Tensor], latents: Tensor?
        ) {
            var found: [String: Tensor] = [:]
            let placed = recorder.placed
            let sums = recorder.backward([(result, device.place(cotangent, as: .f32))]) {
                names, sums in
                guard let reducer else { return }
                let complete = names.map { ($0, placed[$0]!.shape, sums.take(placed[$0]!)) }
                found.merge(reducer.sums(complete)) { _, new in new }
            }
            if reducer != nil { return (found, sums.take(input)) }
            // In the order of names: the same memory each time.
            for (name, tensor) in placed.sorted(by: { $0.key < $1.key }) {
                found[name] = sums.take(tensor)
            }
            return (found, sums.take(input))
        }
    }

    /// The velocity, recorded from the parameters on.
    /// - Parameter watchesLatents: whether derivatives by x are asked for too; only where this process has the whole
    ///   sample, because others would have shares of them.
    public func recorded(
        _ x: Tensor, at timestep: Double, _ text: Text, conditioning: Tensor? = nil,
        watchesLatents: Bool = false
    ) throws(CheckpointError) -> Recorded {
        ensure(
            !watchesLatents || device.membership.isAlone,
            "recorded: derivatives by latents are found by a process alone")
        let recorder = Recorder(weightDevice, names: parameters?.namesByStorage ?? [:])
        let net = try build(on: recorder)
        let (model, device) = (net.model, net.device)
        let input = recorder.place(x, as: .f32)
        if watchesLatents { recorder.watch(input) }
        let context = context(model, text, x, on: device)
        let modulation = model.modulation(at: rounded(timestep), on: device)
        let given = conditioning.map { [recorder.place($0, as: .f32)] } ?? []
        let state = blocks(
            of: model, model.embed([input] + given, on: device), modulation, context, recorder,
            on: device)
        let result = model.latents(state, modulation, context, size: size(x), on: device)
        return Recorded(
            velocity: device.read(result), result: result, input: input, recorder: recorder,
            reducer: reducer, device: self.device)
    }

    /// Velocities of samples of one size, from one pass that remembers how they were made.
    struct RecordedBatch {
        let velocities: [Tensor]
        /// The derivatives of sum <velocity, cotangent>, by the parameters' names.
        let gradients: (_ cotangents: [Tensor]) -> [String: Tensor]
    }

    func recorded(
        _ xs: [Tensor], at timesteps: [Double], _ texts: [Text], conditioning: Tensor? = nil
    ) throws(CheckpointError) -> RecordedBatch {
        if xs.count == 1 {
            let one = try recorded(
                xs[0], at: timesteps[0], texts[0], conditioning: conditioning)
            return RecordedBatch(velocities: [one.velocity]) { one.gradients($0[0]).parameters }
        }
        let recorder = Recorder(weightDevice, names: parameters?.namesByStorage ?? [:])
        let net = try build(on: recorder)
        let (model, device) = (net.model, net.device)
        let context = context(model, texts, xs[0], on: device)
        let modulation = model.modulation(
            sinusoid: device.place(sinusoids(model, timesteps), as: .f32), on: device)
        let state = blocks(
            of: model, model.embed(batch: inputs(xs, on: device), on: device), modulation,
            context, recorder, on: device)
        let result = answers(model, state, modulation, xs, on: device)
        let recorded = Recorded(
            velocity: device.read(result), result: result, input: result, recorder: recorder,
            reducer: reducer, device: self.device)
        return RecordedBatch(velocities: apart(recorded.velocity, xs.count)) { cotangents in
            recorded.gradients(self.joined(cotangents)).parameters
        }
    }

    /// All blocks, recorded or to be computed again.
    private func blocks(
        of model: WanTransformer, _ state: Tensor, _ modulation: Modulation,
        _ context: WanTransformer.Context, _ recorder: Recorder, on device: any Backend
    ) -> Tensor {
        var state = state
        for index in 0..<model.config.layers {
            let before = state
            func block() -> Tensor {
                var state = before
                model.step(&state, block: index, modulation, context, on: device)
                return state
            }
            state = recomputation == .block ? recorder.recomputed(block) : block()
        }
        return state
    }
}
