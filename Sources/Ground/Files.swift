/// Operations on files and folders that several rooms need.

import Glibc
public import SystemPackage

extension FilePath {
    /// The folder of the file; `.` if the path contains none.
    public var folder: FilePath {
        let folder = removingLastComponent()
        return folder.isEmpty ? "." : folder
    }

    /// Whether something exists at the path, after symbolic links.
    public var exists: Bool { fileType != nil }
    public var isFolder: Bool { fileType == .directory }
    public var isRegularFile: Bool { fileType == .regular }

    /// The type of what the path names, after symbolic links; nil if it does not exist.
    public var fileType: FileType? { try? stat().type }

    /// In bytes; nil if it does not exist.
    public var fileSize: Int? { try? Int(stat().size) }

    /// The path that symbolic links lead to, whether it exists or not.
    public var followingLinks: FilePath {
        var path = self
        // Linux follows at most 40 links.
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
    /// - Parameter limit: larger files are refused.
    public func contents(limit: Int = 1 << 26) throws(FileError) -> [UInt8] {
        // O_NONBLOCK: opening a pipe must not wait for a writer; it is refused below.
        let descriptor = open(string, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw .last(self) }
        defer { close(descriptor) }
        var status = Glibc.stat()
        guard fstat(descriptor, &status) == 0 else { throw .last(self) }
        guard status.st_mode & S_IFMT == S_IFREG else { throw .notRegular(self) }
        // The size is only a hint, because files in /proc have size 0.
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

    /// The path with a number added to the name: `a/video.mp4` and 2 make `a/video-2.mp4`.
    public func numbered(_ number: Int) -> FilePath {
        guard let stem, let last = lastComponent else { return self }
        let name = last.extension.map { "\(stem)-\(number).\($0)" } ?? "\(stem)-\(number)"
        return removingLastComponent().appending(name)
    }

    /// Moves a file or folder to another name on the same file system.
    /// - Parameter replacing: whether a file of that name may be replaced.
    public func move(to target: FilePath, replacing: Bool) throws(FileError) {
        if !replacing {
            if link(string, target.string) == 0 {
                unlink(string)
                return
            }
            // Folders and some file systems have no hard links. Then another process can take the name between this
            // check and the next call.
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

    /// Makes the folder, and missing folders above it.
    public func makeFolders(mode: UInt32 = 0o777) throws(FileError) {
        if isFolder { return }
        let parent = removingLastComponent()
        if parent != self && !parent.isEmpty { try parent.makeFolders(mode: mode) }
        guard mkdir(string, mode) == 0 || (errno == EEXIST && isFolder) else { throw .last(self) }
    }

    /// Free bytes on the file system of this folder; nil if they are unknown.
    public var freeBytes: Int? {
        var space = statvfs()
        guard statvfs(string, &space) == 0 else { return nil }
        return Int(clamping: UInt64(space.f_bavail) &* UInt64(space.f_frsize))
    }
}
