/// The layout in which Hugging Face's hub and its mirrors publish files.

import Glibc
import Ground

/// A file of a repository at a revision.
public struct HubFile: Sendable, Hashable, CustomStringConvertible {
    /// `owner/name`
    public let repository: String
    /// A branch, a tag or a commit.
    public let revision: String
    /// Inside the repository, with slashes.
    public let path: String

    /// - Throws: `.name` for names that no repository or file has, such as ones that lead out of a folder.
    public init(_ repository: String, revision: String = "main", _ path: String)
        throws(DownloadError)
    {
        let parts = repository.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, parts.allSatisfy(Self.isName) else {
            throw DownloadError(
                .name, "'\(repository)' is no repository: expected OWNER/NAME")
        }
        let steps = path.split(separator: "/", omittingEmptySubsequences: false)
        guard !steps.isEmpty, steps.allSatisfy(Self.isFileName) else {
            throw DownloadError(.name, "'\(path)' is no file of \(repository)")
        }
        guard
            revision.split(separator: "/", omittingEmptySubsequences: false)
                .allSatisfy(Self.isName)
        else { throw DownloadError(.name, "'\(revision)' is no revision of \(repository)") }
        self.repository = repository
        self.revision = revision
        self.path = path
    }

    public var description: String {
        "\(repository)\(revision == "main" ? "" : "@\(revision)"):\(path)"
    }

    private static func isName(_ text: Substring) -> Bool {
        !text.isEmpty && text.utf8.count <= 96 && text != "." && text != ".."
            && text.utf8.allSatisfy { byte in
                let character = Character(Unicode.Scalar(byte))
                return character.isASCII && (character.isLetter || character.isNumber)
                    || "._-".contains(character)
            }
    }

    private static func isFileName(_ text: Substring) -> Bool {
        // A first dot would hide it, and hides what this program notes of files.
        !text.isEmpty && text.utf8.count <= 200 && text.first != "."
            && text.unicodeScalars.allSatisfy { $0.value >= 32 && $0.value != 127 && $0 != "\\" }
            && !text.hasSuffix(".part") && !text.hasSuffix(".journal")
    }
}

/// What the hub says of a file.
public struct HubIdentity: Sendable, Hashable {
    /// In bytes.
    public var size: Int
    /// Of large files, 64 lower-case digits.
    public var sha256: String?
    /// Changes with the file, as the hub writes it.
    public var etag: String?
}

/// A hub: where it is and who asks.
public struct Hub: Sendable {
    /// Without a slash at the end.
    public let endpoint: String
    let token: String?

    public static let usualEndpoint = "https://huggingface.co"

    /// - Parameters:
    ///   - endpoint: `HF_ENDPOINT`; nil: the usual one.
    ///   - token: `HF_TOKEN`; sent to the endpoint alone.
    /// - Throws: `.name` for what is no address or no token.
    public init(endpoint: String? = nil, token: String? = nil) throws(DownloadError) {
        var address = endpoint ?? Self.usualEndpoint
        while address.hasSuffix("/") { address.removeLast() }
        guard Origin(address) != nil, !address.contains(where: { "?#@".contains($0) }) else {
            throw DownloadError(
                .name,
                "HF_ENDPOINT is '\(address)': expected an address such as \(Self.usualEndpoint)")
        }
        if let token {
            guard !token.isEmpty, token.utf8.allSatisfy({ $0 > 32 && $0 < 127 }) else {
                throw DownloadError(
                    .name, "HF_TOKEN is no token: expected letters and digits without spaces")
            }
        }
        self.endpoint = address
        self.token = token
    }

    /// Where a file is asked for.
    func address(_ file: HubFile) -> String {
        func escaped(_ text: String) -> String {
            text.utf8.map { byte in
                let character = Character(Unicode.Scalar(byte))
                let isPlain =
                    character.isASCII && (character.isLetter || character.isNumber)
                    || "-._~/".contains(character)
                let digits = String(byte, radix: 16, uppercase: true)
                return isPlain
                    ? String(character) : "%" + (digits.count < 2 ? "0" : "") + digits
            }.joined()
        }
        // A branch may have a slash in its name, which is no slash of the address.
        let revision = file.revision.split(separator: "/").joined(separator: "%2F")
        return "\(endpoint)/\(file.repository)/resolve/\(revision)/\(escaped(file.path))"
    }

    /// Whether an address is the hub's own, so that it may have the token.
    func isOwn(_ address: String) -> Bool {
        Origin(address) != nil && Origin(address) == Origin(endpoint)
    }

    /// Lines for every request to an address.
    func headers(for address: String) -> [String] {
        // Compressed bytes could be neither counted nor resumed.
        var lines = ["Accept-Encoding: identity"]
        if let token, isOwn(address) { lines.append("Authorization: Bearer \(token)") }
        return lines
    }

    /// Where a redirection leads.
    /// - Throws: `.server` for what is no address, and for one that gives up encryption.
    func next(after address: String, _ answer: Answer, _ file: HubFile) throws(DownloadError)
        -> String
    {
        guard let location = answer.location, let origin = Origin(location) else {
            throw DownloadError(
                .server, "\(endpoint) leads to no address over HTTP for \(file)")
        }
        if Origin(address)?.scheme == "https", origin.scheme != "https" {
            throw DownloadError(
                .server,
                "\(endpoint) leads from https to http (\(origin.host)) for \(file): refused")
        }
        return location
    }

    /// The error for an answer of the hub that more tries do not change; nil for others.
    func refusal(_ head: Head, _ file: HubFile) -> DownloadError? {
        let said = head["x-error-message"].map { " (\($0.prefix(200)))" } ?? ""
        switch head.status {
        case 401:
            return DownloadError(
                .unauthorized,
                token == nil
                    ? "\(endpoint) does not give \(file) to everybody\(said): set HF_TOKEN to a token of "
                        + "\(endpoint)/settings/tokens, or check the name"
                    : "\(endpoint) does not accept HF_TOKEN for \(file)\(said): see \(endpoint)/settings/tokens"
            )
        case 403:
            return DownloadError(
                .forbidden,
                "\(endpoint) refuses \(file)\(said): accept the terms of \(endpoint)/\(file.repository), "
                    + "and set HF_TOKEN to a token of that account")
        case 404, 410:
            return DownloadError(.missing, "\(endpoint) has no \(file)\(said)")
        case 200..<400, 408, 416, 429, 500...: return nil
        default:
            return DownloadError(
                .server, "\(endpoint) answers \(head.status) for \(file)\(said)")
        }
    }
}

/// Scheme, host and port of an address.
struct Origin: Equatable {
    let scheme: String
    let host: String
    let port: String

    /// nil for what is no address over HTTP.
    init?(_ address: String) {
        let parts = address.firstRange(of: "://").map {
            (address[..<$0.lowerBound].lowercased(), address[$0.upperBound...])
        }
        guard let (scheme, rest) = parts, scheme == "http" || scheme == "https" else {
            return nil
        }
        // Who could be asked for a password stands before the host.
        let authority = rest.prefix { !"/?#".contains($0) }
        guard !authority.contains("\\") else { return nil }
        let place = authority.split(separator: "@", omittingEmptySubsequences: false).last ?? ""
        let bracket = place.lastIndex(of: "]")
        let colon = place.lastIndex(of: ":").flatMap { colon in
            bracket.map { $0 < colon } ?? true ? colon : nil
        }
        let host = place[..<(colon ?? place.endIndex)].lowercased()
        guard !host.isEmpty, !host.contains(where: \.isWhitespace) else { return nil }
        self.scheme = scheme
        self.host = host
        let port = colon.map { place[place.index(after: $0)...] } ?? ""
        self.port = port.isEmpty ? (scheme == "https" ? "443" : "80") : String(port)
    }
}
