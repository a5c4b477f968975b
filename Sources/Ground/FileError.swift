/// Errors of files.

import Glibc
public import SystemPackage

/// What can go wrong with a file.
public enum FileError: Error, Sendable, Hashable, CustomStringConvertible {
    /// It exists, and may not be replaced.
    case exists(FilePath)
    /// It cannot be made: there is no folder for it.
    case noFolder(FilePath)
    /// It is a folder, a pipe or a device instead of a regular file.
    case notRegular(FilePath)
    /// Its file system has too little space. In bytes.
    case noRoom(FilePath, needed: Int, free: Int)
    /// It has more bytes than may be read.
    case tooLarge(FilePath, limit: Int)
    /// An error of the operating system.
    case system(FilePath, Errno)

    /// The error of the last system call.
    public static func last(_ path: FilePath) -> FileError { .system(path, .current) }

    public var path: FilePath {
        switch self {
        case .exists(let path), .noFolder(let path), .notRegular(let path), .noRoom(let path, _, _),
            .tooLarge(let path, _), .system(let path, _):
            path
        }
    }

    public var reason: String {
        switch self {
        case .exists: "it exists already"
        case .noFolder(let path): "there is no folder \(path.folder)"
        case .notRegular: "not a regular file"
        case .noRoom(_, let needed, let free): "\(needed) bytes are needed, \(free) are free"
        case .tooLarge(_, let limit): "more than \(describe(bytes: limit))"
        case .system(_, let error): "\(error)"
        }
    }

    public var description: String {
        if case .system(_, .noSuchFileOrDirectory) = self {
            return cannotRead(path.string.printable, reason)
        }
        return "\(path.string.printable): \(reason)"
    }
}

/// The line for a file that cannot be read, the same everywhere: `no such file: a.pth`, `cannot read a.pth: Permission denied`.
public func cannotRead(_ path: String, _ reason: String) -> String {
    reason == "\(Errno.noSuchFileOrDirectory)"
        ? "no such file: \(path)" : "cannot read \(path): \(reason)"
}

extension Errno {
    /// The error of the last system call.
    static var current: Errno { Errno(rawValue: errno) }
}
