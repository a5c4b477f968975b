/// The keys of the service.

import Glibc
import Ground
import SystemPackage

/// A list of keys, of which only hashes are kept.
public struct APIKeys: Sendable {
    private let digests: [[UInt8]]
    static let shortest = 16

    /// - Parameter path: one key a line; `#` begins a comment.
    /// - Throws: ``ServiceError`` for a file that others can read, and for keys that could be guessed.
    public init(path: String) throws {
        var status = stat()
        guard stat(path, &status) == 0 else { throw ServiceError("\(path): no such file of keys") }
        guard status.st_mode & S_IFMT == S_IFREG, status.st_mode & (S_IROTH | S_IWOTH) == 0 else {
            throw ServiceError("\(path): others can read the keys; chmod o-rwx \(path)")
        }
        let bytes: [UInt8]
        do { bytes = try FilePath(path).contents(limit: 1 << 20) } catch {
            throw ServiceError("\(path): \(error.reason)")
        }
        let keys = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline)
            .map(\.trimmed).filter { !$0.isEmpty && !$0.hasPrefix("#") }
        guard !keys.isEmpty else { throw ServiceError("\(path): there is no key in it") }
        for key in keys where key.utf8.count < Self.shortest || key.contains(" ") {
            throw ServiceError(
                "\(path): a key must have at least \(Self.shortest) characters and no space: "
                    + "openssl rand -hex 24 makes one")
        }
        self.init(keys)
    }

    init(_ keys: [String]) { digests = keys.map(Self.digest) }

    /// Takes as long for every wrong key: what is compared are hashes, to their ends, with all keys.
    func accept(_ key: String) -> Bool {
        let digest = Self.digest(key)
        var found = false
        for known in digests {
            var difference: UInt8 = 0
            for (a, b) in zip(known, digest) { difference |= a ^ b }
            found = difference == 0 || found
        }
        return found
    }

    private static func digest(_ key: String) -> [UInt8] {
        var hash = SHA256()
        hash.update(key.utf8)
        return Array(hash.finish().utf8)
    }
}
