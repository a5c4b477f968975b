/// The parts of a file on their way: several connections, each with a part of its own at a time.

import Glibc
import Ground
import Synchronization

/// One attempt at a file that has one identity.
final class Transfer: Sendable {
    enum Result: Sendable {
        /// All bytes are there; the SHA-256 of all where one was promised.
        case complete(String?)
        case changed(HubIdentity)
        /// The server answers with the whole file where a part was asked for.
        case noParts
        case failed(DownloadError)
    }

    private struct State {
        var done: ByteRanges
        /// Parts that connections are fetching.
        var claimed: [Range<Int>] = []
        var patience: Patience
        var retries = 0
        var received = 0
        var sinceSync = 0
        var notBefore = ContinuousClock.now
        /// Where the hub leads, as long as that works.
        var location: String?
        /// What the places that give the bytes say of their version, as far as the hub has agreed, to notice another.
        var versions: Set<String> = []
        /// Whether parts are asked for under the condition that the version is the same.
        var conditions = true
        /// Whether parts have come, now or before: who gives them once can give them again.
        var givesParts: Bool
        var wholeAnswers = 0
        var isAsking = false
        var result: Result?
    }

    private let file: HubFile
    private let identity: HubIdentity
    private let hub: Hub
    private let options: DownloadOptions
    private let part: PartFile
    private let inParts: Bool
    private let isStopped: @Sendable () -> Bool
    private let partSize: Int
    /// Bytes after which a connection notes what it has: what is lost at most where the process is killed.
    private let noteSize: Int
    private let state: Mutex<State>

    init(
        _ file: HubFile, _ identity: HubIdentity, _ hub: Hub, _ options: DownloadOptions,
        _ part: PartFile, _ known: ByteRanges, inParts: Bool,
        isStopped: @escaping @Sendable () -> Bool
    ) {
        self.file = file
        self.identity = identity
        self.hub = hub
        self.options = options
        self.part = part
        self.inParts = inParts
        self.isStopped = isStopped
        // Small files should use all connections, large ones few requests.
        partSize = inParts ? min(max(identity.size / 16, 1 << 20), 64 << 20) : Int.max / 2
        noteSize = min(partSize >> 4, 1 << 20)
        state = Mutex(
            State(
                done: inParts ? known : ByteRanges(), patience: Patience(tries: options.tries),
                givesParts: !known.ranges.isEmpty))
    }

    /// Fetches what is missing. Blocks the calling thread.
    func run(progress: (DownloadProgress) -> Void) -> (
        result: Result, received: Int, retries: Int
    ) {
        var threads: [Worker] = []
        for index in 0..<(inParts ? max(1, options.connections) : 1) {
            guard let thread = Worker({ self.work() }) else {
                if index == 0 {
                    fail(DownloadError(.library, "the system starts no more threads"))
                }
                break
            }
            threads.append(thread)
        }
        let hash = Mutex<String?>(nil)
        let isHashed = identity.sha256 != nil
        let hashing = isHashed ? Worker { hash.withLock { $0 = self.hash() } } : nil
        if let hashing { threads.append(hashing) }
        while threads.contains(where: { !$0.isDone }) {
            if isStopped() { fail(HubClient.stopped) }
            progress(now)
            usleep(20_000)
        }
        for thread in threads { thread.join() }
        if isHashed, hashing == nil { hash.withLock { $0 = self.hash() } }
        // The hash may have been left off.
        if isStopped() { fail(HubClient.stopped) }
        progress(now)
        part.sync()
        return state.withLock { state in
            let result = state.result ?? .complete(hash.withLock { $0 })
            return (result, state.received, state.retries)
        }
    }

    private var now: DownloadProgress {
        state.withLock { state in
            let count = state.done.count
            return DownloadProgress(
                bytes: count, size: identity.size, received: state.received,
                isChecking: count == identity.size)
        }
    }

    private func fail(_ error: DownloadError) { end(.failed(error)) }

    private func end(_ result: Result) {
        state.withLock { if $0.result == nil { $0.result = result } }
    }

    private var isOver: Bool { state.withLock { $0.result != nil } || isStopped() }

    // MARK: The hash

    /// Follows the bytes that are there from the beginning on. nil where the transfer ends before.
    private func hash() -> String? {
        var hash = SHA256()
        var position = 0
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16)
        defer { buffer.deallocate() }
        while position < identity.size {
            if isOver { return nil }
            let end = state.withLock { $0.done.prefix }
            guard end > position else {
                usleep(20_000)
                continue
            }
            let wanted = UnsafeMutableRawBufferPointer(
                rebasing: buffer[..<min(buffer.count, end - position)])
            do {
                let count = try part.read(wanted, at: position)
                guard count > 0 else { return nil }
                hash.update(UnsafeRawBufferPointer(rebasing: wanted[..<count]))
                position += count
            } catch {
                fail(error)
                return nil
            }
        }
        return hash.finish()
    }

    // MARK: A connection

    private func work() {
        let connection: Connection
        do { connection = try Connection() } catch { return fail(error) }
        while !isOver {
            let (piece, isComplete) = claim()
            if isComplete { return }
            guard let piece else {
                usleep(10_000)
                continue
            }
            fetch(piece, connection)
            state.withLock { state in state.claimed.removeAll { $0 == piece } }
        }
    }

    /// The next part that nobody fetches; nil where there is none at the moment.
    private func claim() -> (Range<Int>?, isComplete: Bool) {
        state.withLock { state in
            if state.done.count >= identity.size { return (nil, true) }
            guard ContinuousClock.now >= state.notBefore else { return (nil, false) }
            var taken = state.done
            for piece in state.claimed { taken.insert(piece) }
            guard let piece = taken.firstGap(in: identity.size, limit: partSize) else {
                return (nil, false)
            }
            state.claimed.append(piece)
            return (piece, false)
        }
    }

    /// What went wrong with a request.
    private struct Problem {
        var reason: String
        /// Of an answer whose status says it.
        var head: Head?
        /// The file may have changed: the hub is to be asked.
        var isDoubtful = false
        var isPermanent = false
        /// One that is not known.
        var version: String?
        /// The answer was the whole file, though a part was asked for.
        var isWhole = false
    }

    /// What a request has brought so far; used by one thread.
    private final class Delivery {
        var position: Int
        var noted: Int
        var isAccepted = false
        var problem: Problem?
        var error: DownloadError?
        var discarded = 0

        init(_ position: Int) {
            self.position = position
            noted = position
        }
    }

    private func fetch(_ piece: Range<Int>, _ connection: Connection) {
        let delivery = Delivery(piece.lowerBound)
        var address = state.withLock { $0.location } ?? hub.address(file)
        var answer = Answer(head: Head())
        var leads = 0
        repeat {
            var request = Request(url: address, headers: hub.headers(for: address))
            request.stallSeconds = options.stallSeconds
            let isConditional = condition(&request, piece, address)
            answer = connection.carryOut(request, goesOn: { !self.isOver }) { head, bytes in
                self.take(bytes, head, of: piece, delivery, isConditional)
            }
            guard (300..<400).contains(answer.head.status), answer.failure == nil else { break }
            do { address = try hub.next(after: address, answer, file) } catch { return fail(error) }
            leads += 1
        } while leads < 10
        finish(delivery, piece)
        if let error = delivery.error { return fail(error) }
        if isOver { return }
        if delivery.position >= piece.upperBound {
            state.withLock { state in
                state.patience.succeed()
                // Signed addresses serve every part; the hub need not be asked again.
                if leads > 0, !hub.isOwn(address) { state.location = address }
            }
            return
        }
        resolve(problem(answer, delivery, address), address, connection)
    }

    /// Adds the lines that ask for a part.
    /// - Returns: whether the part is asked for under the condition that the file has not changed.
    private func condition(_ request: inout Request, _ piece: Range<Int>, _ address: String) -> Bool
    {
        guard inParts else { return false }
        request.headers.append("Range: bytes=\(piece.lowerBound)-\(piece.upperBound - 1)")
        let version = state.withLock { state -> String? in
            guard state.conditions else { return nil }
            if hub.isOwn(address), identity.sha256 == nil { return identity.etag }
            return state.versions.count == 1 ? state.versions.first : nil
        }
        // Weak ones do not promise equal bytes.
        guard let version, version.hasPrefix("\""),
            version.utf8.allSatisfy({ $0 >= 32 && $0 < 127 })
        else { return false }
        request.headers.append("If-Range: \(version)")
        return true
    }

    /// Looks at the head once, then writes bytes to their place.
    /// - Returns: whether more are wanted.
    private func take(
        _ bytes: UnsafeRawBufferPointer, _ head: Head, of piece: Range<Int>,
        _ delivery: Delivery, _ isConditional: Bool
    ) -> Bool {
        state.withLock { $0.received += bytes.count }
        if !delivery.isAccepted {
            guard (200..<300).contains(head.status) else {
                // Short bodies of errors are read, so that the connection stays usable.
                delivery.discarded += bytes.count
                return delivery.discarded < 1 << 16
            }
            if let problem = check(head, piece, isConditional) {
                delivery.problem = problem
                return false
            }
            delivery.isAccepted = true
        }
        let count = min(bytes.count, piece.upperBound - delivery.position)
        do {
            try part.write(
                UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: delivery.position)
        } catch {
            delivery.error = error
            return false
        }
        delivery.position += count
        if delivery.position - delivery.noted >= noteSize { finish(delivery, piece) }
        // More than was asked for is not read.
        return count == bytes.count
    }

    /// Whether an answer is the part that was asked for.
    private func check(_ head: Head, _ piece: Range<Int>, _ isConditional: Bool) -> Problem? {
        guard inParts else {
            if head.status == 200, head.byteCount ?? identity.size == identity.size { return nil }
            return Problem(
                reason: "\(identity.size) bytes were promised, \(head.byteCount ?? 0) come",
                isDoubtful: true)
        }
        if head.status == 200 {
            // A whole file is a part too.
            if piece == 0..<identity.size, head.byteCount == identity.size, !isConditional {
                return nil
            }
            return Problem(
                reason: "the whole file came where a part was asked for", isDoubtful: true,
                isWhole: true)
        }
        guard head.status == 206 else {
            return Problem(reason: "it answers \(head.status) where a part was asked for")
        }
        guard let range = head.range else {
            return Problem(reason: "it does not tell which part it sends")
        }
        guard range.bytes.lowerBound == piece.lowerBound else {
            return Problem(
                reason:
                    "bytes from \(piece.lowerBound) were asked for, from \(range.bytes.lowerBound) came"
            )
        }
        if let size = range.size, size != identity.size {
            return Problem(
                reason: "\(identity.size) bytes were promised, the file has \(size)",
                isDoubtful: true)
        }
        state.withLock { $0.givesParts = true }
        guard let etag = head["etag"] else { return nil }
        let isKnown = state.withLock { state in
            if state.versions.isEmpty { state.versions = [etag] }
            return state.versions.contains(etag)
        }
        return isKnown
            ? nil
            : Problem(reason: "the file has another version", isDoubtful: true, version: etag)
    }

    /// Notes what has come.
    private func finish(_ delivery: Delivery, _ piece: Range<Int>) {
        guard delivery.position > delivery.noted else { return }
        let range = delivery.noted..<delivery.position
        // Where nothing can be resumed, nothing is noted.
        if inParts { part.note(range) }
        delivery.noted = delivery.position
        let isSyncDue = state.withLock { state in
            state.done.insert(range)
            // A server that always breaks off after a few bytes would be asked for ever.
            if inParts, range.count >= 1 << 14 { state.patience.succeed() }
            state.sinceSync += range.count
            guard state.sinceSync >= 256 << 20 else { return false }
            state.sinceSync = 0
            return true
        }
        if isSyncDue { part.sync() }
    }

    // MARK: What to do next

    private func problem(_ answer: Answer, _ delivery: Delivery, _ address: String) -> Problem {
        if let problem = delivery.problem { return problem }
        if let failure = answer.failure {
            return Problem(reason: failure, isPermanent: !answer.isWorthRetrying)
        }
        let head = answer.head
        switch head.status {
        case 416:
            let size = head.sizeWithoutRange
            let reason =
                size.map {
                    $0 == identity.size
                        ? nil : "\(identity.size) bytes were promised, the file has \($0)"
                } ?? nil
            return Problem(reason: reason ?? "it answers 416: no such bytes", isDoubtful: true)
        case 200..<300: return Problem(reason: "the answer ends too early")
        case 300..<400: return Problem(reason: "it leads in circles", isPermanent: true)
        default: return Problem(reason: "it answers \(head.status)", head: head)
        }
    }

    private func resolve(_ problem: Problem, _ address: String, _ connection: Connection) {
        if problem.isPermanent { return fail(Self.error(problem, file, hub)) }
        if hub.isOwn(address), let head = problem.head, let error = hub.refusal(head, file) {
            return fail(error)
        }
        state.withLock { state in
            state.retries += 1
            // Signed addresses expire.
            state.location = nil
            if !inParts { state.done = ByteRanges() }
            if let seconds = state.patience.fail(asked: problem.head?.retryAfter) {
                state.notBefore = max(state.notBefore, .now + .seconds(seconds))
            } else if state.result == nil {
                state.result = .failed(Self.error(problem, file, hub))
            }
        }
        if problem.isDoubtful { ask(problem) }
    }

    private static func error(_ problem: Problem, _ file: HubFile, _ hub: Hub) -> DownloadError {
        DownloadError(
            .unreachable,
            "\(file) cannot be fetched from \(hub.endpoint): \(problem.reason); what came is kept, "
                + "and the same command goes on with it")
    }

    /// Asks the hub whether the file is still the same.
    private func ask(_ problem: Problem) {
        let isFirst = state.withLock { state in
            defer { state.isAsking = true }
            return !state.isAsking
        }
        guard isFirst else { return }
        defer { state.withLock { $0.isAsking = false } }
        do {
            let client = try HubClient(hub, options, isStopped: { self.isOver })
            let other = try client.identify(file)
            if other != identity { return end(.changed(other)) }
            let givesNone = state.withLock { state in
                // One of several servers may tell it otherwise, or heed no conditions. A hash tells in the end, and only
                // where there is one is that let pass.
                if identity.sha256 != nil {
                    if let version = problem.version { state.versions.insert(version) }
                    if problem.isWhole { state.conditions = false }
                }
                if problem.isWhole { state.wholeAnswers += 1 }
                return !state.givesParts && state.wholeAnswers >= 3
            }
            if givesNone { end(.noParts) }
        } catch {
            if !isOver { fail(error) }
        }
    }
}

/// A thread that can be asked whether it is done.
private struct Worker {
    private let thread: HostThread
    private let state: State

    private final class State: Sendable {
        let isDone = Mutex(false)
    }

    /// nil where the system starts no more.
    init?(_ body: @escaping @Sendable () -> Void) {
        let state = State()
        let thread = HostThread(blocksSignals: true) {
            body()
            state.isDone.withLock { $0 = true }
        }
        guard let thread else { return nil }
        (self.thread, self.state) = (thread, state)
    }

    var isDone: Bool { state.isDone.withLock { $0 } }

    func join() { thread.join() }
}
