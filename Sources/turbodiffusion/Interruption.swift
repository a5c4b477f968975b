/// What the process sets up before its first command: standard descriptors, signal handlers, and a message for mapped
/// files that shrink.

import CProcess
import Glibc
import Ground
import Synchronization

/// The pipe into which a signal handler writes the signal's number; set once, before a handler is installed.
private nonisolated(unsafe) var signalPipe: Int32 = -1

/// Handles the signals that ask the process to end. A device may go on computing for longer than a user is willing to
/// wait, so unfinished files are removed and the process ends at once. Child processes end with their parent.
enum Interruption {
    /// Signals by which a process is asked to end: by a user, a closed terminal, a batch system whose limit is near.
    private static let signals = [
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM,
    ]
    private static let kept = Mutex<[String]>([])
    /// What the first signal does instead of ending the process.
    private static let ending = Mutex<(@Sendable () -> Void)?>(nil)

    /// Called once, before the first command runs.
    static func install() {
        openStandardDescriptors()
        requireMinimum()
        mapped_files_may_shrink()
        // Writing to a closed pipe, or beyond a limit on file sizes, should be a reported error, not a silent death.
        for number in [SIGPIPE, SIGXFSZ] { signal(number, SIG_IGN) }
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { return }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        signalPipe = ends[1]
        // nohup, and shells that start a job in the background, make it ignore some of them: that must stay so.
        for number in signals where !isIgnored(number) {
            signal(number) { number in
                // This runs on any thread, and may do next to nothing: it only wakes the waiting thread.
                var byte = UInt8(truncatingIfNeeded: number)
                _ = write(signalPipe, &byte, 1)
            }
        }
        let reading = ends[0]
        HostThread {
            var number: UInt8 = 0
            repeat {
                while read(reading, &number, 1) != 1 {}
            } while Interruption.takesPause() || Interruption.takesEnding()
                || Int32(number) == SIGINT && Interruption.isIntercepted
            Interruption.end(by: Int32(number))
        }?.detach()
    }

    private enum Pause: Int, AtomicRepresentable { case never, possible, asked }
    private static let pause = Atomic(Pause.never)

    /// From now on the first signal asks for a pause instead of ending the process; the next one ends it.
    static func pauses() {
        // A pause that was asked for before stays asked for.
        _ = pause.compareExchange(expected: .never, desired: .possible, ordering: .relaxed)
    }

    /// Whether a pause was asked for.
    static var isPausing: Bool { pause.load(ordering: .relaxed) == .asked }

    private static func takesPause() -> Bool {
        pause.compareExchange(expected: .possible, desired: .asked, ordering: .relaxed).exchanged
    }

    /// Notes a finished file, which is mentioned if the process is stopped later.
    static func noteFinished(_ path: String) { kept.withLock { $0.append(path) } }

    /// The first signal calls `body`, which is to bring the process to its end; a second one ends it at once.
    static func takeOver(_ body: @escaping @Sendable () -> Void) { ending.withLock { $0 = body } }

    private static let interception = Mutex<(@Sendable () -> Bool)?>(nil)

    /// Each Ctrl-C asks `body`, which says whether that was all; otherwise the process ends.
    static func intercept(_ body: @escaping @Sendable () -> Bool) {
        interception.withLock { $0 = body }
    }

    private static var isIntercepted: Bool { interception.withLock { $0 }?() ?? false }

    private static func takesEnding() -> Bool {
        let body = ending.withLock { ending in
            defer { ending = nil }
            return ending
        }
        body?()
        return body != nil
    }

    private static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        sigaction(number, nil, &action)
        let handler = action.__sigaction_handler.sa_handler
        return unsafeBitCast(handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
    }

    /// Ends the process by the signal itself, so that its parent knows: a shell then leaves its loop too.
    private static func end(by number: Int32) -> Never {
        // A second signal ends the process immediately.
        for number in signals where !isIgnored(number) { signal(number, SIG_DFL) }
        TemporaryPath.removeAll()
        let files = kept.withLock { $0.map(\.printable).joined(separator: ", ") }
        let message =
            "\nstopped; " + (files.isEmpty ? "nothing was written" : "kept: \(files)") + "\n"
        _ = message.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        // On some of these signals the system would dump gigabytes of memory to disk.
        var none = rlimit(rlim_cur: 0, rlim_max: 0)
        setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
        kill(getpid(), number)
        sleep(1)
        _exit(128 + number)
    }

    /// Below this nothing goes well, and not even ends well: who waits for a thread waits for ever.
    private static func requireMinimum() {
        // ffmpeg's pipes, the model's files and what a device opens, all at once.
        let (threads, memory, descriptors) = (12, 256 << 20, 24)
        var (stack, files) = (rlimit(), rlimit())
        getrlimit(__rlimit_resource_t(RLIMIT_STACK.rawValue), &stack)
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &files)
        var lack: String?
        let addresses = HostMemory.current.addresses
        if let addresses, addresses < memory {
            lack =
                "\(describe(bytes: memory)) of memory, it may take \(describe(bytes: addresses)) (ulimit -v)"
        } else if stack.rlim_cur < 256 << 10 {
            lack = "256 KiB for each stack, it may take \(stack.rlim_cur >> 10) KiB (ulimit -s)"
        } else if files.rlim_cur < descriptors {
            lack = "\(descriptors) open files, it may have \(files.rlim_cur) (ulimit -n)"
        } else if !canStartThreads(threads) {
            lack =
                "\(threads) threads, "
                + (addresses.map {
                    "for whose stacks the \(describe(bytes: $0)) of memory that it may take leave "
                        + "no room (ulimit -v)"
                } ?? "the system starts fewer (ulimit -u, or the container's limit)")
        }
        guard let lack else { return }
        let line = "Error: turbodiffusion needs at least \(lack)\n"
        _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        _exit(EXIT_FAILURE)
    }

    /// Opens closed standard descriptors such that using them fails. Otherwise the next opened file would get such a
    /// number, and printed text would end up in it.
    private static func openStandardDescriptors() {
        for number: Int32 in 0...2 where fcntl(number, F_GETFD) < 0 {
            _ = open("/dev/null", number == STDIN_FILENO ? O_WRONLY : O_RDONLY)
        }
    }
}
