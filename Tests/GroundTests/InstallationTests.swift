// What was installed with a program is found beside it.

import Glibc
import SystemPackage
import Testing

@testable import Ground

@Suite struct InstallationTests {
    @Test("the packages of every Python of an environment, then the environment itself")
    func packages() throws {
        var template = Array("/tmp/ground-XXXXXX".utf8CString)
        let prefix = FilePath(try #require(mkdtemp(&template).map { String(cString: $0) }))
        let folders = [
            "lib", "lib/python3.9", "lib/python3.9/dist-packages", "lib/python3.12",
            "lib/python3.12/site-packages", "lib/perl5",
        ].map { prefix.appending($0) }
        for folder in folders { #expect(mkdir(folder.string, 0o755) == 0) }
        defer { for folder in folders.reversed() + [prefix] { rmdir(folder.string) } }
        let found = Set(Installation.packages(under: prefix))
        #expect(found == [folders[2], folders[4], prefix])
        #expect(Installation.packages(under: prefix).last == prefix)
        #expect(Installation.packages(under: "/nonexistent") == ["/nonexistent"])
    }

    @Test("this program's file is known")
    func program() throws {
        let program = try #require(Installation.program)
        #expect(program.isAbsolute && program.isRegularFile)
    }
}
