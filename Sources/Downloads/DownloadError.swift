/// Why a file could not be fetched.

public import Ground
import SystemPackage

/// One line for people, and a kind for programs.
public struct DownloadError: Error, Sendable, Hashable, CustomStringConvertible {
    public enum Kind: String, Sendable, Hashable, CaseIterable {
        /// libcurl is missing or too old.
        case library
        /// A name, an address or a token that cannot be one.
        case name
        /// 401: the hub wants to know who asks.
        case unauthorized
        /// 403: who asks may not have it.
        case forbidden
        /// 404: there is no such file.
        case missing
        /// Nobody answers, or not to the end, after every retry.
        case unreachable
        /// Another status, or an answer that contradicts itself.
        case server
        /// The file changes while it is fetched.
        case changed
        /// The bytes are not those that were promised.
        case damaged
        /// The disk is full, or cannot be written.
        case disk
        /// The user has stopped it.
        case stopped
    }

    public let kind: Kind
    public let description: String

    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description.printable
    }

    public init(_ error: FileError) { self.init(.disk, "\(error)") }
}
