/// Ctrl-C: stops the work within a second and leaves no half-written file.

import Glibc
import Ground
import Media
import Synchronization

/// Where a signal's handler writes its number; set once, before a handler is installed.
private nonisolated(unsafe) var signalPipe: Int32 = -1

/// What SIGINT and SIGTERM stop. A computation on the device may take longer than a user waits, so the
/// open files are removed and the process ends without it.
enum Interruption {
    private static let writers = Mutex<[ObjectIdentifier: VideoWriter]>([:])
    private static let remains = Mutex("nothing was written")

    /// Handles the signals from now on. Called once, before the first command runs.
    static func install() {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { return }
        signalPipe = ends[1]
        for number in [SIGINT, SIGTERM] {
            // Whoever starts a job in the background lets it ignore Ctrl-C.
            if isIgnored(number) { continue }
            signal(number) { number in
                // Whatever thread is hit: only tell the one that waits.
                var byte = UInt8(truncatingIfNeeded: number)
                _ = write(signalPipe, &byte, 1)
            }
        }
        let reading = UnsafeMutableRawPointer(bitPattern: Int(ends[0]))
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { reading in
                var number: UInt8 = 0
                while read(Int32(Int(bitPattern: reading)), &number, 1) != 1 {}
                Interruption.stop(Int32(number))
                return nil
            }, reading)
    }

    private static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        sigaction(number, nil, &action)
        let handler = action.__sigaction_handler.sa_handler
        return unsafeBitCast(handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
    }

    static func opened(_ writer: VideoWriter) {
        writers.withLock { $0[ObjectIdentifier(writer)] = writer }
    }

    static func closed(_ writer: VideoWriter) {
        _ = writers.withLock { $0.removeValue(forKey: ObjectIdentifier(writer)) }
    }

    /// What is told to be left when the process is stopped from now on.
    static func keeps(_ text: String) { remains.withLock { $0 = text } }

    private static func stop(_ signal: Int32) {
        let open = writers.withLock { Array($0.values) }
        let code = 128 + signal
        Task.detached {
            for writer in open { await writer.cancel() }
            end(code)
        }
        usleep(800_000)
        end(code)
    }

    private static func end(_ code: Int32) -> Never {
        TemporaryPath.removeAll()
        let message = "\nstopped; " + remains.withLock { $0 } + "\n"
        _ = message.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        _exit(code)
    }
}
