/// Who may ask: keys, hosts, origins.

import Ground
import HTTPTypes
import Hummingbird

/// Lets requests through, or throws why not.
struct Guard: Sendable {
    let keys: APIKeys?
    /// In lower case, without ports.
    let hosts: Set<String>
    let origins: Set<String>

    private static let loopback: Set<String> = ["localhost", "127.0.0.1", "[::1]", "::1"]
    /// What is no secret, and what a supervisor must see.
    private static let open: Set<String> = ["/health", "/ready", "/openapi.json", "/", "/page"]

    init(_ options: ServiceOptions) {
        keys = options.keys
        hosts = Self.loopback.union(options.allowedHosts)
        origins = options.allowedOrigins
    }

    /// - Throws: `APIError`.
    func check(_ request: Request) throws(APIError) {
        let authority = request.head.authority ?? ""
        let origin = request.headers[.origin]
        if let keys {
            let path = request.uri.path
            if Self.open.contains(path) || path.hasPrefix("/page/") { return }
            // A page asks whether it may ask before it sends a key.
            if request.method == .options { return }
            guard let key = Self.bearer(request.headers[.authorization]), keys.accept(key) else {
                throw .unauthorized
            }
            return
        }
        // Without a key only programs and pages of this machine: a page from elsewhere has another origin, or, where its
        // name was made to lead here, another host.
        guard hosts.contains(Self.name(authority)) else {
            throw .forbidden(
                "foreign_host",
                "this service is not known as '\(authority.prefix(80))'; --allowed-host lets a name in"
            )
        }
        guard let origin, !isOwn(origin, authority) else { return }
        throw .forbidden(
            "foreign_origin",
            "pages of \(origin.prefix(80)) may not use this service; --allowed-origin lets them in")
    }

    /// Whether a page of this origin may read answers.
    func allows(_ origin: String) -> Bool { origins.contains(origin) }

    private func isOwn(_ origin: String, _ authority: String) -> Bool {
        origin == "http://\(authority)" || origin == "https://\(authority)"
            || origins.contains(origin)
    }

    /// `example.org:8000`, `[::1]:8000` without the port.
    static func name(_ authority: String) -> String {
        let text = authority.lowercased()
        if text.hasPrefix("[") {
            return text.firstIndex(of: "]").map { String(text[...$0]) } ?? text
        }
        return String(text.prefix { $0 != ":" })
    }

    private static func bearer(_ header: String?) -> String? {
        guard let header, header.lowercased().hasPrefix("bearer ") else { return nil }
        return header.dropFirst("bearer ".count).trimmed
    }
}
