/// Questions to the file system that several rooms ask.

import Glibc
public import SystemPackage

extension FilePath {
    /// The folder that the file is in: `.` where the path names none.
    public var folder: FilePath {
        let folder = removingLastComponent()
        return folder.isEmpty ? "." : folder
    }

    /// Whether there is anything, behind symbolic links too.
    public var exists: Bool { fileType != nil }
    public var isFolder: Bool { fileType == .directory }
    public var isRegularFile: Bool { fileType == .regular }

    /// Of what symbolic links lead to; nil where there is nothing.
    public var fileType: FileType? { try? stat().type }

    /// In bytes; nil where there is nothing.
    public var fileSize: Int? { try? Int(stat().size) }

    /// Where symbolic links lead to, whether there is something or not yet.
    public var followingLinks: FilePath {
        var path = self
        // As many as Linux follows.
        for _ in 0..<40 {
            var target = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
            guard readlink(path.string, &target, target.count - 1) > 0 else { return path }
            path = path.removingLastComponent().pushing(FilePath(platformString: target))
        }
        return path
    }

    /// Refuses a path that no file can have: names that are too long, links that lead in circles, files in the place of
    /// folders. Whether there is a file is another question.
    public func checkName() throws(FileError) {
        if access(string, F_OK) != 0, errno != ENOENT { throw .last(self) }
    }

    /// The bytes of a regular file.
    /// - Parameter limit: a file with more is refused.
    public func contents(limit: Int = 1 << 26) throws(FileError) -> [UInt8] {
        // O_NONBLOCK: opening a pipe must fail below and not wait for a writer.
        let descriptor = open(string, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw .last(self) }
        defer { close(descriptor) }
        var status = Glibc.stat()
        guard fstat(descriptor, &status) == 0 else { throw .last(self) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw .notRegular(self) }
        // The size is a hint: files of /proc have none.
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: min(max(Int(status.st_size), 4096), 1 << 20))
        while true {
            let count = read(descriptor, &piece, piece.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw .last(self) }
            if count == 0 { return bytes }
            bytes += piece.prefix(count)
            guard bytes.count <= limit else { throw .tooLarge(self, limit: limit) }
        }
    }

    /// The name with a number, as that of another file beside it: `a/video.mp4` and 2 are `a/video-2.mp4`.
    public func numbered(_ number: Int) -> FilePath {
        guard let stem, let last = lastComponent else { return self }
        let name = last.extension.map { "\(stem)-\(number).\($0)" } ?? "\(stem)-\(number)"
        return removingLastComponent().appending(name)
    }

    /// Gives a file or folder another name on the same file system.
    /// - Parameter replacing: whether a file of that name may be replaced.
    public func move(to target: FilePath, replacing: Bool) throws(FileError) {
        if !replacing {
            if link(string, target.string) == 0 {
                unlink(string)
                return
            }
            // Folders have no hard links, nor have some file systems; there a name can be taken between this question and
            // the next line.
            guard target.fileType == nil else { throw .exists(target) }
        }
        guard rename(string, target.string) == 0 else { throw .last(target) }
    }

    /// The names in a folder, sorted.
    public func fileNames() throws(FileError) -> [String] {
        guard let stream = opendir(string) else { throw .last(self) }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// Makes the folder and those above it that are missing.
    public func makeFolders(mode: UInt32 = 0o777) throws(FileError) {
        if isFolder { return }
        let parent = removingLastComponent()
        if parent != self && !parent.isEmpty { try parent.makeFolders(mode: mode) }
        guard mkdir(string, mode) == 0 || (errno == EEXIST && isFolder) else { throw .last(self) }
    }

    /// Bytes that can still be written in this folder; nil where the file system does not say.
    public var freeBytes: Int? {
        var space = statvfs()
        guard statvfs(string, &space) == 0 else { return nil }
        return Int(clamping: UInt64(space.f_bavail) &* UInt64(space.f_frsize))
    }
}
