/// Files that get their name only when they are complete.

import Glibc
public import SystemPackage

/// A file that has no name until it is committed, or a temporary name in the same folder if the file system does not
/// support that. It disappears unless it is committed.
public final class PendingFile {
    /// The final path, after symbolic links.
    public let path: FilePath
    private let overwrite: Bool
    /// nil if the file has no name.
    private var temporary: TemporaryPath?
    /// Open for reading and writing. A child process may use it to write the file.
    public let descriptor: Int32
    private var buffer: [UInt8] = []
    public private(set) var position = 0

    private static let bufferSize = 1 << 20
    /// - Parameters:
    ///   - overwrite: whether a file of that name may be replaced.
    ///   - byteCount: how many bytes will be written; throws if the disk has too little space.
    public init(_ path: FilePath, overwrite: Bool, byteCount: Int = 0) throws(FileError) {
        let path = path.followingLinks
        if let type = path.fileType {
            if type != .regular { throw .notRegular(path) }
            if !overwrite { throw .exists(path) }
        }
        try path.checkName()
        guard path.folder.exists else { throw .noFolder(path) }
        if let free = path.folder.freeBytes, byteCount > free {
            throw .noRoom(path, needed: byteCount, free: free)
        }
        TemporaryPath.removeAbandoned(in: path.folder)
        let unnamed = unnamedFile(in: path.folder)
        if let unnamed, access(Self.link(to: unnamed), F_OK) == 0 {
            flock(unnamed, LOCK_EX)
            descriptor = unnamed
        } else {
            if let unnamed { close(unnamed) }
            let temporary = TemporaryPath(beside: path)
            descriptor = try temporary.makeFile()
            self.temporary = temporary
        }
        self.path = path
        self.overwrite = overwrite
    }

    deinit { close(descriptor) }

    /// Writes a whole file at once.
    public static func write(
        _ bytes: [UInt8], to path: FilePath, overwrite: Bool, durable: Bool = true
    ) throws(FileError) {
        let file = try PendingFile(path, overwrite: overwrite, byteCount: bytes.count)
        try file.write(bytes)
        try file.commit(durable: durable)
    }

    /// Writes bytes to the end of the file.
    public func write(_ bytes: UnsafeRawBufferPointer) throws(FileError) {
        position += bytes.count
        if buffer.count + bytes.count > Self.bufferSize { try flush() }
        if bytes.count < Self.bufferSize {
            buffer.append(contentsOf: bytes)
        } else {
            try put(bytes)
        }
    }

    /// Writes bytes to the end of the file.
    public func write(_ bytes: [UInt8]) throws(FileError) {
        try bytes.withUnsafeBufferPointer { bytes throws(FileError) in
            try write(UnsafeRawBufferPointer(bytes))
        }
    }

    private func put(_ bytes: UnsafeRawBufferPointer) throws(FileError) {
        var rest = bytes
        while !rest.isEmpty {
            let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw .last(path) }
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
    }

    private func flush() throws(FileError) {
        defer { buffer.removeAll(keepingCapacity: true) }
        try buffer.withUnsafeBufferPointer { bytes throws(FileError) in
            try put(UnsafeRawBufferPointer(bytes))
        }
    }

    /// Overwrites bytes that have been written before.
    public func patch(_ bytes: [UInt8], at offset: Int) throws(FileError) {
        try flush()
        guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
            throw .last(path)
        }
    }

    /// Gives the file its name.
    /// - Parameters:
    ///   - path: another name in the same folder; nil for the original one.
    ///   - durable: whether the bytes are first written to the disk, so that even after a power failure the file is
    ///     either complete or absent.
    public func commit(as path: FilePath? = nil, durable: Bool = true) throws(FileError) {
        let path = path ?? self.path
        try flush()
        guard !durable || fsync(descriptor) == 0 else { throw .last(path) }
        if let temporary { return try temporary.move(to: path, replacing: overwrite) }
        if !overwrite { return try link(to: path) }
        // A link cannot replace a file, but renaming can.
        let temporary = TemporaryPath(beside: path)
        try link(to: temporary.path)
        try temporary.move(to: path, replacing: true)
    }

    private func link(to name: FilePath) throws(FileError) {
        let own = Self.link(to: descriptor)
        if linkat(AT_FDCWD, own, AT_FDCWD, name.string, AT_SYMLINK_FOLLOW) == 0 { return }
        throw errno == EEXIST ? .exists(name) : .last(name)
    }

    private static func link(to descriptor: Int32) -> String { "/proc/self/fd/\(descriptor)" }
}
