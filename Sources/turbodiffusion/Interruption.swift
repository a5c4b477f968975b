/// Ctrl-C: stops the work within a second and leaves no half-written file.

import Checkpoints
import Media
import Synchronization

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// What SIGINT and SIGTERM stop. A computation on the device may take longer than a user waits, so the
/// open files are removed and the process ends without it.
enum Interruption {
    private static let writers = Mutex<[ObjectIdentifier: VideoWriter]>([:])

    /// Takes the signals away from all threads and gives them to one that waits for them. Called once,
    /// before any other thread starts.
    static func install() {
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGINT)
        sigaddset(&set, SIGTERM)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { _ in
                var set = sigset_t()
                sigemptyset(&set)
                sigaddset(&set, SIGINT)
                sigaddset(&set, SIGTERM)
                var signal: Int32 = 0
                sigwait(&set, &signal)
                Interruption.stop(signal)
                return nil
            }, nil)
    }

    static func opened(_ writer: VideoWriter) {
        writers.withLock { $0[ObjectIdentifier(writer)] = writer }
    }

    static func closed(_ writer: VideoWriter) {
        _ = writers.withLock { $0.removeValue(forKey: ObjectIdentifier(writer)) }
    }

    private static func stop(_ signal: Int32) {
        let open = writers.withLock { Array($0.values) }
        let code = 128 + signal
        removeUnfinishedCheckpoints()
        Task.detached {
            for writer in open { await writer.cancel() }
            end(code)
        }
        usleep(800_000)
        end(code)
    }

    private static func end(_ code: Int32) -> Never {
        let message = "\nstopped; nothing was written\n"
        _ = message.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        _exit(code)
    }
}
