/// A device whose models stay loaded between requests.

import Catalog
import Checkpoints
public import Delivery
import Devices
public import Families
import Ground
import Media
public import Runs
import Synchronization
import SystemPackage
import Tensors

/// Makes one video after the other, and keeps what the next one may need: models on the device as far as they fit, the
/// one that was used least recently leaving first; text embeddings on disk; tokenizers, plans and what is known of files.
///
///     let session = Session()
///     let prepared = try await session.prepare(request, models)     // everything that would fail is found here
///     let made = try await session.make(prepared, to: "video.mp4") { event in … }
///
/// Requests may differ in everything. One runs at a time, the others wait in the order in which they came. A run ends when
/// its task is cancelled, and its models stay. Several devices are several sessions.
public final class Session: Sendable {
    let options: SessionOptions
    private let turn = Turn()
    private let state: Mutex<State>

    private struct State {
        var engine: Engine
        /// As it was opened: asking the engine would wait for what it computes.
        var device: SessionDevice?
        /// As they were when the engine was last free.
        var residents: [ResidentModel] = []
        var idle: Task<Void, Never>?
        var known = KnownFiles()
        var plans = RecentValues<PlanKey, Plan>(capacity: 64)
        /// Encoders that have shown that they can do what they are asked.
        var encoders: Set<EncoderKey> = []
        var rates = MeasuredRates()
    }

    public init(_ options: SessionOptions = SessionOptions()) {
        self.options = options
        let box = FactsBox()
        state = Mutex(State(engine: Self.engine(options, box)))
        facts = box
    }
    private let facts: FactsBox

    deinit { state.withLock { $0.idle?.cancel() } }

    // MARK: The device

    /// Opens the device, if that has not been done yet.
    /// - Throws: where there is none, or it cannot be used.
    public func open() async throws -> SessionDevice {
        let (engine, known) = state.withLock { ($0.engine, $0.device) }
        if let known { return known }
        let name = try await engine.openDevice()
        let memories = facts.memories.withLock { $0 }
        guard let memory = memories.values.min(by: { $0.usable < $1.usable }) else {
            programmingError("Session: a device was opened without telling its memory")
        }
        let device = SessionDevice(
            name: memories.count == 1 ? name : "\(memories.count) × \(name)", count: memories.count,
            memoryLimit: options.memoryLimit ?? memory.usable, isGPU: memory.isGPU)
        state.withLock { $0.device = device }
        return device
    }

    private static func engine(_ options: SessionOptions, _ facts: FactsBox) -> Engine {
        var device = DeviceOptions()
        device.threads = options.threads
        device.memoryLimit = options.memoryLimit
        facts.memories.withLock { $0 = [:] }
        do {
            return Engine(
                group: try options.machines.openers(device) { options.note("\($0)") }
                    .enumerated().map { index, open in
                        {
                            let backend = try open()
                            let memory = backend.usableMemory
                            facts.memories.withLock { $0[index] = memory }
                            return OpenedDevice(backend, sageArchitecture: backend.sageArchitecture)
                        }
                    })
        } catch {
            // A group that cannot be is told of like a device that cannot be opened: by whoever asks for it.
            return Engine { throw error }
        }
    }

    // MARK: What is loaded

    /// The models that stayed on the device after the last run, the one that was used last first.
    public var residents: [ResidentModel] { state.withLock { $0.residents } }

    /// Lets go of all models, and gives their memory back. A run that is on its way keeps what it needs.
    public func unload() async {
        let engine = state.withLock { $0.engine }
        await engine.unload()
        await noteResidents(of: engine)
    }

    private func noteResidents(of engine: Engine) async {
        let residents = await engine.residents
        state.withLock { $0.residents = residents }
    }

    // MARK: Before a run

    /// Checks a request and plans it. Files are only looked at: nothing is loaded.
    /// - Throws: `RequestError`, `CatalogError`, `CheckpointError`, `FittingError`, ``SessionError``, `RunError.memory`.
    public func prepare(
        _ request: Request, _ models: ModelSet, _ runOptions: RunOptions = RunOptions()
    ) async throws -> PreparedRun {
        let device = try await open()
        let run = try Run(request, models, runOptions)
        try models.checkPresence(of: ModelSet.files(for: try run.parts))
        for path in run.inputFiles where FileStamp(path) == nil {
            throw SessionError.noSuchFile(path: path)
        }
        let key = PlanKey(run, models)
        var plan: Plan
        if let known = state.withLock({ $0.plans[key] }) {
            plan = known.withNotices(of: run)
        } else {
            plan = try Plan(
                run, devices: device.count, sharesWeights: options.machines.sharesWeights)
            state.withLock { $0.plans[key] = plan }
        }
        // A CPU's memory is the system's, which lends more than it has: nothing is refused that nobody limits.
        plan = try plan.fitted(
            to: device.isGPU ? device.memoryLimit : options.memoryLimit)
        let seconds = state.withLock { $0.rates.seconds(of: plan, isGPU: device.isGPU) }
        return PreparedRun(run: run, models: models, plan: plan, seconds: seconds)
    }

    // MARK: Runs

    /// Carries out a run, when those before it have ended.
    /// - Parameters:
    ///   - path: of the video; its ending decides the format.
    ///   - crf: quality, less is better; nil for the format's own.
    ///   - previews: whether small pictures are told of after each step.
    ///   - events: told from any thread.
    /// - Throws: `CancellationError` when the calling task is cancelled; `OutputError`, `MediaError`, `RunError` and what
    ///   devices throw. No file is left then that is not whole.
    public func make(
        _ prepared: PreparedRun, to path: String, crf: Int? = nil,
        existing: Outputs.Existing = .refuse, makesFolder: Bool = false, previews: Bool = true,
        events: @escaping @Sendable (SessionEvent) -> Void = { _ in }
    ) async throws -> FinishedRun {
        try await turn.take()
        state.withLock { state in
            state.idle?.cancel()
            state.idle = nil
        }
        defer {
            turn.release()
            unloadWhenIdle()
        }
        let outputs = try Outputs(
            of: prepared.run, path: path, crf: crf, existing: existing, makesFolder: makesFolder)
        let stored = try storedRun(prepared, crf: outputs.crf)
        try await check(outputs, prepared.run, stored)
        let device = try await open()
        await forgetChangedFiles(prepared)
        let run = prepared.plan.applied(to: prepared.run, keepingWithin: device.memoryLimit)
        let cached = try embedding(of: prepared, stored)
        do {
            return try await deliver(
                prepared, cached.applied(to: run), outputs, stored, previews, events)
        } catch let error where cached.isRead && isUnreadable(error) {
            // A damaged embedding is made again.
            cached.discard()
            return try await deliver(
                prepared, cached.applied(to: run), outputs, stored, previews, events)
        }
    }

    private func deliver(
        _ prepared: PreparedRun, _ run: Run, _ outputs: Outputs, _ stored: StoredRun,
        _ previews: Bool, _ events: @escaping @Sendable (SessionEvent) -> Void
    ) async throws -> FinishedRun {
        let files = Mutex<[String]>([])
        let (engine, isGPU) = state.withLock { ($0.engine, $0.device?.isGPU ?? false) }
        let progress = Mutex(Progress(prepared.plan, isGPU ? .gpu : .cpu))
        let kept = prepared.run.options.save.text == nil ? run.options.save.text : nil
        let preview: @Sendable (DenoisedStep, RGBImage) -> Void = { events(.preview($0, $1)) }
        do {
            let report = try await engine.deliver(
                run, to: outputs, stored: stored,
                watch: WriterWatch(written: { path in
                    // An embedding that the session keeps for itself is no result.
                    if path == kept { return }
                    files.withLock { $0.append(path) }
                    events(.wrote(path))
                }),
                preview: previews ? preview : nil
            ) { event in
                events(.run(event))
                let risen = progress.withLock { progress -> Double? in
                    let before = progress.done
                    progress.take(event)
                    return progress.done > before ? progress.done : nil
                }
                if let risen { events(.progress(risen)) }
            }
            state.withLock { $0.rates.learn(report, prepared.plan) }
            await noteResidents(of: engine)
            return FinishedRun(files: files.withLock { $0 }, report: report, stored: stored)
        } catch {
            // Nothing more can be asked of a device that has failed; the next run opens it again.
            if isDeviceFailure(GroupError.cause(of: error)) {
                state.withLock { state in
                    state.engine = Self.engine(options, facts)
                    (state.device, state.residents) = (nil, [])
                }
            } else {
                await noteResidents(of: engine)
            }
            throw error
        }
    }

    // MARK: What need not be done twice

    private func storedRun(_ prepared: PreparedRun, crf: Int?) throws -> StoredRun {
        var stored = try StoredRun(
            prepared.run, of: prepared.models, program: options.program, crf: crf,
            identity: identity)
        guard options.hidesFolders else { return stored }
        func name(_ path: String) -> String { FilePath(path).lastComponent?.string ?? path }
        stored.request.image = stored.request.image.map(name)
        for index in stored.request.loras.indices {
            stored.request.loras[index].path = name(stored.request.loras[index].path)
        }
        return stored
    }

    /// Of a file, read again only where the file has changed.
    private func identity(_ path: String) throws -> FileIdentity {
        let stamp = FileStamp(path)
        if let stamp, let known = state.withLock({ $0.known.identities[stamp] }) { return known }
        let identity = try FileIdentity(path: path)
        if let stamp { state.withLock { $0.known.identities[stamp] = identity } }
        return identity
    }

    private func check(_ outputs: Outputs, _ run: Run, _ stored: StoredRun) async throws {
        let key = EncoderKey(outputs, run)
        let isKnown = state.withLock { $0.encoders.contains(key) }
        try await outputs.check(
            metadata: stored.json, save: run.options.save, triesEncoder: !isKnown)
        state.withLock { _ = $0.encoders.insert(key) }
    }

    /// A model whose file was replaced is loaded again.
    private func forgetChangedFiles(_ prepared: PreparedRun) async {
        let paths =
            ModelFile.allCases.compactMap { prepared.models[$0] }
            + prepared.run.request.loras.map(\.path)
        let changed = state.withLock { $0.known.changed(among: paths) }
        let engine = state.withLock { $0.engine }
        for path in changed { await engine.forget(path: path) }
        let loras = prepared.run.request.loras.map(\.path)
        if changed.contains(where: loras.contains) {
            for file in [ModelFile.transformer, .lowNoiseTransformer] {
                if let path = prepared.models[file] { await engine.forget(path: path) }
            }
        }
    }

    private func embedding(of prepared: PreparedRun, _ stored: StoredRun) throws -> CachedEmbedding
    {
        let run = prepared.run
        guard let cache = options.embeddings, run.options.start.latents == nil,
            run.options.start.text == nil, run.options.save.text == nil,
            let encoder = stored.files[.textEncoder], let tokenizer = stored.files[.tokenizer]
        else { return CachedEmbedding() }
        return cache.embedding(of: run, encoder: encoder, tokenizer: tokenizer)
    }

    private func unloadWhenIdle() {
        guard let pause = options.keepLoaded else { return }
        let task = Task { [weak self] in
            try? await Task.sleep(for: pause)
            if !Task.isCancelled { await self?.unload() }
        }
        state.withLock { state in
            state.idle?.cancel()
            state.idle = task
        }
    }
}

/// Whether a file that stands in for a stage was of no use.
private func isUnreadable(_ error: any Error) -> Bool {
    if case .stored? = error as? RunError { return true }
    return error is CheckpointError
}

/// What the devices' openers find out, each on its device's own thread.
private final class FactsBox: Sendable {
    /// By the place in the group; a device that is opened again tells it anew.
    let memories = Mutex<[Int: DeviceMemoryFacts]>([:])
}
