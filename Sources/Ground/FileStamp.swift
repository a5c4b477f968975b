/// Whether a file is still the one that was looked at.

import Glibc

/// Where a file lies, its size and when it was last written: equal stamps mean that nobody has replaced or changed it, as
/// far as the file system tells.
public struct FileStamp: Sendable, Hashable {
    public let path: String
    private let device, inode, size, seconds, nanoseconds: Int

    /// nil where there is no file.
    public init?(_ path: String) {
        var status = stat()
        guard stat(path, &status) == 0 else { return nil }
        self.path = path
        (device, inode) = (Int(status.st_dev), Int(status.st_ino))
        size = Int(status.st_size)
        (seconds, nanoseconds) = (status.st_mtim.tv_sec, status.st_mtim.tv_nsec)
    }
}
