/// Files mapped into memory: opening a checkpoint reads its headers and no tensor.

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// A regular file mapped read-only; unmapped when the last tensor that looks at it goes.
final class MappedFile: @unchecked Sendable {
    let path: String
    /// The whole file. The memory is never written, so threads may share it.
    let bytes: UnsafeRawBufferPointer

    init(_ path: String) throws(CheckpointError) {
        // O_NONBLOCK: opening a pipe must fail below and not wait for a writer.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            throw .unreadable(path: path, reason: String(cString: strerror(errno)))
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw .unreadable(path: path, reason: String(cString: strerror(errno)))
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw .unreadable(path: path, reason: "not a regular file")
        }
        guard status.st_size > 0 else {
            throw .malformed(path: path, reason: "the file is empty")
        }
        let count = Int(status.st_size)
        guard let base = mmap(nil, count, PROT_READ, MAP_PRIVATE, descriptor, 0),
            base != MAP_FAILED
        else {
            throw .unreadable(path: path, reason: String(cString: strerror(errno)))
        }
        self.path = path
        bytes = UnsafeRawBufferPointer(start: base, count: count)
    }

    deinit { munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress!), bytes.count) }

    func fail(_ reason: String) -> CheckpointError { .malformed(path: path, reason: reason) }

    /// Lets the system forget the pages that lie wholly inside `range`; a later access reads them
    /// again.
    func forget(_ range: Range<Int>) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let start = (range.lowerBound + page - 1) / page * page
        let end = range.upperBound / page * page
        guard start < end else { return }
        madvise(
            UnsafeMutableRawPointer(mutating: bytes.baseAddress! + start), end - start,
            MADV_DONTNEED)
    }
}

/// Reads little-endian numbers from a part of a file, never past its end.
struct ByteReader {
    let bytes: UnsafeRawBufferPointer
    private(set) var position: Int

    init(_ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
        self.bytes = bytes
        self.position = position
    }

    var remaining: Int { bytes.count - position }

    /// nil past the end.
    mutating func integer<T: FixedWidthInteger>(_ type: T.Type) -> T? {
        guard remaining >= MemoryLayout<T>.size else { return nil }
        defer { position += MemoryLayout<T>.size }
        return T(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: T.self))
    }

    mutating func count<T: FixedWidthInteger>(_ type: T.Type) -> Int? {
        integer(type).flatMap { Int(exactly: $0) }
    }

    /// The place of the next `count` bytes; nil past the end.
    mutating func take(_ count: Int) -> Range<Int>? {
        guard count >= 0, count <= remaining else { return nil }
        defer { position += count }
        return position..<position + count
    }

    func slice(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[range])
    }

    /// UTF-8 text; nil where the bytes are not UTF-8.
    func text(_ range: Range<Int>) -> String? { String(validating: slice(range), as: UTF8.self) }
}
