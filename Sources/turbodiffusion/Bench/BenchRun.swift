/// Runs the stages of a model and measures them, one model on the device at a time.

import CUDA
import Checkpoints
import Diffusion
import Ground
import Models
import Pipelines
import Tensors

/// What one stage took.
struct StageFigures {
    let name: String
    /// Seconds of the first run, and of those after it; at least one of the two is there.
    var cold: Double?
    var warm: [Double] = []
    /// Most device memory during the stage, weights included.
    var peakBytes: Int
    /// Arithmetic, traffic and least time of one run; nil where operations were not measured.
    var cost: Operation.Cost?
    var floor: Double?

    /// The median of the warm runs, or the only one.
    var seconds: Double { warm.isEmpty ? cold ?? .nan : median(warm) }
}

struct BenchRun {
    private let model: BenchModel
    private let request: VideoRequest
    /// Everything that is not timed operation by operation.
    private let device: RandomWeights
    private let timer: OperationTimer
    private let stopwatch: any Stopwatch
    private let sage: SageArchitecture
    private let repeats: Int
    private let tokens: Int
    private let ceilings: Ceilings?
    private let report: BenchReport

    /// - Parameter ceilings: nil where single operations are not to be measured.
    init(
        _ model: BenchModel, _ request: VideoRequest, on backend: any Backend, seed: UInt64,
        repeats: Int, tokens: Int?, ceilings: Ceilings?, report: BenchReport
    ) {
        self.model = model
        self.request = request
        device = RandomWeights(backend, seed: seed)
        func makeStopwatch() -> any Stopwatch {
            (backend as? CUDABackend).map { EventStopwatch($0.context) } ?? HostStopwatch()
        }
        stopwatch = makeStopwatch()
        timer = OperationTimer(device, makeStopwatch())
        sage = DeviceChoice.sageArchitecture(of: backend)
        self.repeats = repeats
        self.tokens = tokens ?? model.textLength
        self.ceilings = ceilings
        self.report = report
    }

    /// Measures in the order of a run; figures go to the report as they come.
    func measure(_ stage: BenchStage) throws {
        let runs = stage != .load
        func wants(_ one: BenchStage) -> Bool { [one, .all, .load].contains(stage) }
        var whole: [StageFigures] = []
        if wants(.text) {
            let encoder = try load("text encoder") { try model.textEncoder(request, on: device) }
            if runs { whole.append(try text(encoder)) }
        }
        var image: StageFigures?
        if wants(.encode) {
            let encoder = try load("VAE encoder") { try model.encoder(request, on: device) }
            if runs { image = try encode(encoder) }
        }
        if wants(.transformer) {
            let net = try load("transformer") {
                try model.transformer(request, sage: sage, on: device)
            }
            // Text-to-video has no picture to encode.
            if Self.conditionChannels(net) > 0, let image { whole.append(image) }
            if runs { whole.append(try denoise(net)) }
        }
        if wants(.decode) {
            let decoder = try load("VAE decoder") { try model.decoder(request, on: device) }
            if runs { whole.append(try decode(decoder)) }
        }
        if stage == .all { report.show(Self.sum(whole)) }
    }

    /// Channels of the input that are not the noisy latents: mask and picture.
    private static func conditionChannels(_ net: WanTransformer) -> Int {
        net.config.inputChannels - net.config.outputChannels
    }

    /// From the prompt to the frames, models loaded.
    private static func sum(_ stages: [StageFigures]) -> StageFigures {
        var sum = StageFigures(
            name: "whole (sum)", peakBytes: stages.map(\.peakBytes).max() ?? 0)
        sum.cold = stages.reduce(0) { $0 + ($1.cold ?? $1.seconds) }
        sum.warm = [stages.reduce(0) { $0 + $1.seconds }]
        if stages.allSatisfy({ $0.cost != nil && $0.floor != nil }) {
            sum.cost = stages.reduce(into: Operation.Cost()) { $0 += $1.cost! }
            sum.floor = stages.reduce(0) { $0 + $1.floor! }
        }
        return sum
    }

    // MARK: Stages

    /// Brings a model to the device: from its file, or made there.
    private func load<Model>(_ name: String, _ make: () throws -> Model) throws -> Model {
        device.resetPeak()
        let (model, seconds) = try time(make)
        report.show(
            StageFigures(
                name: (self.model.isRandom ? "make " : "load ") + name, cold: seconds,
                peakBytes: device.memory.peak))
        return model
    }

    private func text(_ encoder: UMT5) throws -> StageFigures {
        let vocabulary = encoder.config.vocabulary
        let ids = (0..<tokens).map { Int32(($0 * 7919 + 13) % vocabulary) }
        return try stage("text encoder, \(tokens) tokens") { device in
            _ = encoder(ids, textLength: model.textLength, on: device)
        }
    }

    private func encode(_ encoder: WanVAE.Encoder) throws -> StageFigures {
        let picture = noise(
            [request.height, request.width, 3], as: request.precision == .f32 ? .f32 : .bf16)
        return try stage("VAE encode, image and \(request.frames - 1) grey frames") { device in
            _ = encoder.encodeImage(picture, frameCount: request.frames, on: device)
        }
    }

    private func decode(_ decoder: WanVAE.Decoder) throws -> StageFigures {
        let size = request.latentSize
        let latents = noise([decoder.config.latentChannels, size.t, size.h, size.w], as: .f32)
        return try stage("VAE decode, \(request.frames) frames to the host") { device in
            for chunk in decoder(latents, on: device) { _ = device.read(device.nv12(chunk)) }
        }
    }

    /// A stage that is one function: a first run, some more, and one whose operations are timed.
    private func stage(_ name: String, _ body: (any Backend) -> Void) throws -> StageFigures {
        device.resetPeak()
        var figures = StageFigures(
            name: name, cold: try time { body(device) }.seconds, peakBytes: 0)
        figures.warm = try (0..<repeats).map { _ in try time { body(device) }.seconds }
        figures.peakBytes = device.memory.peak
        var operations: [TimedOperation] = []
        if ceilings != nil {
            body(timer)
            operations = try timer.takeOperations()
        }
        return finish(figures, operations)
    }

    /// One step, and all of them with what comes before: the text's projections, the first noise.
    private func denoise(_ net: WanTransformer) throws -> StageFigures {
        let size = request.latentSize
        let shape: Shape = [net.config.outputChannels, size.t, size.h, size.w]
        let extra = Self.conditionChannels(net)
        let condition =
            extra > 0 ? [noise(Shape([extra] + shape.tail.dimensions), as: .f32)] : []
        let rows = noise(
            [model.textLength, net.config.textDim], as: request.precision == .f32 ? .f32 : .bf16)
        let text = TextEmbedding(rows: rows, count: tokens)
        let sampler = try request.makeSampler(roundTimesteps: model.defaults.roundTimesteps)

        /// The first `limit` steps, on `stepDevice`. `step` surrounds each of them.
        func run(_ limit: Int, on stepDevice: any Backend, step: (() -> Void) -> Void) {
            var generator = PhiloxNoise(seed: request.seed)
            let batch = Shape([1] + shape.dimensions)
            let context = net.prepare(text, size: size, on: device)
            let start = device.noise(batch, generator: &generator)
            var denoiser = Denoiser(sampler, noise: start, on: stepDevice) {
                stepDevice.noise(batch, generator: &generator)
            }
            for _ in 0..<limit {
                step {
                    denoiser.advance { latents, step in
                        let parts = [latents.reshaped(shape)] + condition
                        return net(parts, timestep: step.timestep, context, on: stepDevice)
                            .reshaped(batch)
                    }
                }
            }
        }

        device.resetPeak()
        let first = try time { run(1, on: device) { $0() } }.seconds
        var steps: [Double] = []
        var all: [Double] = []
        for _ in 0..<repeats {
            var marks: [(Int, Int)] = []
            all.append(
                try time {
                    run(sampler.steps.count, on: device) { body in
                        let start = stopwatch.mark()
                        body()
                        marks.append((start, stopwatch.mark()))
                    }
                }.seconds)
            steps += marks.map { stopwatch.seconds(from: $0.0, to: $0.1) }
            stopwatch.reset()
        }
        let peak = device.memory.peak
        var operations: [TimedOperation] = []
        if ceilings != nil {
            run(1, on: timer) { $0() }
            operations = try timer.takeOperations()
        }

        let count = sampler.steps.count
        let step = finish(
            StageFigures(
                name: "transformer, 1 step", cold: first, warm: steps, peakBytes: peak),
            operations)
        var whole = StageFigures(
            name: "transformer, \(count) step\(count == 1 ? "" : "s")",
            cold: first + Double(count - 1) * median(steps), warm: all, peakBytes: peak)
        if let cost = step.cost {
            whole.cost = (0..<count).reduce(into: Operation.Cost()) { sum, _ in sum += cost }
        }
        whole.floor = step.floor.map { $0 * Double(count) }
        report.show(whole)
        return whole
    }

    /// Adds what the operations tell, and hands the figures to the report.
    private func finish(_ figures: StageFigures, _ operations: [TimedOperation]) -> StageFigures {
        var figures = figures
        if let ceilings {
            figures.cost = operations.reduce(into: Operation.Cost()) { $0 += $1.cost }
            let floors = operations.map { ceilings.floor($0.cost, $0.key.arithmetic) }
            if !floors.contains(where: { $0 == nil }) {
                figures.floor = floors.reduce(0) { $0 + $1! }
            }
        }
        report.show(figures)
        if let ceilings { report.show(operations, of: figures.name, ceilings) }
        return figures
    }

    // MARK: Tools

    private func noise(_ shape: Shape, as dtype: DType) -> Tensor {
        var generator = PhiloxNoise(seed: request.seed)
        return device.combine([device.noise(shape, generator: &generator)], [1], as: dtype)
    }

    /// Runs `body` and waits for the device.
    private func time<Result>(_ body: () throws -> Result) throws -> (
        result: Result, seconds: Double
    ) {
        let start = ContinuousClock.now
        let result = try body()
        try device.synchronize()
        return (result, (ContinuousClock.now - start) / .seconds(1))
    }
}
