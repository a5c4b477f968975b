// Child: a program that runs beside this one, is waited for with limits, and cannot outlive it.

import CProcess
import Glibc
import Ground
import Synchronization
import SystemPackage

/// A running child process. It leads a process group of its own, so that a Ctrl-C in the terminal reaches this program
/// alone, and is killed with that group by ``kill()``, by its limits, or by the end of this process.
final class Child: Sendable {
    struct Limits: Sendable {
        /// Seconds in which it is waited for, but neither uses the processor nor takes or gives a byte.
        var idle = 30
        /// Seconds in all.
        var total = Int.max
    }

    /// How it ended.
    enum Ending: Sendable, Equatable {
        case exited(Int32)
        case signaled(Int32)
        /// Killed after so many seconds.
        case tooSlow(seconds: Int)

        var isSuccess: Bool { self == .exited(0) }
    }

    enum Input: Sendable {
        case nothing
        /// Of this process, which keeps it.
        case descriptor(Int32)
        /// What is written with ``write(_:)``.
        case pipe
    }

    enum Output: Sendable {
        case nothing
        case descriptor(Int32)
        /// What is read with ``read(_:)``.
        case pipe
    }

    /// What is left of it: how it ended, and its last words.
    struct Remains: Sendable {
        var ending: Ending
        var words: ErrorTail
    }

    private struct State {
        var process: pid_t?
        var remains: Remains?
        var waiters: [CheckedContinuation<Remains, Never>] = []
        /// Calls that wait for the child now.
        var waits = 0
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
                // Their ends, or this process would never see the end of a stream.
                for descriptor in [inputPipe.reading, outputPipe.writing, words.writing] {
                    descriptor.close()
                }
                started.resume(returning: code)
                if code == 0 { child.keep(words.reading, limits) }
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

    /// Its number, while it is not waited for: afterwards it can be another's.
    var process: pid_t? { state.withLock { $0.process } }

    /// Sends it and its group a signal, by default that which ends them now.
    func kill(by signal: Int32 = SIGKILL) {
        state.withLock { state in
            if let process = state.process { _ = Glibc.kill(-process, signal) }
        }
    }

    // MARK: Streams

    /// Writes all of `bytes` to its standard input. Whether it took them.
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

    /// The next `count` bytes of its standard output, fewer at the end.
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

    /// Waits for its end.
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

    /// Runs a call that may wait for the child on a thread of its own.
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
            // Without a thread the caller's has to do.
            if !onThread(body) { body() }
        }
    }

    /// Whether it is its turn: a child that waits for input, or for somebody to take its output, may do so for ever.
    private var isWaitedFor: Bool {
        let hasAllInput = input.number < 0
        return state.withLock { $0.waits > 0 || (hasAllInput && !$0.waiters.isEmpty) }
    }

    // MARK: The thread that keeps it

    /// - Returns: an `errno`.
    private func spawn(_ program: String, _ arguments: [String], _ standard: [Int32]) -> Int32 {
        var strings = ([program] + arguments).map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var process = pid_t()
        let code = child_start(program, &strings, standard, &process)
        if code == 0 { state.withLock { $0.process = process } }
        return code
    }

    /// Reads its words and watches its limits until it ends.
    private func keep(_ words: Descriptor, _ limits: Limits) {
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
        // What it left running goes too, and with it the last that could hold the streams open.
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

    /// Whether it has ended; it is not waited for, so that its number stays its own.
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

    /// A child that dies while it is written to must be an error here, not the end of this process. A handler that the
    /// program installed itself is left alone.
    private static let ignoreBrokenPipes: Void = {
        var current = sigaction()
        sigaction(SIGPIPE, nil, &current)
        if unsafeBitCast(current.__sigaction_handler.sa_handler, to: Int.self) == 0 {
            signal(SIGPIPE, SIG_IGN)
        }
    }()
}

/// Says when a child has exceeded its limits.
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

    /// The seconds that it had, or nil where it still has some.
    mutating func exceeded(isWaitedFor: Bool, moved: Int) -> Int? {
        let now = ContinuousClock.now
        if now - start > .seconds(limits.total) { return limits.total }
        // A slow child is not a hanging one: it uses the processor.
        let ticks = processorTime
        if !isWaitedFor || moved != self.moved || ticks != self.ticks { progress = now }
        (self.moved, self.ticks) = (moved, ticks)
        return now - progress > .seconds(limits.idle) ? limits.idle : nil
    }

    /// The ticks in user and system mode, as proc(5) has them.
    private var processorTime: String {
        let text = (try? FilePath("/proc/\(process)/stat").contents()) ?? []
        // The program's name may contain anything; what follows its parenthesis does not.
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

    /// Nil where `number` is that of a failed call.
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

/// Runs `body` on a thread of its own. Whether there was one to be had.
func onThread(_ body: @escaping @Sendable () -> Void) -> Bool {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    let box = Unmanaged.passRetained(Box(body))
    var thread = pthread_t()
    let code = pthread_create(
        &thread, nil,
        { box in
            Unmanaged<Box>.fromOpaque(box!).takeRetainedValue().body()
            return nil
        }, box.toOpaque())
    if code == 0 { pthread_detach(thread) } else { box.release() }
    return code == 0
}
