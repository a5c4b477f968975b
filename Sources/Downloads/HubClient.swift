/// Short questions to a hub, asked again where the network fails.

import Glibc

/// How long to wait before another try, and when to give up.
struct Patience {
    var tries: Int
    private(set) var failures = 0

    init(tries: Int) { self.tries = tries }

    /// Something came: what failed before does not count.
    mutating func succeed() { failures = 0 }

    /// - Parameter asked: seconds that the server asks for.
    /// - Returns: seconds to wait; nil: enough.
    mutating func fail(asked: Double? = nil, random: Double = .random(in: 0.5...1)) -> Double? {
        failures += 1
        guard failures < tries else { return nil }
        let own = min(30, 0.25 * Double(1 << min(failures, 7))) * random
        return max(own, min(asked ?? 0, 600))
    }
}

/// Asks a hub, from one thread.
struct HubClient {
    let hub: Hub
    let options: DownloadOptions
    let isStopped: @Sendable () -> Bool
    private let connection: Connection

    init(_ hub: Hub, _ options: DownloadOptions, isStopped: @escaping @Sendable () -> Bool)
        throws(DownloadError)
    {
        self.hub = hub
        self.options = options
        self.isStopped = isStopped
        connection = try Connection()
    }

    static let stopped = DownloadError(
        .stopped, "stopped; what was fetched is kept, and the same command goes on with it")

    /// What the hub says of a file.
    func identify(_ file: HubFile) throws(DownloadError) -> HubIdentity {
        var patience = Patience(tries: options.tries)
        while true {
            let (head, failure) = try ask(file)
            if failure == nil, (200..<400).contains(head.status) {
                return try Self.identity(head, file)
            }
            if failure == nil, let error = hub.refusal(head, file) { throw error }
            let reason = failure ?? "it answers \(head.status)"
            guard let seconds = patience.fail(asked: head.retryAfter) else {
                throw DownloadError(
                    .unreachable, "\(hub.endpoint) cannot be asked for \(file): \(reason)")
            }
            try wait(seconds)
        }
    }

    static func identity(_ head: Head, _ file: HubFile) throws(DownloadError) -> HubIdentity {
        // The hub tells size and hash of a large file itself; the address that it leads to has others.
        let size = head["x-linked-size"].flatMap { Int($0) } ?? head.byteCount
        guard let size, size >= 0 else {
            throw DownloadError(.server, "the server does not tell the size of \(file)")
        }
        let etag = head["x-linked-etag"] ?? head["etag"]
        var hash = etag ?? ""
        if hash.hasPrefix("W/") { hash.removeFirst(2) }
        hash = hash.filter { $0 != "\"" }.lowercased()
        let isHash = hash.utf8.count == 64 && hash.allSatisfy(\.isHexDigit)
        return HubIdentity(size: size, sha256: isHash ? hash : nil, etag: etag)
    }

    /// The answer of the hub, or of where it leads as long as it does not tell the file's size itself.
    private func ask(_ file: HubFile) throws(DownloadError) -> (Head, failure: String?) {
        var address = hub.address(file)
        for _ in 0..<10 {
            var request = Request(url: address, headers: hub.headers(for: address))
            request.isHead = true
            request.stallSeconds = options.stallSeconds
            let answer = connection.carryOut(request, goesOn: { !isStopped() })
            if isStopped() { throw Self.stopped }
            if let failure = answer.failure {
                guard answer.isWorthRetrying else {
                    throw DownloadError(.unreachable, "\(hub.endpoint): \(failure)")
                }
                return (answer.head, failure)
            }
            guard (300..<400).contains(answer.head.status), answer.head["x-linked-size"] == nil
            else { return (answer.head, nil) }
            address = try hub.next(after: address, answer, file)
        }
        throw DownloadError(.server, "\(hub.endpoint) leads in circles for \(file)")
    }

    private func wait(_ seconds: Double) throws(DownloadError) {
        let end = ContinuousClock.now + .seconds(seconds)
        while ContinuousClock.now < end {
            if isStopped() { throw Self.stopped }
            usleep(50_000)
        }
    }

    /// The bytes of a small file, such as an index.
    func contents(_ file: HubFile, limit: Int = 64 << 20) throws(DownloadError) -> [UInt8] {
        var patience = Patience(tries: options.tries)
        while true {
            let collected = Collected()
            var address = hub.address(file)
            var answer = Answer(head: Head())
            for _ in 0..<10 {
                var request = Request(url: address, headers: hub.headers(for: address))
                request.stallSeconds = options.stallSeconds
                collected.bytes = []
                answer = connection.carryOut(
                    request, goesOn: { !isStopped() },
                    body: { head, bytes in
                        if head.status == 200 { collected.bytes += bytes }
                        return collected.bytes.count <= limit
                    })
                guard (300..<400).contains(answer.head.status) else { break }
                address = try hub.next(after: address, answer, file)
            }
            if isStopped() { throw Self.stopped }
            if collected.bytes.count > limit {
                throw DownloadError(.server, "\(file) is larger than \(limit) bytes")
            }
            let isWhole = answer.head.byteCount.map { $0 == collected.bytes.count } ?? true
            if answer.failure == nil, answer.head.status == 200, isWhole { return collected.bytes }
            if answer.failure == nil, hub.isOwn(address),
                let error = hub.refusal(answer.head, file)
            {
                throw error
            }
            let reason = answer.failure ?? "it answers \(answer.head.status)"
            guard answer.isWorthRetrying,
                let seconds = patience.fail(asked: answer.head.retryAfter)
            else {
                throw DownloadError(
                    .unreachable, "\(hub.endpoint) cannot be asked for \(file): \(reason)")
            }
            try wait(seconds)
        }
    }

    private final class Collected { var bytes: [UInt8] = [] }
}

extension Hub {
    /// The bytes of a small file, such as the index of one in pieces. Blocks the calling thread.
    public func contents(
        of file: HubFile, _ options: DownloadOptions = DownloadOptions(),
        isStopped: @escaping @Sendable () -> Bool = { false }
    ) throws(DownloadError) -> [UInt8] {
        try HubClient(self, options, isStopped: isStopped).contents(file)
    }

    /// What the hub says of a file. Blocks the calling thread.
    public func identify(
        _ file: HubFile, _ options: DownloadOptions = DownloadOptions(),
        isStopped: @escaping @Sendable () -> Bool = { false }
    ) throws(DownloadError) -> HubIdentity {
        try HubClient(self, options, isStopped: isStopped).identify(file)
    }
}
