// Files: the few file system calls of this room, straight on the C library.

import Glibc
import Ground
import SystemPackage

enum Files {
    /// The text of the current `errno`.
    static var lastError: String { String(cString: strerror(errno)) }

    static func status(_ path: String) -> stat? {
        var info = stat()
        return stat(path, &info) == 0 ? info : nil
    }

    static func isFolder(_ path: String) -> Bool {
        status(path).map { $0.st_mode & S_IFMT == S_IFDIR } ?? false
    }

    static func isRegular(_ path: String) -> Bool {
        status(path).map { $0.st_mode & S_IFMT == S_IFREG } ?? false
    }

    static func size(_ path: String) -> Int { status(path).map { Int($0.st_size) } ?? 0 }

    /// The folder and the last component of a path: `"a/b.mp4"` is `("a", "b.mp4")`.
    static func split(_ path: String) -> (folder: String, name: String) {
        guard let slash = path.lastIndex(of: "/") else { return (".", path) }
        let folder = slash == path.startIndex ? "/" : String(path[..<slash])
        return (folder, String(path[path.index(after: slash)...]))
    }

    /// The lower-case extension without its dot, or an empty string.
    static func fileExtension(_ path: String) -> String {
        let name = split(path).name
        guard let dot = name.lastIndex(of: "."), dot != name.startIndex else { return "" }
        return name[name.index(after: dot)...].lowercased()
    }

    /// At most `limit` bytes from `offset` on; `nil` where the file cannot be read.
    static func read(_ path: String, from offset: Int = 0, limit: Int) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        let count = max(0, min(limit, size(path) - offset))
        var failed = false
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
            while used < count {
                let n = pread(
                    descriptor, buffer.baseAddress! + used, count - used, off_t(offset + used))
                if n < 0 && errno == EINTR { continue }
                if n < 0 { failed = true }
                if n <= 0 { break }
                used += n
            }
        }
        return failed ? nil : bytes
    }

    /// Writes all of `bytes` at `offset` (default: a new, empty file).
    static func write(
        _ bytes: [UInt8], to path: String, at offset: Int? = nil
    ) throws(MediaError) {
        let flags = O_WRONLY | O_CLOEXEC | O_CREAT | (offset == nil ? O_TRUNC : 0)
        let descriptor = open(path, flags, 0o666)
        guard descriptor >= 0 else { throw .unwritable(path: path, reason: lastError) }
        var done = 0
        var failure: CInt = 0
        bytes.withUnsafeBytes { buffer in
            while done < buffer.count {
                let n = pwrite(
                    descriptor, buffer.baseAddress! + done, buffer.count - done,
                    off_t((offset ?? 0) + done))
                if n < 0 && errno == EINTR { continue }
                if n < 0 {
                    failure = errno
                    break
                }
                done += n
            }
        }
        // Network file systems report a full disk only here.
        if close(descriptor) != 0 && failure == 0 { failure = errno }
        if failure == ENOSPC || failure == EDQUOT || failure == EFBIG { throw .noSpace(path: path) }
        if failure != 0 {
            throw .unwritable(path: path, reason: String(cString: strerror(failure)))
        }
    }

    static func move(_ source: String, to target: String) throws(MediaError) {
        guard rename(source, target) == 0 else {
            throw .unwritable(path: target, reason: lastError)
        }
    }

    /// Proves that a file can be created in `folder` by creating and removing one: permission bits
    /// say nothing of read-only file systems, and nothing to root.
    static func checkWritable(folder: String, for path: String) throws(MediaError) {
        guard isFolder(folder) else { throw .noSuchFolder(path: folder) }
        let probe = TemporaryPath(beside: FilePath(folder).appending("probe"))
        let descriptor = open(probe.path.string, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw .unwritable(path: path, reason: lastError) }
        close(descriptor)
    }
}
