/// A run measured stage by stage, one model on the device at a time.

import CPU
import CUDA
import Checkpoints
import Families
import Glibc
import Ground
import Media
import Models
public import Runs
import Tensors
import Tokenizers

/// Measures the stages of the run of a request. Each stage starts with its own model, and with noise in place of the
/// results of earlier stages. It is carried out several times, from copies of the run as it is before the stage, and
/// then once more with every operation timed.
public struct Bench {
    private let models: BenchModel
    private let request: Request
    private let part: BenchStage
    /// The device, behind a backend that makes random weights where there are none.
    private let device: OpenedDevice
    private let timer: OperationTimer
    private let repeats: Int
    private let tokens: Int

    /// - Parameters:
    ///   - models: the model to measure.
    ///   - request: what to make. Its seed is also that of random weights.
    ///   - part: which stages to measure.
    ///   - tokens: how many tokens the prompt has; nil: as many as the model takes.
    ///   - repeats: how many times each stage is run after the first time.
    /// - Throws: ``BenchError``, `RequestError` or `RunError` if this cannot be measured.
    public init(
        _ models: BenchModel, _ request: Request, _ part: BenchStage = .all,
        on device: OpenedDevice, tokens: Int? = nil, repeats: Int = 3
    ) throws {
        let most = models.family.textLength
        if let tokens, tokens > most { throw BenchError.tokens(tokens, most: most) }
        let linears = request.arithmetic.linears
        guard device.backend.supports(linears.format) else {
            throw RunError.unsupported(linears: linears, device: device.backend.name)
        }
        self.models = models
        self.request = request
        self.part = part
        self.repeats = repeats
        self.tokens = tokens ?? most
        let backend = RandomWeights(device.backend, seed: request.seed)
        self.device = OpenedDevice(backend, sageArchitecture: device.sageArchitecture)
        timer = OperationTimer(
            backend,
            (device.backend as? CUDABackend).map { EventStopwatch($0.context) }
                ?? HostStopwatch())
        if device.backend is CPUBackend { try checkMemory() }
    }

    // MARK: Before

    static var hostMemory: Int { sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE)) }

    /// Refuses random weights that would not fit in the host's memory, before any are made.
    /// - Parameter present: the host's memory in bytes.
    func checkMemory(present: Int = hostMemory) throws {
        guard models.isRandom else { return }
        let plan = try Plan(run(models))
        for stage in plan.stages
        where stage.part == .textEncoder && wants(.text)
            || stage.part == .transformer && wants(.transformer)
        {
            guard stage.weightBytes < present / 10 * 9 else {
                throw BenchError.memory(
                    model: models.name, part: stage.part.title, neededBytes: stage.weightBytes,
                    presentBytes: present)
            }
        }
    }

    private func wants(_ one: BenchStage) -> Bool { [one, .all, .load].contains(part) }

    private func run(_ models: BenchModel) throws -> Run {
        var request = request
        request.image = models.family.conditioning == .none ? nil : "bench"
        var options = RunOptions()
        options.pixelFormat = .nv12
        options.defersWeights = false
        return try Run(request, models, options)
    }

    /// Carries out the steps, or the decoding, once and measures nothing.
    /// - Parameter begin: called when the model is there.
    func carryOut(begin: () -> Void) throws {
        var walk = try self.begin(with: part == .decode ? .decoder : .transformer) { _ in }
        begin()
        if part == .decode { return try walk.carryOut(.decode) }
        while walk.upcoming != .load(.decoder) { _ = try walk.advance() }
    }

    // MARK: Measuring

    /// Measures the stages in the order of a run.
    /// - Parameters:
    ///   - ceilings: nil if single operations are not to be measured.
    ///   - tell: called with the figures as they come.
    public func measure(against ceilings: Ceilings?, tell: (BenchEvent) -> Void) throws {
        func stage(_ name: String, _ stage: Stage, of part: ModelPart) throws -> StageFigures? {
            let walk = try begin(with: part, tell)
            if self.part == .load { return nil }
            return try measure(name, stage, walk, against: ceilings, tell)
        }
        var whole: [StageFigures?] = []
        if wants(.text) {
            whole.append(
                try stage("text encoder, \(tokens) tokens", .encodeText, of: .textEncoder))
        }
        if wants(.encode) {
            let image = try stage(
                "VAE encode, image and \(request.frames - 1) grey frames", .encodeImage,
                of: .imageEncoder)
            // Text-to-video has no picture to encode.
            if models.family.conditioning == .firstFrame { whole.append(image) }
        }
        if wants(.transformer) {
            let walk = try begin(with: .transformer, tell)
            if part != .load {
                whole.append(try measureSteps(walk, against: ceilings, tell))
            }
        }
        if wants(.decode) {
            whole.append(
                try stage(
                    "VAE decode, \(request.frames) frames to the host", .decode, of: .decoder))
        }
        if part == .all { tell(.stage(.sum(whole.compactMap { $0 }))) }
    }

    /// Brings a model to the device, from its file or with random weights.
    /// - Returns: the run, ready for the model's stage.
    private func begin(with part: ModelPart, _ tell: (BenchEvent) -> Void) throws -> Walk {
        var models = models
        if part == .imageEncoder { models.family.conditioning = .firstFrame }
        let run = try run(models)
        var walk = try Walk(run, on: device)
        walk.inspectsNumbers = false
        walk.skip(to: .load(part))
        let size = run.latents
        let channels = run.family.geometry.channels
        switch part {
        case .textEncoder: walk.inputs = RunInputs(prompt: try prompt())
        case .imageEncoder: walk.inputs = RunInputs(image: picture())
        case .transformer, .lowNoiseTransformer:
            let rows = noise(
                [run.family.textLength, try models.transformerSizes(part).textDim],
                as: request.arithmetic.precision.dtype)
            walk.state.texts = (TextEmbedding(rows: rows, count: tokens), nil)
            if run.family.conditioning == .firstFrame {
                walk.state.conditioning = noise(
                    [run.family.conditioningChannels, size.t, size.h, size.w], as: .f32)
            }
        case .decoder:
            walk.state.latents = noise([1, channels, size.t, size.h, size.w], as: .f32)
        }
        let seconds = try time { _ = try walk.advance() }
        let name = part == .decoder ? "VAE decoder" : part.title
        var figures = StageFigures(name: (models.isRandom ? "make " : "load ") + name)
        figures.cold = seconds
        figures.peakBytes = walk.reports.last?.peakBytes ?? 0
        tell(.stage(figures))
        return walk
    }

    /// Measures a stage: a first run, `repeats` more, and one whose operations are timed.
    private func measure(
        _ name: String, _ stage: Stage, _ walk: Walk, against ceilings: Ceilings?,
        _ tell: (BenchEvent) -> Void
    ) throws -> StageFigures {
        var figures = StageFigures(name: name)
        for index in 0...repeats {
            var walk = walk
            var frames: [[UInt8]] = []
            let seconds = try time { try walk.carryOut(stage) { frames.append($0.bytes) } }
            if index == 0 { figures.cold = seconds } else { figures.warm.append(seconds) }
            if index == 0, stage == .decode { figures.digest = digest(frames) }
            figures.peakBytes = max(figures.peakBytes, walk.peakBytes)
        }
        if ceilings != nil {
            var walk = walk.on(timer)
            try walk.carryOut(stage)
        }
        return try finish(figures, against: ceilings, tell)
    }

    /// Measures one step, and all steps including what comes before them: the text's projections and the first noise.
    private func measureSteps(
        _ walk: Walk, against ceilings: Ceilings?, _ tell: (BenchEvent) -> Void
    ) throws -> StageFigures {
        let count = request.sampling.steps
        var peakBytes = 0
        var made: String?
        /// Seconds of the whole, and of each step.
        func run(_ limit: Int) throws -> (all: Double, steps: [Double]) {
            var walk = walk
            var steps: [Double] = []
            let all = try time {
                while steps.count < limit {
                    var isStep = false
                    let seconds = try time {
                        if case .step? = try walk.advance() { isStep = true }
                    }
                    if isStep { steps.append(seconds) }
                }
            }
            peakBytes = max(peakBytes, walk.peakBytes)
            if limit == count, let latents = walk.currentLatents {
                made = digest([device.backend.read(latents).bytes])
            }
            return (all, steps)
        }
        let first = try run(1).all
        let warm = try (0..<repeats).map { _ in try run(count) }
        if ceilings != nil {
            var walk = walk
            while walk.upcoming?.isStep != true { _ = try walk.advance() }
            walk = walk.on(timer)
            _ = try walk.advance()
        }
        var step = StageFigures(name: "transformer, 1 step")
        step.cold = first
        step.warm = warm.flatMap(\.steps)
        step.peakBytes = peakBytes
        step = try finish(step, against: ceilings, tell)

        var whole = StageFigures(name: "transformer, \(count) step\(count == 1 ? "" : "s")")
        whole.cold = first + Double(count - 1) * step.seconds
        whole.warm = warm.map(\.all)
        whole.peakBytes = peakBytes
        whole.digest = made
        whole.cost = step.cost.map { cost in
            (0..<count).reduce(into: Operation.Cost()) { sum, _ in sum += cost }
        }
        whole.floor = step.floor.map { $0 * Double(count) }
        tell(.stage(whole))
        return whole
    }

    /// Adds the figures of the timed operations and reports everything.
    private func finish(
        _ figures: StageFigures, against ceilings: Ceilings?, _ tell: (BenchEvent) -> Void
    ) throws -> StageFigures {
        var figures = figures
        let operations = try timer.takeOperations()
        if let ceilings { figures.add(operations, against: ceilings) }
        tell(.stage(figures))
        if ceilings != nil { tell(.operations(operations, of: figures.name)) }
        return figures
    }

    private func digest(_ parts: [[UInt8]]) -> String {
        var hash = SHA256()
        for part in parts { part.withUnsafeBytes { hash.update($0) } }
        return hash.finish()
    }

    // MARK: Inputs

    private func prompt() throws -> Tokens {
        guard case .umT5(let sizes) = DetectedModel(try models.checkpoint(.textEncoder)) else {
            return Tokens([])
        }
        return Tokens((0..<tokens).map { Int32(($0 * 7919 + 13) % sizes.vocabulary) })
    }

    private func picture() -> RGBImage {
        let (width, height) = (request.width, request.height)
        return RGBImage(
            width: width, height: height,
            pixels: (0..<3 * width * height).map { UInt8(truncatingIfNeeded: $0 * 7919) })
    }

    private func noise(_ shape: Shape, as dtype: DType) -> Tensor {
        var generator = PhiloxNoise(seed: request.seed)
        let backend = device.backend
        return backend.combine([backend.noise(shape, generator: &generator)], [1], as: dtype)
    }

    /// Runs `body` and waits for the device. → seconds
    private func time(_ body: () throws -> Void) throws -> Double {
        let start = ContinuousClock.now
        try body()
        try device.backend.synchronize()
        return (ContinuousClock.now - start) / .seconds(1)
    }
}

extension Walk {
    /// The most device memory used by any stage since the model was loaded, in bytes.
    fileprivate var peakBytes: Int { reports.dropFirst().map(\.peakBytes).max() ?? 0 }

    /// Carries out the next stage to its end.
    fileprivate mutating func carryOut(
        _ stage: Stage, frames: (FrameChunk) -> Void = { _ in }
    ) throws {
        repeat {
            if case .frames(let chunk) = try advance() { frames(chunk) }
        } while upcoming == stage
    }
}

extension Tensor {
    /// Of a tensor in host memory.
    fileprivate var bytes: [UInt8] {
        [UInt8](UnsafeRawBufferPointer(start: hostAddress, count: byteCount))
    }
}

extension Stage {
    fileprivate var isStep: Bool { if case .step = self { true } else { false } }
}
