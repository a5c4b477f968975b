/// Files for what does not fit into memory and need not outlive the process.

import Glibc
public import SystemPackage

/// A file without a name, which is gone when it is closed, however the process ends.
public final class ScratchFile: Sendable {
    /// Where it takes its space.
    public let folder: FilePath
    /// Open for reading and writing: a child process may be given it.
    public let descriptor: Int32

    public init(in folder: FilePath = .temporaryFolder) throws(FileError) {
        self.folder = folder
        if let unnamed = unnamedFile(in: folder) {
            descriptor = unnamed
        } else {
            // Where files cannot do without a name, it has one for a moment.
            let temporary = TemporaryPath(beside: folder.appending("scratch"))
            descriptor = try temporary.makeFile()
        }
    }

    deinit { close(descriptor) }

    public var size: Int { sizeOfFile(descriptor) ?? 0 }

    /// Writes all of `bytes` behind what is there.
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
    /// `TMPDIR`, or `/tmp` where that names no folder.
    public static var temporaryFolder: FilePath {
        let named = getenv("TMPDIR").map { FilePath(platformString: $0) }
        guard let named, named.isAbsolute, named.isFolder else { return "/tmp" }
        return named
    }
}

/// The size of an open file in bytes; nil where the system does not say.
public func sizeOfFile(_ descriptor: Int32) -> Int? {
    var status = stat()
    return fstat(descriptor, &status) == 0 ? Int(status.st_size) : nil
}

/// The bytes of an open file from `offset` on: `count`, or those up to the end; nil, and `errno`, where it cannot be read.
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

/// A new file without a name, open for reading and writing; nil where the file system has none.
func unnamedFile(in folder: FilePath) -> Int32? {
    // Swift does not import the macro: __O_TMPFILE | O_DIRECTORY.
    let withoutName: Int32 = 0o20_000_000 | O_DIRECTORY
    let descriptor = open(folder.string, O_RDWR | O_CLOEXEC | withoutName, 0o666)
    return descriptor >= 0 ? descriptor : nil
}
