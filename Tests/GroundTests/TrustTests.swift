// Whose files are used: of folders that others can change none.

import Glibc
import Ground
import SystemPackage
import Testing

@Suite struct TrustTests {
    @Test func foldersThatOthersCanChange() throws {
        var template = Array("/tmp/turbodiffusion-trust-XXXXXX".utf8CString)
        let folder = FilePath(platformString: try #require(mkdtemp(&template)))
        defer {
            for name in ["a/b/file", "link"] { unlink(folder.appending(name).string) }
            for name in ["a/b", "a", ""] { rmdir(folder.appending(name).string) }
        }
        let (a, b) = (folder.appending("a"), folder.appending("a/b"))
        for path in [a, b] { mkdir(path.string, 0o700) }
        let file = b.appending("file")
        try PendingFile.write([1], to: file, overwrite: false)
        symlink("a/b", folder.appending("link").string)
        let linked = folder.appending("link/file")
        // Everybody can write to /tmp, but nobody can replace other users' files there.
        #expect(file.changeableByOthers == nil && linked.changeableByOthers == nil)
        chmod(a.string, 0o777)
        #expect(file.changeableByOthers == a && linked.changeableByOthers == a)
        chmod(a.string, 0o1777)
        #expect(file.changeableByOthers == nil)
        chmod(a.string, 0o755)
        chmod(file.string, 0o646)
        #expect(file.changeableByOthers == file && linked.changeableByOthers == linked)
        chmod(file.string, 0o644)
        // Another's group may be shared; that with the owner's number is the owner's own.
        chmod(b.string, 0o775)
        #expect(file.changeableByOthers == nil)
        if geteuid() == 0 {
            chown(b.string, 0, 4321)
            chmod(b.string, 0o775)
            #expect(file.changeableByOthers == b)
            chown(b.string, 4321, 4321)
            chmod(b.string, 0o755)
            #expect(file.changeableByOthers == b)
        }
        #expect(folder.appending("none/at/all").changeableByOthers == nil)
        chmod(folder.string, 0o777)
        #expect(folder.appending("none/at/all").changeableByOthers == folder)
        #expect(FilePath("/usr/bin").changeableByOthers == nil)
    }
}
