/// One device, or a group of devices that make each video together, the models on them, and the runs that they execute.

import Checkpoints
import Families
import Ground
import Media
import Synchronization
public import Tensors

/// An open device.
public struct OpenedDevice {
    public let backend: any Backend
    /// The kind of card whose 8-bit arithmetic SageSLA uses on this device.
    public let sageArchitecture: SageArchitecture

    public init(_ backend: any Backend, sageArchitecture: SageArchitecture) {
        self.backend = backend
        self.sageArchitecture = sageArchitecture
    }
}

/// Everything that an engine keeps on its device. Lives on the device's thread.
final class Resident {
    var device: OpenedDevice?
    let pool = ModelPool()
    var walks: [Int: Walk] = [:]
    var readAheads: [Int: ReadAhead] = [:]
    /// The other devices of a group.
    var followers: [Follower] = []

    deinit { followers.forEach { $0.close() } }
}

/// Owns a device or a group of devices and the models on them, and starts runs:
///
///     let engine = Engine { OpenedDevice(CPUBackend(), sageArchitecture: .sm90) }
///     let run = engine.start(try Run(request, models))
///     for try await step in run.steps { … }       // models, text, picture; then the sampler
///     for try await chunk in run.frames { … }     // decode
///     let report = await run.report()
///
/// Runs that are active at the same time take turns: a step or a chunk of frames of one, then of another.
public actor Engine {
    private nonisolated let thread = DeviceThread(Resident())
    private let open: [@Sendable () throws -> OpenedDevice]
    private var resident: Resident { thread.resident }
    private nonisolated let lastID = Atomic(0)

    /// - Parameter open: opens the device; called once, on the device's own thread, by the first run.
    public init(open: @escaping @Sendable () throws -> OpenedDevice) { self.open = [open] }

    /// - Parameter group: opens the devices of a group, in the order of their `membership` in one meeting; each is called
    ///   once, on its device's own thread.
    public init(group: [@Sendable () throws -> OpenedDevice]) {
        ensure(!group.isEmpty, "Engine: a group of no device")
        open = group
    }

    deinit { thread.close() }

    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        thread.asUnownedSerialExecutor()
    }

    /// Makes a run that begins when its steps or frames are asked for.
    /// - Parameter events: is told what happens, on the device's thread.
    public nonisolated func start(
        _ run: Run, events: @escaping @Sendable (RunEvent) -> Void = { _ in }
    ) -> RunHandle {
        RunHandle(
            lastID.wrappingAdd(1, ordering: .relaxed).newValue, run, on: self, tell: events)
    }

    /// Executes a whole run.
    /// - Parameter output: is given the frames as they are made. The next ones are decoded after it returns.
    public nonisolated func finish(
        _ run: Run, events: @escaping @Sendable (RunEvent) -> Void = { _ in },
        output: (FrameChunk) async throws -> Void
    ) async throws -> RunReport {
        let handle = start(run, events: events)
        for try await chunk in handle.frames { try await output(chunk) }
        return await handle.report()
    }

    /// Opens the device, if no run has done so yet.
    /// - Returns: its name.
    public func openDevice() throws -> String { try openedDevice().backend.name }

    // MARK: What stays

    /// The models that stay on the device for the next run, the one that was used last first.
    public var residents: [ResidentModel] { resident.pool.list }

    /// Lets go of all models, and gives the memory that nobody uses any more back to the system. Runs on their way keep
    /// what they have.
    public func unload() {
        resident.onEveryDevice { device, pool in
            pool.releaseAll()
            device?.backend.releaseUnusedMemory()
        }
    }

    /// Lets go of the models of a file, which is not what it was.
    public func forget(path: String) {
        resident.onEveryDevice { _, pool in pool.release(path: path) }
    }

    // MARK: For handles

    func nextStep(of handle: RunHandle) async throws -> DenoisedStep? {
        let found = try await advance(handle) {
            $0.upcoming != .load(.decoder) && $0.upcoming != .decode
        }
        if case .step(let step)? = found { return step }
        return nil
    }

    func nextFrames(of handle: RunHandle) async throws -> FrameChunk? {
        while let found = try await advance(handle, while: { _ in true }) {
            if case .frames(let chunk) = found { return chunk }
        }
        return nil
    }

    /// Executes instructions until there is a result for the caller, or until the next one is not wanted.
    private func advance(
        _ handle: RunHandle, while isWanted: (Walk) -> Bool
    ) async throws -> Yield? {
        let id = handle.id
        if resident.walks[id] == nil { resident.walks[id] = try begin(handle) }
        do {
            // No copy of the walk may exist while it advances: it would keep tensors alive that a stage releases.
            while resident.walks[id].map({ !$0.isDone && isWanted($0) }) == true {
                if resident.walks[id]?.wantsInputs == true {
                    let inputs = try await handle.inputs.value
                    resident.give(inputs, to: id)
                }
                if let found = try resident.advance(id) { return found }
            }
            return nil
        } catch {
            resident.abandon(id)
            throw error
        }
    }

    private func begin(_ handle: RunHandle) throws -> Walk {
        let run = handle.run
        let device = try openedDevice()
        let linears = run.request.arithmetic.linears
        guard device.backend.supports(linears.format) else {
            throw RunError.unsupported(linears: linears, device: device.backend.name)
        }
        let parts = try run.parts
        for notice in run.requestNotices { handle.tell(.notice(notice)) }
        // Models with other settings leave before the memory is needed, and so do both experts if they have to take
        // turns.
        let keepsTransformers = try run.options.keepsBothExperts || run.experts.count == 1
        let keys = Set(parts.filter { keepsTransformers || !$0.isTransformer }.map(run.key))
        // Nothing leaves for a run that the device cannot do: the form that was asked for is possible, files may hold
        // others.
        for part in parts where resident.pool.model(run.key(part)) == nil {
            for format in try run.models.file(part).linearFormats
            where !device.backend.supports(format) {
                throw RunError.unsupported(
                    linears: LinearChoice(format), device: device.backend.name)
            }
        }
        if let residency = run.options.residency {
            resident.pool.makeRoom(for: keys, within: residency)
            // Without a residency the device keeps the limit with which it was opened.
            device.backend.limitResidentWeights(to: residency.residentWeights)
        } else {
            resident.pool.release(allBut: keys)
        }
        let missing = parts.filter { resident.pool.model(run.key($0)) == nil }
        if !missing.isEmpty { try checkFiles(of: run, parts, tell: handle.tell) }
        let files = try missing.map { (path: run.models.path($0), opened: try run.models.file($0)) }
        resident.beginOnFollowers(run, id: handle.id, handle.cancellation)
        let tell = handle.tell
        resident.readAheads[handle.id] = ReadAhead(files) { tell(.notice(.damaged($0))) }
        return try Walk(
            run, resident.pool, on: device, cancellation: handle.cancellation, tell: handle.tell)
    }

    /// Throws where the files of a run do not belong together, and tells what the user should know of them. A run whose
    /// models are all there opens no file.
    private func checkFiles(
        of run: Run, _ parts: [ModelPart], tell: (RunEvent) -> Void
    ) throws {
        let arithmetic = run.request.arithmetic
        try run.models.checkFit(
            parts, attention: arithmetic.attention, linears: arithmetic.linears)
        for notice in try run.fileNotices() { tell(.notice(notice)) }
        guard run.options.start.latents == nil else { return }
        for notice in try run.loraNotices() { tell(.notice(notice)) }
    }

    private func openedDevice() throws -> OpenedDevice {
        try resident.open(open)
    }

    func latents(_ id: Int) throws -> Latents? {
        guard let walk = resident.walks[id], let tensor = walk.currentLatents else {
            return nil
        }
        let host = walk.device.read(tensor)
        try walk.device.check()
        return Latents(
            samples: walk.run.samples, channels: walk.run.family.geometry.channels,
            extent: walk.run.latents, values: host.floats())
    }

    func preview(_ id: Int, sample: Int) throws -> RGBImage? {
        try resident.walks[id]?.preview(sample: sample)
    }

    func report(_ id: Int) -> RunReport {
        resident.report(id)
            ?? RunReport(device: "", stages: [], totalSeconds: 0, hostPeakBytes: 0)
    }

    func forget(_ id: Int) {
        resident.forget(id)
    }
}
