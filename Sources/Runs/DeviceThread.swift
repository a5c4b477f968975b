/// The thread of a device, which its tensors and its backend never leave.

import Ground
import Tensors

/// Runs an actor's jobs on a thread of their own, so that the device's context stays current and long computations
/// never block Swift's shared thread pool. After `close` the thread finishes its jobs and ends.
package final class DeviceThread: SerialExecutor, Sendable {
    private struct Queue {
        var jobs: [UnownedJob] = []
        var isClosed = false
    }
    private let monitor = Monitor()
    /// Guarded by `monitor`.
    private nonisolated(unsafe) var queue = Queue()
    /// Only jobs of the thread may use it. The thread releases it when it ends; an actor's `isolated deinit` would do
    /// the same, but Swift 6.3 cannot compile one ("circular reference") where it optimises across modules.
    private nonisolated(unsafe) let held: Unmanaged<Resident>
    var resident: Resident { held.takeUnretainedValue() }

    init(_ resident: Resident) {
        held = .passRetained(resident)
        // It keeps itself until it ends.
        guard let thread = HostThread({ self.run() }) else {
            fatalError("DeviceThread: the system starts no further thread")
        }
        thread.detach()
    }

    package func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        monitor.locked {
            queue.jobs.append(job)
            monitor.announce()
        }
    }

    /// No more jobs will come.
    package func close() {
        monitor.locked {
            queue.isClosed = true
            monitor.announce()
        }
    }

    package func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        UnownedSerialExecutor(ordinary: self)
    }

    private func run() {
        while true {
            let (jobs, isClosed) = monitor.locked {
                monitor.wait { !queue.jobs.isEmpty || queue.isClosed }
                defer { queue.jobs = [] }
                return (queue.jobs, queue.isClosed)
            }
            for job in jobs { job.runSynchronously(on: asUnownedSerialExecutor()) }
            // Jobs may have been added before the end.
            if isClosed, jobs.isEmpty { return held.release() }
        }
    }
}
