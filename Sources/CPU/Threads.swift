/// A thread pool for loops with independent iterations.

import Glibc
import Ground
import Synchronization
import Tensors

/// Runs loops on several threads.
///
/// A loop is cut into chunks of `grain` iterations, whatever the number of threads, and no chunk uses the results of
/// another. So results do not depend on the number of threads.
final class Threads: @unchecked Sendable {
    /// Number of threads, the caller's included.
    var count: Int { workers.count + 1 }
    private let shared: Shared
    private var workers: [HostThread] = []

    /// Number of processors that are online.
    static var available: Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

    init(count: Int = Threads.available) {
        shared = Shared()
        for _ in 0..<max(0, count - 1) {
            // The program handles signals elsewhere.
            guard let worker = HostThread(blocksSignals: true, { [shared] in shared.work() }) else {
                // Where the system gives no more threads, those that are there do the work.
                break
            }
            workers.append(worker)
        }
    }

    deinit {
        shared.stop()
        for worker in workers { worker.join() }
    }

    /// Calls `body` once for each chunk of `grain` indices of `0..<count`, and returns when all are done.
    /// A loop inside a loop runs on the thread that calls it.
    func parallel(_ count: Int, grain: Int = 1, _ body: (Range<Int>) -> Void) {
        let chunks = ceilDivide(count, grain)
        func chunk(_ index: Int) { body(index * grain..<min(count, (index + 1) * grain)) }
        if workers.isEmpty || chunks <= 1 || shared.isRunning {
            for index in 0..<chunks { chunk(index) }
        } else {
            withoutActuallyEscaping(chunk) { shared.run($0, chunks: chunks) }
        }
    }
}

/// State shared by the threads of a pool. Everything except `next` is guarded by `mutex`.
private final class Shared: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let done = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let next = Atomic(0)
    private var body: ((Int) -> Void)?
    private var chunks = 0
    private var generation = 0
    private var busy = 0
    private var stopped = false
    /// True while a loop runs. Workers read it without the mutex, but only during a loop, when it does not change.
    private(set) var isRunning = false

    init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(wake, nil)
        pthread_cond_init(done, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        pthread_cond_destroy(wake)
        pthread_cond_destroy(done)
        mutex.deallocate()
        wake.deallocate()
        done.deallocate()
    }

    func run(_ body: @escaping (Int) -> Void, chunks: Int) {
        pthread_mutex_lock(mutex)
        self.body = body
        self.chunks = chunks
        next.store(0, ordering: .relaxed)
        generation += 1
        isRunning = true
        pthread_cond_broadcast(wake)
        pthread_mutex_unlock(mutex)
        takeChunks(body, chunks)
        pthread_mutex_lock(mutex)
        // All chunks have been taken. Workers that have not joined need not any more; those that have must finish.
        self.body = nil
        while busy > 0 { pthread_cond_wait(done, mutex) }
        isRunning = false
        pthread_mutex_unlock(mutex)
    }

    func work() {
        var seen = 0
        pthread_mutex_lock(mutex)
        while true {
            while generation == seen && !stopped { pthread_cond_wait(wake, mutex) }
            if stopped { break }
            seen = generation
            if let body {
                let chunks = chunks
                busy += 1
                pthread_mutex_unlock(mutex)
                takeChunks(body, chunks)
                pthread_mutex_lock(mutex)
                busy -= 1
                if busy == 0 { pthread_cond_signal(done) }
            }
        }
        pthread_mutex_unlock(mutex)
    }

    func stop() {
        pthread_mutex_lock(mutex)
        stopped = true
        pthread_cond_broadcast(wake)
        pthread_mutex_unlock(mutex)
    }

    private func takeChunks(_ body: (Int) -> Void, _ chunks: Int) {
        while true {
            let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
            if index >= chunks { return }
            body(index)
        }
    }
}
