/// How the process meets the world: its standard descriptors, the signals that end it, and files that shrink under it.

import CProcess
import Glibc
import Ground
import Synchronization

/// Where a signal's handler writes its number; set once, before a handler is installed.
private nonisolated(unsafe) var signalPipe: Int32 = -1

/// What the signals that ask a process to end do. A computation on the device may take longer than a user waits, so
/// unfinished files go and the process ends without it; a child ends with its parent by itself.
enum Interruption {
    /// Those that others send to end a process: a user, a closed terminal, a batch system whose limits are near.
    private static let signals = [
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM,
    ]
    private static let kept = Mutex<[String]>([])

    /// Called once, before the first command runs.
    static func install() {
        openStandardDescriptors()
        requireMinimum()
        mapped_files_may_shrink()
        // Writing to a closed pipe, or more than a file may have, is an error to report and no reason to die silently.
        for number in [SIGPIPE, SIGXFSZ] { signal(number, SIG_IGN) }
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { return }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        signalPipe = ends[1]
        // Whoever starts a job in the background, or by nohup, lets it ignore some of them.
        for number in signals where !isIgnored(number) {
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
                Interruption.end(by: Int32(number))
            }, reading)
    }

    /// A file that is whole, and is told to be there when the process is stopped.
    static func keeps(_ path: String) { kept.withLock { $0.append(path) } }

    private static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        sigaction(number, nil, &action)
        let handler = action.__sigaction_handler.sa_handler
        return unsafeBitCast(handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
    }

    /// Ends the process by the signal itself, so that whoever has started it knows: a shell's loop then ends too.
    private static func end(by number: Int32) -> Never {
        // Of a second signal the process dies at once.
        for number in signals where !isIgnored(number) { signal(number, SIG_DFL) }
        TemporaryPath.removeAll()
        let files = kept.withLock { $0.map(\.printable).joined(separator: ", ") }
        let message =
            "\nstopped; " + (files.isEmpty ? "nothing was written" : "kept: \(files)") + "\n"
        _ = message.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        // For some of them the system would write gigabytes of memory to disk.
        var none = rlimit(rlim_cur: 0, rlim_max: 0)
        setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
        kill(getpid(), number)
        sleep(1)
        _exit(128 + number)
    }

    /// Below this nothing goes well, and not even ends well: who waits for a thread waits for ever.
    private static func requireMinimum() {
        let (threads, memory) = (12, 256 << 20)
        var stack = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_STACK.rawValue), &stack)
        var lack: String?
        if let addresses = HostMemory.current.addresses, addresses < memory {
            lack =
                "\(describe(bytes: memory)) of memory, it may take \(describe(bytes: addresses)) (ulimit -v)"
        } else if stack.rlim_cur < 256 << 10 {
            lack = "256 KiB for each stack, it may take \(stack.rlim_cur >> 10) KiB (ulimit -s)"
        } else if !canStartThreads(threads) {
            lack =
                "\(threads) threads, the system starts fewer (ulimit -u, or the container's limit)"
        }
        guard let lack else { return }
        let line = "Error: turbodiffusion needs at least \(lack)\n"
        _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        _exit(EXIT_FAILURE)
    }

    /// Opens those that are closed so that using them fails: the next file that is opened would have their number, and what
    /// is printed would end up in it.
    private static func openStandardDescriptors() {
        for number: Int32 in 0...2 where fcntl(number, F_GETFD) < 0 {
            _ = open("/dev/null", number == STDIN_FILENO ? O_WRONLY : O_RDONLY)
        }
    }
}
