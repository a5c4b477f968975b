/// Names for what is still being written, beside its target; removed when the writer goes or the process is stopped.

import Glibc
import Synchronization
public import SystemPackage

/// A hidden name that no other writer uses, for a file or a folder of files. What stands there is removed with this
/// object, unless it was given its name by `move`.
public final class TemporaryPath: Sendable {
    public let path: FilePath

    /// All that are to be removed should the process be stopped.
    private static let unfinished = Mutex<Set<FilePath>>([])

    /// Makes nothing: the name is known before it is used, so that a signal in between leaves nothing behind.
    /// - Parameter suffix: such as `.mp4`, for programs that go by it.
    public init(beside target: FilePath, suffix: String = "") {
        let name = String(
            decoding: (target.lastComponent?.string ?? "").utf8.prefix(64), as: UTF8.self)
        let token = String(UInt64.random(in: 0 ... .max), radix: 36)
        let path = target.removingLastComponent().appending(".\(name).\(token).part\(suffix)")
        self.path = path
        Self.unfinished.withLock { _ = $0.insert(path) }
    }

    deinit {
        remove()
        Self.unfinished.withLock { _ = $0.remove(path) }
    }

    /// Removes what stands there.
    public func remove() { Self.remove(path) }

    /// Gives the file its name.
    /// - Parameter replacing: whether a file of that name may be replaced.
    public func move(to target: FilePath, replacing: Bool) throws(FileError) {
        if !replacing {
            if link(path.string, target.string) == 0 {
                unlink(path.string)
                return
            }
            // Some file systems have no hard links; there a name can be taken between this question and the next line.
            guard target.fileType == nil else { throw .exists(target) }
        }
        guard rename(path.string, target.string) == 0 else { throw .last(target) }
    }

    /// Removes what is unfinished in this process, which is about to end.
    public static func removeAll() {
        for path in unfinished.withLock({ $0 }) { remove(path) }
    }

    /// A file, or a folder with the files in it.
    private static func remove(_ path: FilePath) {
        if unlink(path.string) == 0 || errno != EISDIR { return }
        for name in (try? path.fileNames()) ?? [] { unlink(path.appending(name).string) }
        rmdir(path.string)
    }
}
