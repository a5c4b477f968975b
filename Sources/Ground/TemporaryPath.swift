/// Names for what is still being written, beside its target; removed when the writer goes, when the process is stopped, and
/// by a later process where this one was killed.

import Glibc
import Synchronization
public import SystemPackage

/// A hidden name that no other writer uses, for a file or a folder of files. What stands there is removed with this
/// object, unless it was given its name by `move`.
public final class TemporaryPath: Sendable {
    public let path: FilePath
    /// What errors name.
    private let target: FilePath

    /// Holds the lock by which others know that the folder is not abandoned.
    private let folderLock = Mutex<Int32>(-1)

    /// All that are to be removed should the process be stopped.
    private static let unfinished = Mutex<Set<FilePath>>([])

    private static let searched = Mutex<Set<FilePath>>([])

    private static let mark = ".turbodiffusion-"
    private static let ending = ".part"

    /// Makes nothing: the name is known before it is used, so that a signal in between leaves nothing behind.
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

    /// Makes the file, empty.
    /// - Returns: a descriptor for reading and writing. While it is open the file is not taken for abandoned.
    public func makeFile() throws(FileError) -> Int32 {
        while true {
            let descriptor = open(path.string, O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0o666)
            guard descriptor >= 0 else { throw .last(target) }
            flock(descriptor, LOCK_EX)
            var status = stat()
            if fstat(descriptor, &status) != 0 || status.st_nlink > 0 { return descriptor }
            // Another process took it for abandoned before it was locked.
            close(descriptor)
        }
    }

    public func makeFolder() throws(FileError) {
        guard mkdir(path.string, 0o777) == 0 else { throw .last(target) }
        let descriptor = open(path.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        flock(descriptor, LOCK_EX)
        folderLock.withLock { $0 = descriptor }
    }

    /// Removes what stands there.
    public func remove() { Self.remove(path) }

    /// Gives the file its name.
    /// - Parameter replacing: whether a file of that name may be replaced.
    public func move(to target: FilePath, replacing: Bool) throws(FileError) {
        try path.move(to: target, replacing: replacing)
    }

    /// Removes what is unfinished in this process, which is about to end.
    public static func removeAll() {
        for path in unfinished.withLock({ $0 }) { remove(path) }
    }

    /// Removes what processes that were killed have left in a folder: what is in use is locked, on network file systems too.
    /// Looks once into each folder.
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

    /// A file, or a folder with the files in it.
    private static func remove(_ path: FilePath) {
        if unlink(path.string) == 0 || errno != EISDIR { return }
        for name in (try? path.fileNames()) ?? [] { unlink(path.appending(name).string) }
        rmdir(path.string)
    }
}
