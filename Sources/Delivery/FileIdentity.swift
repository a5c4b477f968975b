/// Identifies a file by its content, without reading gigabytes.

import Glibc
import Ground
import SystemPackage

/// A file's name, size, and a hash of pieces spread over its content. Its folder does not matter.
public struct FileIdentity: Codable, Sendable, Hashable {
    public var name: String
    public var bytes: Int
    /// 16 hexadecimal digits.
    public var fingerprint: String

    private static let pieces = 32
    private static let pieceBytes = 16 << 10

    /// - Parameter path: a file, a folder, or an index of shards, which stands for the folder it is in.
    /// - Throws: `StoredRunError.unreadable`.
    public init(path: String) throws(StoredRunError) {
        let path = FilePath(path)
        let isIndex = path.string.hasSuffix(".index.json")
        name = path.lastComponent?.string ?? path.string
        var hash = FNV1a()
        do {
            bytes = try Self.read(isIndex ? path.removingLastComponent() : path, into: &hash)
        } catch {
            let reason = (error as? FileError)?.reason ?? "\(error)"
            throw .unreadable(path: path.string, reason: reason)
        }
        fingerprint = padded(hash.value, 16, radix: 16)
    }

    /// Adds pieces of a file, or of each file in a folder, to the hash.
    /// - Returns: the size of all of them in bytes.
    private static func read(_ path: FilePath, into hash: inout FNV1a) throws -> Int {
        // Opening a pipe must not wait for a writer.
        let file = try FileDescriptor.open(path, .readOnly, options: [.nonBlocking, .closeOnExec])
        defer { try? file.close() }
        var status = stat()
        guard fstat(file.rawValue, &status) == 0 else { throw Errno(rawValue: errno) }
        if status.st_mode & S_IFMT == S_IFDIR {
            let files = try path.fileNames().filter { !$0.hasPrefix(".") }.map(path.appending)
            return try files.filter(\.isRegularFile).reduce(0) {
                try $0 + read($1, into: &hash)
            }
        }
        guard status.st_mode & S_IFMT == S_IFREG else { throw FileError.notRegular(path) }
        let size = Int(status.st_size)
        hash.add(UInt64(size))
        if size <= pieces * pieceBytes {
            try add(file, 0..<size, to: &hash)
        } else {
            for piece in 0..<pieces {
                let start = (size - pieceBytes) / (pieces - 1) * piece
                try add(file, start..<start + pieceBytes, to: &hash)
            }
            // Archives end with a table of contents that includes checksums.
            try add(file, size - pieceBytes..<size, to: &hash)
        }
        return size
    }

    private static func add(
        _ file: FileDescriptor, _ range: Range<Int>, to hash: inout FNV1a
    ) throws {
        var buffer = [UInt8](repeating: 0, count: range.count)
        try buffer.withUnsafeMutableBytes { buffer in
            var done = 0
            while done < buffer.count {
                let count = try file.read(
                    fromAbsoluteOffset: Int64(range.lowerBound + done),
                    into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
                if count == 0 { throw Errno.ioError }
                done += count
            }
            hash.add(words: UnsafeRawBufferPointer(buffer))
        }
    }
}
