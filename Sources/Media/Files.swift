// Files: splitting paths, and opening files for reading.

import Glibc
import Ground
import SystemPackage

enum Files {
    /// The text of the current `errno`.
    static var lastError: String { String(cString: strerror(errno)) }

    /// The folder and the last component of a path: `"a/b.mp4"` is `("a", "b.mp4")`.
    static func split(_ path: String) -> (folder: String, name: String) {
        guard let slash = path.lastIndex(of: "/") else { return (".", path) }
        let folder = slash == path.startIndex ? "/" : String(path[..<slash])
        return (folder, String(path[path.index(after: slash)...]))
    }

    /// The lower-case extension without its dot, or an empty string.
    static func fileExtension(_ path: String) -> String {
        let name = split(path).name
        guard let dot = name.lastIndex(of: "."), dot != name.startIndex else { return "" }
        return name[name.index(after: dot)...].lowercased()
    }
}

/// A regular file, open for reading. Its descriptor is handed to FFmpeg, so that the file checked here is the file that
/// is decoded, whatever it is called and even if its name is taken by another file meanwhile.
struct InputFile {
    let path: String
    let descriptor: Descriptor
    let size: Int

    init(_ path: String) throws(MediaError) {
        // O_NONBLOCK: opening a pipe must not wait for a writer; pipes are refused below.
        guard let descriptor = Descriptor(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) else {
            throw errno == ENOENT
                ? .noSuchFile(path: path) : .unreadable(path: path, reason: Files.lastError)
        }
        var status = stat()
        guard fstat(descriptor.number, &status) == 0 else {
            throw .unreadable(path: path, reason: Files.lastError)
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw .unreadable(path: path, reason: "it is a folder, a pipe or a device")
        }
        self.path = path
        self.descriptor = descriptor
        size = Int(status.st_size)
    }

    /// The first `limit` bytes of the file.
    func bytes(limit: Int = .max) throws(MediaError) -> [UInt8] {
        guard let bytes = readBytes(descriptor.number, from: 0, count: min(size, limit)) else {
            throw .unreadable(path: path, reason: Files.lastError)
        }
        return bytes
    }
}
