/// A lock with a place to wait: for threads that hand something over to each other.

import Glibc

/// Lets one thread at a time at what it guards, and lets threads wait until another one has changed that. Swift's `Mutex`
/// has no waiting.
public final class Monitor: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    public init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(changed, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        pthread_cond_destroy(changed)
        mutex.deallocate()
        changed.deallocate()
    }

    /// Runs `body` when no other thread is in one.
    public func locked<Result>(_ body: () throws -> Result) rethrows -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }

    /// Only in `locked`: lets others in until `isTrue`, which is asked at once and after each `announce`.
    public func wait(until isTrue: () -> Bool) {
        while !isTrue() { pthread_cond_wait(changed, mutex) }
    }

    /// Only in `locked`: something has changed that others wait for.
    public func announce() { pthread_cond_broadcast(changed) }
}
