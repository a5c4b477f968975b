/// The thread of a device, which its tensors and its backend never leave.

import Glibc
import Ground
import Synchronization
import Tensors

/// Runs an actor's jobs on a thread of their own, so that the device's context stays current and long computations
/// never block Swift's shared thread pool. After `close` the thread finishes its jobs and ends.
package final class DeviceThread: SerialExecutor, Sendable {
    private struct Queue {
        var jobs: [UnownedJob] = []
        var isClosed = false
    }
    private let queue = Mutex(Queue())
    private let available = Semaphore()
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
        queue.withLock { $0.jobs.append(job) }
        available.signal()
    }

    /// No more jobs will come.
    package func close() {
        queue.withLock { $0.isClosed = true }
        available.signal()
    }

    package func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        UnownedSerialExecutor(ordinary: self)
    }

    private func run() {
        while true {
            available.wait()
            let (jobs, isClosed) = queue.withLock { queue in
                defer { queue.jobs = [] }
                return (queue.jobs, queue.isClosed)
            }
            for job in jobs { job.runSynchronously(on: asUnownedSerialExecutor()) }
            if isClosed, jobs.isEmpty { return held.release() }
            // Looks for jobs that were added before the end.
            if isClosed { available.signal() }
        }
    }
}

/// A counting semaphore of the operating system. It needs a fixed address.
private final class Semaphore: Sendable {
    private nonisolated(unsafe) let handle = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
    init() { sem_init(handle, 0, 0) }
    deinit {
        sem_destroy(handle)
        handle.deallocate()
    }
    func signal() { sem_post(handle) }
    func wait() { while sem_wait(handle) != 0 {} }
}
