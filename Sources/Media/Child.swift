// Child: a program run as a child process, which is given limited time and cannot outlive this process.

import CProcess
import Glibc
import Ground
import Synchronization
import SystemPackage

/// A running child process. It leads a process group of its own, so that a Ctrl-C in the terminal reaches this program
/// alone, and is killed with that group by ``kill()``, by its limits, or by the end of this process.
final class Child: Sendable {
    struct Limits: Sendable {
        /// Seconds that this process waits for it while it neither uses the processor nor transfers a byte.
        var idle = 30
        /// Seconds in total.
        var total = Int.max
    }

    /// How a child ended.
    enum Ending: Sendable, Equatable {
        case exited(Int32)
        case signaled(Int32)
        /// Killed after this many seconds.
        case tooSlow(seconds: Int)

        var isSuccess: Bool { self == .exited(0) }
    }

    enum Input: Sendable {
        case nothing
        /// A descriptor of this process, which stays open here.
        case descriptor(Int32)
        /// A pipe into which ``write(_:)`` writes.
        case pipe
    }

    enum Output: Sendable {
        case nothing
        case descriptor(Int32)
        /// A pipe from which ``read(_:)`` reads.
        case pipe
    }

    /// What is known of a child that has ended.
    struct Remains: Sendable {
        var ending: Ending
        /// The end of what it wrote to standard error.
        var words: ErrorTail
    }

    private struct State {
        var process: pid_t?
        var remains: Remains?
        var waiters: [CheckedContinuation<Remains, Never>] = []
        /// How many calls wait for the child to read or write.
        var waits = 0
        /// How many such calls have returned.
        var moved = 0
    }

    private let state = Mutex(State())
    private let input: Descriptor
    private let output: Descriptor

    /// - Throws: ``MediaError/cannotStart(program:reason:)``.
    static func start(
        _ program: String, _ arguments: [String], input: Input = .nothing,
        output: Output = .nothing,
        limits: Limits = Limits()
    ) async throws -> Child {
        ignoreBrokenPipes
        func failed(_ code: Int32) -> MediaError {
            .cannotStart(program: program, reason: String(cString: strerror(code)))
        }
        guard let nothing = Descriptor(open("/dev/null", O_RDWR | O_CLOEXEC)),
            let words = Pipe(), let inputPipe = Pipe(), let outputPipe = Pipe()
        else { throw failed(errno) }
        let (ours, standardInput) =
            switch input {
            case .nothing: (Descriptor.closed, nothing.number)
            case .descriptor(let descriptor): (Descriptor.closed, descriptor)
            case .pipe: (inputPipe.writing, inputPipe.reading.number)
            }
        let (results, standardOutput) =
            switch output {
            case .nothing: (Descriptor.closed, nothing.number)
            case .descriptor(let descriptor): (Descriptor.closed, descriptor)
            case .pipe: (outputPipe.reading, outputPipe.writing.number)
            }
        let child = Child(input: ours, output: results)
        let code: Int32 = await withCheckedContinuation { started in
            let isRunning = onThread {
                let code = child.spawn(
                    program, arguments,
                    [standardInput, standardOutput, words.writing.number])
                // The child's ends of the pipes: left open here, they would keep a stream from ever ending.
                for descriptor in [inputPipe.reading, outputPipe.writing, words.writing] {
                    descriptor.close()
                }
                started.resume(returning: code)
                if code == 0 { child.watch(words.reading, limits) }
            }
            if !isRunning { started.resume(returning: EAGAIN) }
        }
        withExtendedLifetime(nothing) {}
        guard code == 0 else { throw failed(code) }
        return child
    }

    private init(input: Descriptor, output: Descriptor) {
        self.input = input
        self.output = output
    }

    /// The process id; nil once the child has been reaped, as the id may then belong to another process.
    var process: pid_t? { state.withLock { $0.process } }

    /// Sends a signal to the child's process group; the default ends it at once.
    func kill(by signal: Int32 = SIGKILL) {
        state.withLock { state in
            if let process = state.process { _ = Glibc.kill(-process, signal) }
        }
    }

    // MARK: Streams

    /// Writes `bytes` to the child's standard input.
    /// - Returns: whether all of them were taken.
    func write(_ bytes: [UInt8]) async -> Bool {
        await waiting { [input] in
            var done = 0
            while done < bytes.count {
                let count = bytes.withUnsafeBytes {
                    Glibc.write(input.number, $0.baseAddress! + done, $0.count - done)
                }
                if count < 0 && errno == EINTR { continue }
                if count <= 0 { return false }
                done += count
            }
            return true
        }
    }

    func closeInput() { input.close() }

    func closeOutput() { output.close() }

    /// The next `count` bytes of the child's standard output; fewer at its end.
    func read(_ count: Int) async -> [UInt8] {
        await waiting { [output] in
            [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
                while used < count {
                    let got = Glibc.read(output.number, buffer.baseAddress! + used, count - used)
                    if got < 0 && errno == EINTR { continue }
                    if got <= 0 { return }
                    used += got
                }
            }
        }
    }

    /// Waits until the child has ended.
    var remains: Remains {
        get async {
            await withCheckedContinuation { continuation in
                let remains = state.withLock { state in
                    if state.remains == nil { state.waiters.append(continuation) }
                    return state.remains
                }
                if let remains { continuation.resume(returning: remains) }
            }
        }
    }

    /// Runs a blocking call on a thread of its own.
    private func waiting<Result: Sendable>(_ call: @escaping @Sendable () -> Result) async -> Result
    {
        await withCheckedContinuation { continuation in
            let body = { @Sendable [self] in
                state.withLock { $0.waits += 1 }
                let result = call()
                state.withLock { state in
                    state.waits -= 1
                    state.moved += 1
                }
                continuation.resume(returning: result)
            }
            // If no thread can be had, the caller's must do.
            if !onThread(body) { body() }
        }
    }

    /// Whether the child should be doing something: it may wait for input, or for its output to be read, for ever.
    private var isWaitedFor: Bool {
        let hasAllInput = input.number < 0
        return state.withLock { $0.waits > 0 || (hasAllInput && !$0.waiters.isEmpty) }
    }

    // MARK: The thread that watches it

    /// - Returns: an `errno`.
    private func spawn(_ program: String, _ arguments: [String], _ standard: [Int32]) -> Int32 {
        var strings = ([program] + arguments).map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var process = pid_t()
        let code = child_start(program, &strings, standard, &process)
        if code == 0 { state.withLock { $0.process = process } }
        return code
    }

    /// Reads the child's standard error and enforces its limits until it ends.
    private func watch(_ words: Descriptor, _ limits: Limits) {
        guard let process else { return }
        let ended = Descriptor(child_descriptor(process))
        var tail = ErrorTail()
        var watch = Watch(process: process, limits: limits)
        var exceeded: Int?
        var hasWords = true
        while true {
            var events = [
                pollfd(fd: hasWords ? words.number : -1, events: Int16(POLLIN), revents: 0),
                pollfd(fd: ended?.number ?? -1, events: Int16(POLLIN), revents: 0),
            ]
            _ = Glibc.poll(&events, 2, hasWords || ended != nil ? 200 : 20)
            if events[0].revents != 0 { hasWords = tail.read(words.number) }
            if hasEnded(process) { break }
            if exceeded == nil {
                exceeded = watch.exceeded(
                    isWaitedFor: isWaitedFor, moved: state.withLock { $0.moved })
                if exceeded != nil { kill() }
            }
        }
        // Kill whatever it left running, which could hold the streams open.
        kill()
        while hasWords, canRead(words) { hasWords = tail.read(words.number) }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
        let signal = status & 0x7F
        let ending: Ending =
            if let exceeded {
                .tooSlow(seconds: exceeded)
            } else if signal == 0 {
                .exited(status >> 8 & 0xFF)
            } else {
                .signaled(signal)
            }
        let remains = Remains(ending: ending, words: tail)
        let waiters = state.withLock { state in
            state.process = nil
            state.remains = remains
            return state.waiters
        }
        for waiter in waiters { waiter.resume(returning: remains) }
    }

    /// Whether the child has ended. It is not reaped, so that its process id is not reused.
    private func hasEnded(_ process: pid_t) -> Bool {
        var information = siginfo_t()
        let flags = WEXITED | WNOHANG | WNOWAIT
        return waitid(P_PID, id_t(process), &information, flags) != 0
            || information._sifields._sigchld.si_pid != 0
    }

    private func canRead(_ descriptor: Descriptor) -> Bool {
        var event = pollfd(fd: descriptor.number, events: Int16(POLLIN), revents: 0)
        return Glibc.poll(&event, 1, 0) > 0
    }

    /// A child that dies while this process writes to it must cause an error, not end this process too. A handler that
    /// the program has installed is left alone.
    static let ignoreBrokenPipes: Void = {
        var current = sigaction()
        sigaction(SIGPIPE, nil, &current)
        if unsafeBitCast(current.__sigaction_handler.sa_handler, to: Int.self) == 0 {
            signal(SIGPIPE, SIG_IGN)
        }
    }()
}

/// Decides whether a child has exceeded its limits.
private struct Watch {
    let process: pid_t
    let limits: Child.Limits
    private let start = ContinuousClock.now
    private var progress = ContinuousClock.now
    private var ticks = ""
    private var moved = 0

    init(process: pid_t, limits: Child.Limits) {
        self.process = process
        self.limits = limits
    }

    /// The limit in seconds that the child has exceeded, or nil.
    mutating func exceeded(isWaitedFor: Bool, moved: Int) -> Int? {
        let now = ContinuousClock.now
        if now - start > .seconds(limits.total) { return limits.total }
        // A slow child, unlike a hanging one, uses the processor.
        let ticks = processorTime
        if !isWaitedFor || moved != self.moved || ticks != self.ticks { progress = now }
        (self.moved, self.ticks) = (moved, ticks)
        return now - progress > .seconds(limits.idle) ? limits.idle : nil
    }

    /// The ticks in user and system mode, fields 14 and 15 of proc(5)'s `stat`.
    private var processorTime: String {
        let text = (try? FilePath("/proc/\(process)/stat").contents()) ?? []
        // The program's name, in parentheses, may contain anything; the fields after it are numbers.
        let fields = String(decoding: text, as: UTF8.self).split(separator: ")").last?
            .split(separator: " ")
        return fields.map { $0.dropFirst(11).prefix(2).joined(separator: " ") } ?? ""
    }
}

/// An open file descriptor of this process, closed once.
final class Descriptor: Sendable {
    static let closed = Descriptor(unchecked: -1)
    private let value: Mutex<Int32>

    private init(unchecked number: Int32) { value = Mutex(number) }

    /// Nil if `number` is negative: the result of a failed call.
    init?(_ number: Int32) {
        guard number >= 0 else { return nil }
        value = Mutex(number)
    }

    deinit { close() }

    /// -1 once it is closed.
    var number: Int32 { value.withLock { $0 } }

    func close() {
        value.withLock { number in
            if number >= 0 { Glibc.close(number) }
            number = -1
        }
    }
}

/// A pipe.
struct Pipe {
    let reading, writing: Descriptor

    init?() {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0, let reading = Descriptor(ends[0]), let writing = Descriptor(ends[1])
        else { return nil }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        (self.reading, self.writing) = (reading, writing)
    }
}

/// Runs `body` on a thread of its own.
/// - Returns: whether a thread could be started; if not, `body` does not run.
func onThread(_ body: @escaping @Sendable () -> Void) -> Bool {
    guard let thread = HostThread(body) else { return false }
    thread.detach()
    return true
}
