/// The interpreter of a run's program.

import Diffusion
import Families
import Ground
import Media
import Models
package import Tensors

/// What an instruction may produce for the caller.
package enum Yield {
    case step(DenoisedStep)
    case frames(FrameChunk)
}

/// A run in progress: the instructions that remain, the values that the stages have made, and the reports of finished
/// stages. Lives on the thread of its device.
package struct Walk {
    package let run: Run
    package var inputs: RunInputs?
    let pool: ModelPool
    let sage: SageArchitecture
    var device: SupervisedBackend
    private let cancellation: Cancellation
    let tell: (RunEvent) -> Void
    private(set) var rest: ArraySlice<Instruction>
    package var state: RunState
    package private(set) var reports: [StageReport] = []
    private let started = ContinuousClock.now
    private var decoding = (seconds: 0.0, peakBytes: 0)
    /// The report of a model that was loaded during the last step; it is passed on when its own stage is reached.
    private var loadedAhead: StageReport?
    /// Whether weights and results are checked for numbers that are not finite.
    package var inspectsNumbers = true
    /// Whether the device computes nothing; checkpoints are then read without their numbers, and frames have no bytes.
    var isPlanned = false

    /// A walk that shares no models with other runs.
    package init(_ run: Run, on device: OpenedDevice) throws {
        try self.init(run, ModelPool(), on: device)
    }

    init(
        _ run: Run, _ pool: ModelPool, on device: OpenedDevice,
        cancellation: Cancellation = Cancellation(), tell: @escaping (RunEvent) -> Void = { _ in }
    ) throws {
        self.run = run
        self.pool = pool
        sage = device.sageArchitecture
        self.device = SupervisedBackend(device.backend, cancellation)
        self.cancellation = cancellation
        self.tell = tell
        rest = try run.program[...]
        state = RunState(noise: run.noise)
    }

    /// The next stage; nil if the next instruction is something else.
    package var upcoming: Stage? {
        if case .perform(let stage)? = rest.first { stage } else { nil }
    }

    /// The same walk with its models, on another backend of the same device.
    package func on(_ backend: any Backend) -> Walk {
        var walk = self
        walk.device = SupervisedBackend(backend, cancellation)
        return walk
    }

    /// Skips all instructions before a stage. The caller must put what they would have made into `state`.
    package mutating func skip(to stage: Stage) { rest = rest.drop { $0 != .perform(stage) } }

    /// Whether the next stage needs inputs that have not been set.
    var wantsInputs: Bool {
        inputs == nil && (upcoming == .encodeText || upcoming == .encodeImage)
    }

    /// Executes one instruction.
    /// - Returns: its result for the caller; nil if it has none, and at the end.
    /// - Throws: `CancellationError` if the run is cancelled; what the stage has made is then dropped.
    package mutating func advance() throws -> Yield? {
        guard let instruction = rest.first else { return nil }
        var yield: Yield?
        switch instruction {
        case .perform(.decode):
            if let chunk = try decodeNext() { return .frames(chunk) }
        case .perform(let stage):
            if !device.membership.isFirst, stage == .load(.textEncoder) {
                loadTransformerAhead()
                break
            }
            if case .load(let part) = stage, adopt(part) {
                if let report = loadedAhead, report.stage == stage {
                    loadedAhead = nil
                    tell(.stageStarted(stage))
                    finish(report)
                }
                break
            }
            yield = try perform(stage)
        case .read(let product): try read(product)
        case .write(let product): if device.membership.isFirst { try write(product) }
        case .drawNoise: try drawNoise()
        case .forgetText(let part): state.contexts[part] = nil
        case .release(let part):
            state.models[part] = nil
            pool.release(run.key(part))
        }
        rest.removeFirst()
        return yield
    }

    package var isDone: Bool { rest.isEmpty }

    /// The latents after the last step. f32 [samples, C, T', H', W']
    package var currentLatents: Tensor? { state.latents ?? state.denoiser?.latents(on: device) }

    /// What one sample looks like in its middle latent frame, by the family's linear map.
    func preview(sample: Int) throws -> RGBImage? {
        guard let map = run.family.preview, (0..<run.samples).contains(sample),
            let latents = state.prediction ?? currentLatents
        else { return nil }
        let (channels, size) = (run.family.geometry.channels, run.latents)
        // Only this frame is copied to the host: one plane for each channel.
        let planes = device.reshape(
            latents, [run.samples * channels * size.t, size.h * size.w])
        let frame = device.concatenate(
            (0..<channels).map { channel in
                let row = (sample * channels + channel) * size.t + size.t / 2
                return device.slice(planes, row..<row + 1)
            })
        let values = device.read(frame).floats()
        try device.check()
        return map.pixels(of: values, width: size.w, height: size.h).map {
            RGBImage(width: size.w, height: size.h, pixels: $0)
        }
    }

    /// Drops all remaining instructions and all values.
    mutating func abandon() {
        rest = []
        state = RunState(noise: run.noise)
    }

    /// The time and memory that the run has taken so far.
    package var report: RunReport {
        RunReport(
            device: device.name, stages: reports,
            totalSeconds: (ContinuousClock.now - started) / .seconds(1),
            hostPeakBytes: HostMemory.peak)
    }

    // MARK: Stages

    /// Takes a model from the pool. Returns false if it has to be loaded.
    private mutating func adopt(_ part: ModelPart) -> Bool {
        guard state.models[part] == nil else { return true }
        state.models[part] = pool.model(run.key(part))
        return state.models[part] != nil
    }

    /// Executes one stage to its end, with events and a report, and keeps what it has made.
    private mutating func perform(_ stage: Stage) throws -> Yield? {
        try device.check()
        tell(.stageStarted(stage))
        device.resetPeak()
        let start = ContinuousClock.now
        var next = state
        let step = try compute(stage, &next)
        let ahead = loadAhead(of: stage, &next)
        try device.synchronize()
        try device.check()
        finish(
            StageReport(
                stage: stage, seconds: (ContinuousClock.now - start) / .seconds(1),
                peakBytes: device.memory.peak))
        if inspectsNumbers { try inspect(stage, next) }
        state = next
        loadedAhead = ahead
        for case .load(let part) in [stage, ahead?.stage] {
            if let model = state.models[part] {
                pool.keep(model, as: run.key(part), residency: run.options.residency)
            }
        }
        return step.map(Yield.step)
    }

    /// Loads the decoder while the device still computes the last step, if both models stay on the device. An error is
    /// ignored here: the load stage will report it.
    private func loadAhead(of stage: Stage, _ state: inout RunState) -> StageReport? {
        guard case .step(let number, let count, _) = stage, number == count, !isPlanned,
            run.options.defersWeights, run.options.keepsTransformer,
            state.models[.decoder] == nil, pool.model(run.key(.decoder)) == nil
        else { return nil }
        let start = ContinuousClock.now
        guard let model = try? load(.decoder, tells: false) else { return nil }
        state.models[.decoder] = model
        return StageReport(
            stage: .load(.decoder), seconds: (ContinuousClock.now - start) / .seconds(1),
            peakBytes: device.memory.peak)
    }

    /// On a device that waits for the first one to encode the text: opens the transformer, and takes the memory of its
    /// weights. An error is ignored here: the load stage will report it.
    private mutating func loadTransformerAhead() {
        guard !isPlanned, run.options.defersWeights, !rest.contains(.perform(.encodeImage)),
            let part = try? run.experts.first, !adopt(part),
            let model = try? load(part, tells: false)
        else { return }
        state.models[part] = model
        pool.keep(model, as: run.key(part), residency: run.options.residency)
        if case .transformer(let transformer) = model, run.options.keepsBothExperts {
            device.require(WeightGroup("memory", of: transformer.groups.blocks[0].set))
        }
    }

    /// Computes a stage from the current values and stores its results in `state`.
    private func compute(_ stage: Stage, _ state: inout RunState) throws -> DenoisedStep? {
        switch stage {
        case .load(let part): state.models[part] = try load(part)
        case .encodeText: state.texts = try sharedText { try encodeText(state) }
        case .encodeImage: state.conditioning = try encodeImage(state)
        case .projectText(let part): state.contexts[part] = try projectText(state, part)
        case .step(let number, let count, _):
            return try step(&state, number, of: count, stage)
        case .decode, .deliver: break
        }
        return nil
    }

    private mutating func finish(_ report: StageReport) {
        reports.append(report)
        tell(.stageFinished(report))
    }

    // MARK: Decoding

    /// The next frames; nil after the last.
    private mutating func decodeNext() throws -> FrameChunk? {
        try device.check()
        let start = ContinuousClock.now
        if state.decoding == nil, let latents = state.latents {
            tell(.stageStarted(.decode))
            device.resetPeak()
            state.decoding = FrameDecoding(
                latents, state.decoder, as: run.options.pixelFormat, on: device)
        }
        guard let chunk = state.decoding?.next() else {
            (state.latents, state.decoding) = (nil, nil)
            finish(
                StageReport(
                    stage: .decode, seconds: decoding.seconds, peakBytes: decoding.peakBytes))
            return nil
        }
        let frames = isPlanned ? chunk.outline : try chunk.frames()
        try device.check()
        if inspectsNumbers, try !chunk.isFinite() { throw notFinite(.decode, .decoder) }
        decoding.seconds += (ContinuousClock.now - start) / .seconds(1)
        decoding.peakBytes = max(decoding.peakBytes, device.memory.peak)
        if let share = state.decoding?.progress {
            tell(.stageProgress(.decode, fraction: share))
        }
        return frames
    }
}
