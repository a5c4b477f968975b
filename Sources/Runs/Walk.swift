/// The interpreter of a run's program.

import Diffusion
import Families
import Glibc
package import Tensors

/// What a run hands to its caller as it goes.
package enum Yield {
    case step(DenoisedStep)
    case frames(FrameChunk)
}

/// A run on its way: what is done, what is still to be done, and what the stages have made. Lives on the thread of its
/// device.
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
    /// Whether weights and results are searched for numbers that are not finite.
    package var inspectsNumbers = true
    /// Whether the device only counts: checkpoints are then shown without their numbers.
    var isPlanned = false

    /// A run that nobody else takes part in.
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

    /// The stage that comes next, where it is one.
    package var upcoming: Stage? {
        if case .perform(let stage)? = rest.first { stage } else { nil }
    }

    /// The same walk, with the models that it has, by way of another backend of its device.
    package func on(_ backend: any Backend) -> Walk {
        var walk = self
        walk.device = SupervisedBackend(backend, cancellation)
        return walk
    }

    /// Leaves out everything before a stage; what that would have made is to be put into `state`.
    package mutating func skip(to stage: Stage) { rest = rest.drop { $0 != .perform(stage) } }

    /// Whether the next stage asks for inputs that are not there.
    var wantsInputs: Bool {
        inputs == nil && (upcoming == .encodeText || upcoming == .encodeImage)
    }

    /// Carries out one instruction.
    /// - Returns: what there is for the caller; nil where there is nothing, also at the end.
    /// - Throws: `CancellationError` as soon as the run is cancelled; nothing of the stage is kept then.
    package mutating func advance() throws -> Yield? {
        guard let instruction = rest.first else { return nil }
        var yield: Yield?
        switch instruction {
        case .perform(.decode):
            if let chunk = try decodeNext() { return .frames(chunk) }
        case .perform(let stage):
            if case .load(let part) = stage, adopt(part) { break }
            yield = try perform(stage)
        case .read(let product): try read(product)
        case .write(let product): try write(product)
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

    /// What the sampler has come to. f32 [samples, C, T', H', W']
    package var currentLatents: Tensor? { state.latents ?? state.denoiser?.latents(on: device) }

    /// Nothing more is to be done, and nothing is held.
    mutating func abandon() {
        rest = []
        state = RunState(noise: run.noise)
    }

    /// What the run has taken so far.
    package var report: RunReport {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        return RunReport(
            device: device.name, stages: reports,
            totalSeconds: (ContinuousClock.now - started) / .seconds(1),
            hostPeakBytes: usage.ru_maxrss * 1024)
    }

    // MARK: Stages

    /// A model that is on the device already.
    private mutating func adopt(_ part: ModelPart) -> Bool {
        guard state.models[part] == nil else { return true }
        state.models[part] = pool.model(run.key(part))
        return state.models[part] != nil
    }

    /// Carries out one stage to its end: tells its start, progress and end, measures it, and keeps what it made.
    private mutating func perform(_ stage: Stage) throws -> Yield? {
        try device.check()
        tell(.stageStarted(stage))
        device.resetPeak()
        let start = ContinuousClock.now
        var next = state
        let step = try compute(stage, &next)
        try device.synchronize()
        try device.check()
        finish(
            StageReport(
                stage: stage, seconds: (ContinuousClock.now - start) / .seconds(1),
                peakBytes: device.memory.peak))
        if inspectsNumbers { try inspect(stage, next) }
        state = next
        if case .load(let part) = stage, let model = state.models[part] {
            pool.keep(model, as: run.key(part))
        }
        return step.map(Yield.step)
    }

    /// Each stage, once: from the values that are there to those it makes.
    private func compute(_ stage: Stage, _ state: inout RunState) throws -> DenoisedStep? {
        switch stage {
        case .load(let part): state.models[part] = try load(part)
        case .encodeText: state.texts = try encodeText(state)
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
        let frames = try chunk.frames()
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
