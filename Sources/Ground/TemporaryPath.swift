/// Temporary names for files that are being written, in the folder of their target. They are removed with the writer,
/// when the process is stopped, or by a later process if this one is killed.

import Glibc
import Synchronization
public import SystemPackage

/// A hidden name that no other writer uses, for a file or a folder of files. The file is removed with this object
/// unless `move` has given it its final name.
public final class TemporaryPath: Sendable {
    public let path: FilePath
    /// The path that errors name.
    private let target: FilePath

    /// Holds the lock that tells other processes that the folder is in use.
    private let folderLock = Mutex<Int32>(-1)

    /// All paths to remove if the process is stopped.
    private static let unfinished = Mutex<Set<FilePath>>([])

    private static let searched = Mutex<Set<FilePath>>([])

    private static let mark = ".turbodiffusion-"
    private static let ending = ".part"

    /// Only chooses the name. It is recorded before it is used, so that a signal in between leaves nothing behind.
    public init(beside target: FilePath) {
        Self.removeAbandoned(in: target.folder)
        let name = String(
            decoding: (target.lastComponent?.string ?? "").utf8.prefix(64), as: UTF8.self)
        let token = String(UInt64.random(in: 0 ... .max), radix: 36)
        let path = target.removingLastComponent()
            .appending(".\(name)\(Self.mark)\(token)\(Self.ending)")
        self.path = path
        self.target = target
        Self.unfinished.withLock { _ = $0.insert(path) }
    }

    deinit {
        remove()
        Self.unfinished.withLock { _ = $0.remove(path) }
        folderLock.withLock { if $0 >= 0 { close($0) } }
    }

    /// Makes an empty file.
    /// - Returns: a descriptor for reading and writing. While it is open, the file counts as in use.
    public func makeFile() throws(FileError) -> Int32 {
        while true {
            let descriptor = open(path.string, O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0o666)
            guard descriptor >= 0 else { throw .last(target) }
            flock(descriptor, LOCK_EX)
            var status = stat()
            if fstat(descriptor, &status) != 0 || status.st_nlink > 0 { return descriptor }
            // Another process has removed it before it was locked.
            close(descriptor)
        }
    }

    /// Makes an empty folder, which counts as in use as long as this object exists.
    public func makeFolder() throws(FileError) {
        guard mkdir(path.string, 0o777) == 0 else { throw .last(target) }
        let descriptor = open(path.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        flock(descriptor, LOCK_EX)
        folderLock.withLock { $0 = descriptor }
    }

    /// Removes the file or folder, if it exists.
    public func remove() { Self.remove(path) }

    /// Gives the file its final name.
    /// - Parameter replacing: whether a file of that name may be replaced.
    public func move(to target: FilePath, replacing: Bool) throws(FileError) {
        try path.move(to: target, replacing: replacing)
    }

    /// Removes all unfinished files of this process, which is about to end.
    public static func removeAll() {
        for path in unfinished.withLock({ $0 }) { remove(path) }
    }

    /// Removes files of killed processes from a folder. Files in use are locked, also on network file systems. Each
    /// folder is searched only once.
    static func removeAbandoned(in folder: FilePath) {
        guard searched.withLock({ $0.insert(folder).inserted }) else { return }
        for name in (try? folder.fileNames()) ?? []
        where name.hasPrefix(".") && name.hasSuffix(ending) && name.contains(mark) {
            let path = folder.appending(name)
            let descriptor = open(path.string, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { remove(path) }
            close(descriptor)
        }
    }

    /// Removes a file, or a folder with its files.
    private static func remove(_ path: FilePath) {
        if unlink(path.string) == 0 || errno != EISDIR { return }
        for name in (try? path.fileNames()) ?? [] { unlink(path.appending(name).string) }
        rmdir(path.string)
    }
}
