/// Files of keys.

import FoundationEssentials
import Testing

@testable import Service

@Suite struct KeyFileTests {
    private func keys(_ text: String, mode: Int) throws -> APIKeys {
        let path =
            FileManager.default.temporaryDirectory.path
            + "/keys-\(UInt64.random(in: 0...UInt64.max))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        _ = FileManager.default.createFile(atPath: path, contents: Data(text.utf8))
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
        return try APIKeys(path: path)
    }

    @Test("Keys are lines without comments")
    func lines() throws {
        let keys = try keys("# all\n\n  0123456789abcdef \r\nfedcba9876543210", mode: 0o600)
        #expect(keys.accept("0123456789abcdef") && keys.accept("fedcba9876543210"))
        #expect(!keys.accept("# all") && !keys.accept(""))
    }

    @Test("Files that others can read, keys that can be guessed and files without one are refused")
    func refused() {
        #expect(throws: ServiceError.self) { try keys("0123456789abcdef", mode: 0o644) }
        #expect(throws: ServiceError.self) { try keys("short", mode: 0o600) }
        #expect(throws: ServiceError.self) { try keys("# none", mode: 0o600) }
        #expect(throws: ServiceError.self) { try APIKeys(path: "/nothing/here") }
    }
}
