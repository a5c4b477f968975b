/// Temporary files for data that does not fit into memory.

import Glibc
public import SystemPackage

/// A file without a name, which disappears when it is closed, however the process ends.
public final class ScratchFile: Sendable {
    /// The folder on whose file system it is.
    public let folder: FilePath
    /// Open for reading and writing. A child process may use it.
    public let descriptor: Int32

    public init(in folder: FilePath = .temporaryFolder) throws(FileError) {
        self.folder = folder
        if let unnamed = unnamedFile(in: folder) {
            descriptor = unnamed
        } else {
            // If the file system needs names, the file has one for a moment.
            let temporary = TemporaryPath(beside: folder.appending("scratch"))
            descriptor = try temporary.makeFile()
        }
    }

    deinit { close(descriptor) }

    public var size: Int { sizeOfFile(descriptor) ?? 0 }

    /// Writes all of `bytes` to the end.
    public func append(_ bytes: [UInt8]) throws(FileError) {
        let start = size
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                pwrite(descriptor, $0.baseAddress! + done, $0.count - done, off_t(start + done))
            }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw .last(folder) }
            done += count
        }
    }

    /// The bytes from `offset` on: `count`, or those up to the end.
    public func read(from offset: Int, count: Int) throws(FileError) -> [UInt8] {
        guard let bytes = readBytes(descriptor, from: offset, count: count) else {
            throw .last(folder)
        }
        return bytes
    }
}

extension FilePath {
    /// `TMPDIR`, or `/tmp` if that is not the absolute path of a folder.
    public static var temporaryFolder: FilePath {
        let named = getenv("TMPDIR").map { FilePath(platformString: $0) }
        guard let named, named.isAbsolute, named.isFolder else { return "/tmp" }
        return named
    }
}

/// The size of an open file in bytes; nil after a system error.
public func sizeOfFile(_ descriptor: Int32) -> Int? {
    var status = stat()
    return fstat(descriptor, &status) == 0 ? Int(status.st_size) : nil
}

/// The bytes of an open file from `offset` on: `count`, or those up to the end; nil, with `errno` set, if they cannot
/// be read.
public func readBytes(_ descriptor: Int32, from offset: Int, count: Int) -> [UInt8]? {
    var failed = false
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
        while used < count {
            let got = pread(
                descriptor, buffer.baseAddress! + used, count - used, off_t(offset + used))
            if got < 0 && errno == EINTR { continue }
            failed = got < 0
            if got <= 0 { break }
            used += got
        }
    }
    return failed ? nil : bytes
}

/// A new file without a name, open for reading and writing; nil if the file system does not support that.
func unnamedFile(in folder: FilePath) -> Int32? {
    // O_TMPFILE is __O_TMPFILE | O_DIRECTORY, a macro that Swift does not import.
    let withoutName: Int32 = 0o20_000_000 | O_DIRECTORY
    let descriptor = open(folder.string, O_RDWR | O_CLOEXEC | withoutName, 0o666)
    return descriptor >= 0 ? descriptor : nil
}
