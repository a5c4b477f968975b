/// Questions to the file system that several rooms ask.

import Glibc
public import SystemPackage

extension FilePath {
    /// The folder that the file is in: `.` where the path names none.
    public var folder: FilePath {
        let folder = removingLastComponent()
        return folder.isEmpty ? "." : folder
    }

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
    public func makeFolders() throws(FileError) {
        if isFolder { return }
        let parent = removingLastComponent()
        if parent != self && !parent.isEmpty { try parent.makeFolders() }
        guard mkdir(string, 0o777) == 0 || (errno == EEXIST && isFolder) else { throw .last(self) }
    }

    /// Bytes that can still be written in this folder; nil where the file system does not say.
    public var freeBytes: Int? {
        var space = statvfs()
        guard statvfs(string, &space) == 0 else { return nil }
        return Int(clamping: UInt64(space.f_bavail) &* UInt64(space.f_frsize))
    }
}
