/// An engine whose device is opened while the request is still being looked at.

import Devices
import Dispatch
import Runs
import Synchronization
import Tensors

/// Opening a GPU takes 0.4 s, and so does looking at files and planning a run; they do not need each other until the
/// plan is there.
final class OpeningEngine: Sendable {
    let engine: Engine
    private let plan: Promised<Plan>

    /// - Parameter tell: what is to be known of devices; called from any thread.
    /// - Throws: where the devices of a group cannot be one.
    init(_ execution: ExecutionOptions, tell: @escaping @Sendable (RunEvent) -> Void) throws {
        let plan = Promised<Plan>()
        let openers = try execution.machines.openers(execution.deviceOptions) {
            tell(.notice(.device("\($0)")))
        }
        self.plan = plan
        engine = Engine(
            group: openers.map { open in
                {
                    let backend = try open()
                    let plan = plan.wait()
                    backend.limitResidentWeights(to: plan.residentWeights)
                    try backend.checkFreeMemory(plan.peakBytes)
                    return OpenedDevice(backend, sageArchitecture: backend.sageArchitecture)
                }
            })
        // It stays until the process ends, which takes everything with it: letting go of models and device one after the
        // other would be waited for.
        _ = Unmanaged.passRetained(engine)
    }

    /// Begins to open a device. A group's members are known only once the driver is there: of them only the driver's part
    /// is begun. An error is thrown by the first run.
    static func ahead(
        _ execution: ExecutionOptions, tell: @escaping @Sendable (RunEvent) -> Void
    ) throws -> OpeningEngine? {
        if let group = execution.machines.group {
            group.openAhead()
            return nil
        }
        let opening = try OpeningEngine(execution, tell: tell)
        let engine = opening.engine
        Task.detached { _ = try? await engine.openDevice() }
        return opening
    }

    /// Lets the device go on: as many weights stay on it as the plan says.
    func setPlan(_ plan: Plan) { self.plan.fulfil(plan) }
}

/// A value that threads wait for.
private final class Promised<Value: Sendable>: Sendable {
    private let value = Mutex<Value?>(nil)
    private let isThere = DispatchSemaphore(value: 0)

    func fulfil(_ value: Value) {
        self.value.withLock { $0 = value }
        isThere.signal()
    }

    func wait() -> Value {
        while true {
            isThere.wait()
            // For whoever else waits.
            isThere.signal()
            if let value = value.withLock({ $0 }) { return value }
        }
    }
}
