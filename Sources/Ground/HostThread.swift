/// A thread of the system: for work that waits, which the threads of Swift's tasks must not.

import Glibc

/// A thread that runs one function. Either `join` or `detach` is called once.
public struct HostThread: Sendable {
    private let thread: pthread_t

    private final class Work: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    /// Starts a thread; nil where the system gives no more, and then `body` is not called.
    /// - Parameter blocksSignals: signals from outside are left to other threads, and to none in programs that this one
    ///   starts.
    public init?(blocksSignals: Bool = false, _ body: @escaping @Sendable () -> Void) {
        let work = Unmanaged.passRetained(Work(body))
        // A thread inherits the mask of the one that starts it.
        var (all, before) = (sigset_t(), sigset_t())
        if blocksSignals {
            sigfillset(&all)
            // What this thread itself causes has to reach its handler, such as the one for mapped files that shrink:
            // where it is blocked, the system ends the process without a word.
            for number in [SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS] {
                sigdelset(&all, number)
            }
            pthread_sigmask(SIG_SETMASK, &all, &before)
        }
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { work in
                Unmanaged<Work>.fromOpaque(work!).takeRetainedValue().body()
                return nil
            }, work.toOpaque())
        if blocksSignals { pthread_sigmask(SIG_SETMASK, &before, nil) }
        guard status == 0 else {
            work.release()
            return nil
        }
        self.thread = thread
    }

    /// Waits for its end.
    public func join() { pthread_join(thread, nil) }

    /// Leaves it to itself.
    public func detach() { pthread_detach(thread) }
}
