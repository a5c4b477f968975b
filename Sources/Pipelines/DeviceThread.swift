/// One thread for one device: tensors and backends never leave it.

import Ground
import Synchronization
import Tensors

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// Runs an actor's jobs on a thread of its own, so that a device context stays current and long
/// computations never block Swift's shared thread pool. Lives as long as the process.
package final class DeviceThread: SerialExecutor, Sendable {
    private let jobs = Mutex<[UnownedJob]>([])
    private let available = Semaphore()

    package init() {
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { context in
                Unmanaged<DeviceThread>.fromOpaque(context!).takeUnretainedValue().run()
            }, Unmanaged.passRetained(self).toOpaque())
        ensure(status == 0, "DeviceThread: cannot start a thread (errno \(status))")
        pthread_detach(thread)
    }

    package func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        jobs.withLock { $0.append(job) }
        available.signal()
    }

    package func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        UnownedSerialExecutor(ordinary: self)
    }

    private func run() -> Never {
        while true {
            available.wait()
            let job = jobs.withLock { $0.removeFirst() }
            job.runSynchronously(on: asUnownedSerialExecutor())
        }
    }
}

/// A counting semaphore of the operating system, which needs a fixed address.
private struct Semaphore: Sendable {
    private nonisolated(unsafe) let handle = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
    init() { sem_init(handle, 0, 0) }
    func signal() { sem_post(handle) }
    func wait() { while sem_wait(handle) != 0 {} }
}
