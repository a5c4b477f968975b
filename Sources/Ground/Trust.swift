/// Whether other users can change a file that is going to be executed.

import Glibc
public import SystemPackage

extension FilePath {
    /// The file or the first of its folders that another user can change, by its permissions or as its owner; nil if
    /// only root, this user and the owner of the running program can. If the file does not exist, the nearest existing
    /// folder counts.
    ///
    /// A group with the same number as the owner counts as the owner's private group, which many systems make for each
    /// user.
    public var changeableByOthers: FilePath? {
        let trusted: Set<uid_t> = [0, geteuid(), FilePath("/proc/self/exe").owner ?? 0]
        guard let real = realpath(string, nil) else {
            let folder = folder
            return folder == self || string.isEmpty ? nil : folder.changeableByOthers
        }
        defer { free(real) }
        // Both the folders of the path as written (which may contain links) and those of the real path are checked.
        for path in [FilePath(string), FilePath(platformString: real)] {
            var path = path.isAbsolute ? path : FilePath.currentFolder.pushing(path)
            while true {
                if path.isChangeable(byOthersThan: trusted) { return path }
                guard path.removeLastComponent() else { break }
            }
        }
        return nil
    }

    private static var currentFolder: FilePath {
        guard let name = getcwd(nil, 0) else { return "/" }
        defer { free(name) }
        return FilePath(platformString: name)
    }

    private var status: Glibc.stat? {
        var status = Glibc.stat()
        return fstatat(AT_FDCWD, string, &status, 0) == 0 ? status : nil
    }

    private var owner: uid_t? { status?.st_uid }

    private func isChangeable(byOthersThan trusted: Set<uid_t>) -> Bool {
        guard let status else { return false }
        if !trusted.contains(status.st_uid) { return true }
        // In a sticky folder such as /tmp nobody can replace files of another user.
        if status.st_mode & S_IFMT == S_IFDIR && status.st_mode & S_ISVTX != 0 { return false }
        let isOwnGroup = status.st_gid == 0 || status.st_gid == status.st_uid
        return status.st_mode & S_IWOTH != 0 || (status.st_mode & S_IWGRP != 0 && !isOwnGroup)
    }
}
