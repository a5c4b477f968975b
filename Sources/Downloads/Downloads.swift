/// Files of a hub in a folder of models: fetched, noted, found and removed.

import Glibc
import Ground
public import SystemPackage

/// A folder of models, in which a file of a repository is `OWNER/NAME/FILE`. Of each file that was fetched it notes where
/// it is from, in `.receipts`.
public struct ModelFolder: Sendable {
    public let path: FilePath

    public init(_ path: FilePath) { self.path = path }

    public func path(of file: HubFile) -> FilePath {
        path.appending(file.repository).appending(file.path)
    }

    private func receipt(of file: HubFile) -> FilePath {
        path.appending(".receipts").appending(file.repository).appending(file.path)
    }

    /// Whether the file is here, whole. A file has its name only when it is.
    public func has(_ file: HubFile) -> Bool { path(of: file).isRegularFile }

    /// What was noted when the file was fetched; nil where this program did not fetch it, or it has changed since.
    public func origin(of file: HubFile) -> FileOrigin? {
        guard let bytes = try? receipt(of: file).contents(limit: 1 << 16),
            let origin = FileOrigin(String(decoding: bytes, as: UTF8.self)),
            let stamp = Stamp(path(of: file)), stamp.size == origin.size,
            stamp.changed == origin.changed
        else { return nil }
        return origin
    }

    /// Bytes that an interrupted transfer has left; nil where there was none.
    public func partial(_ file: HubFile) -> Int? {
        var status = Glibc.stat()
        guard fstatat(AT_FDCWD, path(of: file).string + ".part", &status, AT_SYMLINK_NOFOLLOW) == 0
        else { return nil }
        // It has holes where nothing has come yet.
        return Int(status.st_blocks) * 512
    }

    func note(_ origin: FileOrigin, of file: HubFile) throws(DownloadError) {
        let receipt = receipt(of: file)
        do {
            try receipt.folder.makeFolders()
            try PendingFile.write(Array(origin.text.utf8), to: receipt, overwrite: true)
        } catch { throw DownloadError(error) }
    }

    /// Removes a file that this program fetched, or what an interrupted transfer has left of it.
    /// - Returns: the bytes that are free now; nil where there was nothing of ours.
    public func remove(_ file: HubFile) throws(DownloadError) -> Int? {
        let place = path(of: file)
        var freed: Int?
        if origin(of: file) != nil {
            freed = place.fileSize
            guard unlink(place.string) == 0 else { throw DownloadError(.last(place)) }
            unlink(receipt(of: file).string)
        }
        if let left = partial(file) {
            // Whoever fetches it just now has it locked.
            let part = try PartFile(for: place, isStopped: { true })
            part.discard()
            freed = (freed ?? 0) + left
        }
        guard freed != nil else { return nil }
        for start in [receipt(of: file), place] {
            var folder = start.folder
            // Up to, and without, the folder of all models.
            while folder.string.hasPrefix(path.string + "/"), rmdir(folder.string) == 0 {
                folder = folder.folder
            }
        }
        return freed
    }
}

/// Size and time of change of a file, in nanoseconds.
struct Stamp {
    let size: Int
    let changed: Int

    init(_ status: Glibc.stat) {
        size = Int(status.st_size)
        changed = status.st_mtim.tv_sec * 1_000_000_000 + status.st_mtim.tv_nsec
    }

    /// nil where there is no file.
    init?(_ path: FilePath) {
        var status = Glibc.stat()
        guard fstatat(AT_FDCWD, path.string, &status, 0) == 0 else { return nil }
        self.init(status)
    }
}

/// Where a file is from.
public struct FileOrigin: Sendable, Hashable {
    public var address: String
    public var size: Int
    public var sha256: String?
    public var etag: String?
    /// When the file was last changed, in nanoseconds.
    var changed: Int

    init(address: String, _ identity: HubIdentity, changed: Int) {
        self.address = address
        size = identity.size
        sha256 = identity.sha256
        etag = identity.etag
        self.changed = changed
    }

    /// Lines of a name and a value.
    var text: String {
        var lines = ["address \(address.printable)", "size \(size)", "changed \(changed)"]
        lines += sha256.map { ["sha256 \($0)"] } ?? []
        lines += etag.map { ["etag \($0.printable)"] } ?? []
        return lines.joined(separator: "\n") + "\n"
    }

    /// nil for other text.
    init?(_ text: String) {
        var values: [Substring: Substring] = [:]
        for line in text.split(separator: "\n") {
            let parts = line.split(separator: " ", maxSplits: 1)
            guard parts.count == 2 else { return nil }
            values[parts[0]] = parts[1]
        }
        guard let address = values["address"], let size = values["size"].flatMap({ Int($0) }),
            let changed = values["changed"].flatMap({ Int($0) })
        else { return nil }
        self.address = String(address)
        self.size = size
        self.changed = changed
        sha256 = values["sha256"].map(String.init)
        etag = values["etag"].map(String.init)
    }
}

/// How far a transfer is.
public struct DownloadProgress: Sendable, Hashable {
    /// Bytes of the file that are there.
    public var bytes: Int
    public var size: Int
    /// Bytes that came over the network, in this call.
    public var received: Int
    /// Whether all bytes are there and only their hash is still computed.
    public var isChecking: Bool
}

/// What a transfer did.
public struct DownloadReport: Sendable, Hashable {
    public var size: Int
    public var sha256: String?
    /// Bytes that were there from an interrupted transfer.
    public var resumed: Int
    /// Bytes of the body that came over the network.
    public var received: Int
    /// Requests that failed and were tried again.
    public var retries: Int
    /// Whether another process has fetched the file meanwhile, or it was there.
    public var wasHere: Bool
}

/// How files are fetched.
public struct DownloadOptions: Sendable, Hashable {
    /// At the same time, for one file.
    public var connections = 4
    /// Without a byte, after which a request is tried again.
    public var stallSeconds = 20
    /// Failures in a row, without a byte in between, after which it is given up.
    public var tries = 8

    public init() {}
}
