/// Files mapped into memory, of which only the used parts are read.

import Glibc
public import SystemPackage

/// A regular file, mapped read-only as long as this object exists.
public final class MappedFile: @unchecked Sendable {
    public let path: FilePath
    /// The whole file. The memory is never written, so threads may share it.
    public let bytes: UnsafeRawBufferPointer

    public init(_ path: FilePath) throws(FileError) {
        // O_NONBLOCK: opening a pipe must not wait for a writer; it is refused below.
        let descriptor = open(path.string, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw .last(path) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .last(path) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw .notRegular(path) }
        self.path = path
        let count = Int(status.st_size)
        guard count > 0 else {
            bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            return
        }
        guard let base = mmap(nil, count, PROT_READ, MAP_PRIVATE, descriptor, 0),
            base != MAP_FAILED
        else { throw .last(path) }
        bytes = UnsafeRawBufferPointer(start: base, count: count)
    }

    deinit {
        if let base = bytes.baseAddress {
            munmap(UnsafeMutableRawPointer(mutating: base), bytes.count)
        }
    }

    /// Lets the system drop the pages that lie entirely inside `range`; a later access reads them again.
    public func forget(_ range: Range<Int>) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let start = roundUp(range.lowerBound, to: page)
        let end = range.upperBound / page * page
        guard start < end, let base = bytes.baseAddress else { return }
        madvise(UnsafeMutableRawPointer(mutating: base + start), end - start, MADV_DONTNEED)
    }
}
