/// One device with the models that are on it, and the runs that it carries out.

import Families
import Synchronization
public import Tensors

/// A device on its thread.
public struct OpenedDevice {
    public let backend: any Backend
    /// Whose 8-bit arithmetic SageSLA uses on this device.
    public let sageArchitecture: SageArchitecture

    public init(_ backend: any Backend, sageArchitecture: SageArchitecture) {
        self.backend = backend
        self.sageArchitecture = sageArchitecture
    }
}

/// What an engine has on its device. Lives on the device's thread.
final class Resident {
    var device: OpenedDevice?
    let pool = ModelPool()
    var walks: [Int: Walk] = [:]
    var readAheads: [Int: ReadAhead] = [:]
}

/// Owns a device and its resident models, and hands out runs:
///
///     let engine = Engine { OpenedDevice(CPUBackend(), sageArchitecture: .sm90) }
///     let run = engine.start(try Run(request, models))
///     for try await step in run.steps { … }       // models, text, picture; then the sampler
///     for try await chunk in run.frames { … }     // decode
///     let report = await run.report()
///
/// Runs that are begun at once take turns: a step or a chunk of frames of one, then of another.
public actor Engine {
    private nonisolated let thread = DeviceThread(Resident())
    private let open: @Sendable () throws -> OpenedDevice
    private var resident: Resident { thread.resident }
    private nonisolated let lastID = Atomic(0)

    /// - Parameter open: opens the device; called once, on the device's own thread, by the first run.
    public init(open: @escaping @Sendable () throws -> OpenedDevice) { self.open = open }

    deinit { thread.close() }

    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        thread.asUnownedSerialExecutor()
    }

    /// A run that begins when its steps or frames are asked for.
    /// - Parameter events: told what happens, on the device's thread.
    public nonisolated func start(
        _ run: Run, events: @escaping @Sendable (RunEvent) -> Void = { _ in }
    ) -> RunHandle {
        RunHandle(
            lastID.wrappingAdd(1, ordering: .relaxed).newValue, run, on: self, tell: events)
    }

    /// Carries out a whole run.
    /// - Parameter output: takes the frames as they are made; the next ones are decoded when it returns.
    public nonisolated func finish(
        _ run: Run, events: @escaping @Sendable (RunEvent) -> Void = { _ in },
        output: (FrameChunk) async throws -> Void
    ) async throws -> RunReport {
        let handle = start(run, events: events)
        for try await chunk in handle.frames { try await output(chunk) }
        return await handle.report()
    }

    /// Opens the device, if no run has done it yet.
    /// - Returns: its name.
    public func openDevice() throws -> String { try openedDevice().backend.name }

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

    /// Carries out instructions until there is something for the caller, or the next one is not wanted.
    private func advance(
        _ handle: RunHandle, while isWanted: (Walk) -> Bool
    ) async throws -> Yield? {
        let id = handle.id
        if resident.walks[id] == nil { resident.walks[id] = try begin(handle) }
        do {
            // No copy of the walk is held while it goes on: it would hold the tensors that a stage lets go.
            while resident.walks[id].map({ !$0.isDone && isWanted($0) }) == true {
                if resident.walks[id]?.wantsInputs == true {
                    let inputs = try await handle.inputs.value
                    resident.walks[id]?.inputs = inputs
                }
                if let found = try resident.walks[id]?.advance() { return found }
            }
            return nil
        } catch {
            resident.walks[id]?.abandon()
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
        try run.models.checkFit(
            parts, attention: run.request.arithmetic.attention, linears: linears)
        for notice in try run.fileNotices() { handle.tell(.notice(notice)) }
        if run.options.start.latents == nil {
            for notice in try run.loraNotices() { handle.tell(.notice(notice)) }
        }
        // Models of other settings go before the memory is needed, and both experts where they are to take turns.
        let keepsTransformers = try run.options.keepsBothExperts || run.experts.count == 1
        resident.pool.release(
            allBut: Set(parts.filter { keepsTransformers || !$0.isTransformer }.map(run.key)))
        let tell = handle.tell
        resident.readAheads[handle.id] = ReadAhead(
            parts.filter { resident.pool.model(run.key($0)) == nil }.map(run.models.path)
        ) { tell(.notice(.damaged($0))) }
        return try Walk(
            run, resident.pool, on: device, cancellation: handle.cancellation, tell: handle.tell)
    }

    private func openedDevice() throws -> OpenedDevice {
        if let device = resident.device { return device }
        let opened = try open()
        resident.device = opened
        return opened
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

    func report(_ id: Int) -> RunReport {
        resident.walks[id]?.report
            ?? RunReport(device: "", stages: [], totalSeconds: 0, hostPeakBytes: 0)
    }

    func forget(_ id: Int) {
        resident.walks[id] = nil
        resident.readAheads[id] = nil
    }
}
