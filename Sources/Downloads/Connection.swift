/// Requests over HTTP by libcurl.

import CCurl
import Glibc
import Ground

/// libcurl, opened once for the process.
struct Curl: @unchecked Sendable {
    fileprivate let library: OpaquePointer

    private static let names = ["libcurl.so.4", "libcurl-gnutls.so.4"]
    private static let oldest: UInt32 = 0x07_3E_00

    private static let opened: Result<Curl, DownloadError> = {
        let handle = names.lazy.compactMap { dlopen($0, RTLD_NOW | RTLD_LOCAL) }.first
        guard let handle else {
            return .failure(
                DownloadError(
                    .library,
                    "downloads need libcurl, which is not installed: apt-get install libcurl4 (RHEL: dnf install libcurl)"
                ))
        }
        guard let library = curl_library_open(handle) else {
            return .failure(
                DownloadError(.library, "downloads need libcurl 7.62 or later; this one is older"))
        }
        let curl = Curl(library: library)
        guard curl_library_version(library) >= oldest else {
            return .failure(
                DownloadError(
                    .library, "downloads need libcurl 7.62 or later, found \(curl.version)"))
        }
        return .success(curl)
    }()

    static func open() throws(DownloadError) -> Curl { try opened.get() }

    var version: String {
        let version = curl_library_version(library)
        return [16, 8, 0].map { "\(version >> $0 & 0xFF)" }.joined(separator: ".")
    }

    func reason(_ code: Int32) -> String { String(cString: curl_library_reason(library, code)) }
}

/// The library that downloads use, for people.
/// - Throws: `.library` where there is none; the line says what to install.
public func downloadLibrary() throws(DownloadError) -> String {
    "libcurl \(try Curl.open().version)"
}

/// What comes before a body.
struct Head: Sendable, Equatable {
    var status = 0
    /// By lower-case names; of several lines with one name the last.
    var fields: [String: String] = [:]

    /// Takes a line of the header.
    mutating func take(_ line: String) {
        if line.hasPrefix("HTTP/") {
            // Another answer: what came before was of a proxy, or "100 Continue".
            self = Head()
            let words = line.split(separator: " ", maxSplits: 2)
            status = words.count > 1 ? Int(words[1]) ?? 0 : 0
            return
        }
        guard let colon = line.firstIndex(of: ":"), fields.count < 256 else { return }
        let name = line[..<colon].lowercased()
        fields[name] = line[line.index(after: colon)...].trimmed
    }

    subscript(_ name: String) -> String? { fields[name] }

    /// `Content-Length`; nil where there is none.
    var byteCount: Int? { fields["content-length"].flatMap { Int($0) } }

    /// `Content-Range: bytes 5-9/100`: the first byte, the end, and the size of the whole if it is told.
    var range: (bytes: Range<Int>, size: Int?)? {
        guard let text = fields["content-range"], text.hasPrefix("bytes ") else { return nil }
        let parts = text.dropFirst(6).split(separator: "/")
        guard parts.count == 2 else { return nil }
        let ends = parts[0].split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
        guard ends.count == 2, let first = ends[0], let last = ends[1], first <= last,
            last < Int.max
        else { return nil }
        return (first..<last + 1, Int(parts[1]))
    }

    /// `Content-Range: bytes */100` of an answer 416: the size of the whole.
    var sizeWithoutRange: Int? {
        guard let text = fields["content-range"], text.hasPrefix("bytes */") else { return nil }
        return Int(text.dropFirst(8))
    }

    /// Seconds that `Retry-After` asks for; nil where it asks for none. Dates are taken as a minute.
    var retryAfter: Double? {
        guard let text = fields["retry-after"] else { return nil }
        guard let seconds = Double(text) else { return text.isEmpty ? nil : 60 }
        return seconds.isFinite ? max(0, seconds) : nil
    }
}

struct Request {
    var url: String
    var headers: [String] = []
    var isHead = false
    var stallSeconds = 20
}

/// How a request ended.
struct Answer {
    var head: Head
    /// Where a redirection leads, as an absolute address.
    var location: String?
    /// nil where the whole answer came.
    var failure: String?
    /// Whether trying again could help.
    var isWorthRetrying = true
}

/// A connection that is kept between requests. For one thread at a time.
final class Connection {
    private let curl: Curl
    private let handle: UnsafeMutableRawPointer
    private static let agent = "turbodiffusion"

    init() throws(DownloadError) {
        curl = try Curl.open()
        guard let handle = curl_connection_open(curl.library) else {
            throw DownloadError(.library, "libcurl cannot make a connection: no memory")
        }
        self.handle = handle
    }

    deinit { curl_connection_close(curl.library, handle) }

    private final class Exchange {
        var head = Head()
        let body: (Head, UnsafeRawBufferPointer) -> Bool
        let goesOn: () -> Bool

        init(
            _ body: @escaping (Head, UnsafeRawBufferPointer) -> Bool,
            _ goesOn: @escaping () -> Bool
        ) {
            self.body = body
            self.goesOn = goesOn
        }

        static func of(_ context: UnsafeMutableRawPointer) -> Exchange {
            Unmanaged<Exchange>.fromOpaque(context).takeUnretainedValue()
        }
    }

    /// Carries out a request without following redirections, and waits.
    /// - Parameters:
    ///   - goesOn: asked at least once a second.
    ///   - body: given the bytes as they come; says whether more are wanted.
    func carryOut(
        _ request: Request, goesOn: @escaping () -> Bool = { true },
        body: @escaping (Head, UnsafeRawBufferPointer) -> Bool = { _, _ in true }
    ) -> Answer {
        let exchange = Exchange(body, goesOn)
        var answer = curl_answer()
        var lines = request.headers.map { strdup($0) } + [nil]
        defer { for line in lines { free(line) } }
        lines.withUnsafeMutableBufferPointer { lines in
            request.url.withCString { url in
                Self.agent.withCString { agent in
                    let list = UnsafeRawPointer(lines.baseAddress!)
                        .assumingMemoryBound(to: UnsafePointer<CChar>?.self)
                    var call = curl_request(
                        url: url, headers: list, agent: agent, is_head: request.isHead,
                        connect_seconds: Int64(max(5, request.stallSeconds)),
                        stall_seconds: Int64(request.stallSeconds),
                        context: Unmanaged.passUnretained(exchange).toOpaque(),
                        header: { context, line, count in
                            let bytes = UnsafeRawBufferPointer(start: line, count: count)
                            Exchange.of(context).head.take(
                                String(decoding: bytes, as: UTF8.self))
                        },
                        body: { context, bytes, count in
                            let exchange = Exchange.of(context)
                            return exchange.body(
                                exchange.head, UnsafeRawBufferPointer(start: bytes, count: count))
                        },
                        tick: { context in Exchange.of(context).goesOn() })
                    curl_carry_out(curl.library, handle, &call, &answer)
                }
            }
        }
        withExtendedLifetime(exchange) {}
        var result = Answer(head: exchange.head)
        if let location = answer.location {
            result.location = String(cString: location)
            free(location)
        }
        if answer.code != 0 {
            let message = withUnsafeBytes(of: &answer.message) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            result.failure = message.isEmpty ? curl.reason(answer.code) : message
            // A bad address, a certificate that is not trusted.
            result.isWorthRetrying = ![3, 60, 77, 83, 91].contains(answer.code)
        }
        return result
    }
}
