/// Files that appear under their name only when they are whole.

import Synchronization

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// A file under a temporary name beside its final one. Removed again unless it is committed.
final class PendingFile {
    let path: String
    private let temporary: String
    private let descriptor: Int32
    private var buffer: [UInt8] = []
    private(set) var position = 0

    /// What is to be removed should the process be stopped.
    private static let unfinished = Mutex<Set<String>>([])

    /// - Parameters:
    ///   - overwrite: whether a file of that name may be replaced.
    ///   - byteCount: how much will be written, to refuse early where the disk is too small.
    init(_ path: String, overwrite: Bool, byteCount: Int) throws(CheckpointError) {
        self.path = path
        var status = stat()
        if stat(path, &status) == 0 {
            if status.st_mode & S_IFMT != S_IFREG {
                throw .unwritable(path: path, reason: "it exists and is not a regular file")
            }
            if !overwrite {
                throw .unwritable(path: path, reason: "it exists already; --force replaces it")
            }
        }
        let slash = path.lastIndex(of: "/")
        let folder = slash.map { String(path[...$0]) } ?? ""
        let name = slash.map { String(path[path.index(after: $0)...]) } ?? path
        temporary = "\(folder).\(name.prefix(64)).\(getpid()).\(UInt32.random(in: 0 ... .max))"
        var space = statvfs()
        if statvfs(folder.isEmpty ? "." : folder, &space) == 0 {
            let free = Int(space.f_bavail) * Int(space.f_frsize)
            guard byteCount <= free else {
                throw .unwritable(
                    path: path, reason: "\(byteCount) bytes are needed, \(free) are free")
            }
        }
        // Known before it exists, so that a signal in between leaves nothing behind.
        let temporary = temporary
        Self.unfinished.withLock { _ = $0.insert(temporary) }
        descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else {
            let reason = String(cString: strerror(errno))
            Self.unfinished.withLock { _ = $0.remove(temporary) }
            throw .unwritable(path: path, reason: reason)
        }
        buffer.reserveCapacity(Self.bufferSize)
    }

    private var isCommitted = false

    deinit {
        if !isCommitted { unlink(temporary) }
        close(descriptor)
        Self.unfinished.withLock { _ = $0.remove(temporary) }
    }

    /// Removes the unfinished files of this process, which is about to end.
    static func removeUnfinished() {
        for path in unfinished.withLock({ Array($0) }) { unlink(path) }
    }

    private static let bufferSize = 1 << 20

    private var failure: CheckpointError {
        .unwritable(path: path, reason: String(cString: strerror(errno)))
    }

    func write(_ bytes: UnsafeRawBufferPointer) throws(CheckpointError) {
        position += bytes.count
        if buffer.count + bytes.count <= Self.bufferSize {
            buffer.append(contentsOf: bytes)
            return
        }
        try flush()
        try put(bytes)
    }

    func write(_ bytes: [UInt8]) throws(CheckpointError) {
        try bytes.withUnsafeBufferPointer { bytes throws(CheckpointError) in
            try write(UnsafeRawBufferPointer(bytes))
        }
    }

    private func put(_ bytes: UnsafeRawBufferPointer) throws(CheckpointError) {
        var rest = bytes
        while !rest.isEmpty {
            let count = unsafeWrite(rest)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw failure }
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
    }

    private func unsafeWrite(_ bytes: UnsafeRawBufferPointer) -> Int {
        #if canImport(Glibc)
            Glibc.write(descriptor, bytes.baseAddress, bytes.count)
        #else
            Darwin.write(descriptor, bytes.baseAddress, bytes.count)
        #endif
    }

    private func flush() throws(CheckpointError) {
        defer { buffer.removeAll(keepingCapacity: true) }
        try buffer.withUnsafeBufferPointer { bytes throws(CheckpointError) in
            try put(UnsafeRawBufferPointer(bytes))
        }
    }

    /// Overwrites bytes written before.
    func patch(_ bytes: [UInt8], at offset: Int) throws(CheckpointError) {
        try flush()
        guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
            throw failure
        }
    }

    /// Gives the file its name.
    func commit() throws(CheckpointError) {
        try flush()
        guard rename(temporary, path) == 0 else { throw failure }
        isCommitted = true
    }
}

/// Removes the half-written checkpoints of this process, for the moment when a signal ends it.
public func removeUnfinishedCheckpoints() { PendingFile.removeUnfinished() }
