// Which libraries are opened: none from places that other users can change.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import CUDA

@Suite struct LibraryTests {
    /// Runs `body` with a folder that holds a library under an invented name.
    private func withLibrary(_ body: (_ folder: String, _ name: String) throws -> Void) throws {
        var template = Array("/tmp/turbodiffusion-library-XXXXXX".utf8CString)
        let folder = FilePath(platformString: try #require(mkdtemp(&template)))
        let name = "libinvented-\(folder.lastComponent!).so.1"
        defer {
            unlink(folder.appending(name).string)
            rmdir(folder.string)
        }
        let loaded = try #require(
            String(decoding: try FilePath("/proc/self/maps").contents(), as: UTF8.self)
                .split(separator: "\n").first { $0.hasSuffix("/libm.so.6") }?.split(separator: " ")
                .last)
        try PendingFile.write(
            try FilePath(String(loaded)).contents(), to: folder.appending(name), overwrite: false)
        try body(folder.string, name)
    }

    @Test func wellKnownFoldersCountUnlessOthersCanChangeThem() throws {
        try withLibrary { folder, name in
            chmod(folder, 0o755)
            let found = try SharedLibrary.open([name], in: [], wellKnown: [folder])
            #expect(found.path == "\(folder)/\(name)")
            chmod(folder, 0o777)
            #expect {
                try SharedLibrary.open([name], in: [], wellKnown: [folder])
            } throws: { "\($0)".contains("other users can change \(folder)") }
            // Who names a folder is free to.
            let named = try SharedLibrary.open([name], in: [folder], wellKnown: [])
            #expect(named.path == "\(folder)/\(name)")
        }
    }

    @Test func packsThatOthersCanChangeAreRefused() throws {
        try withLibrary { folder, name in
            chmod(folder, 0o777)
            #expect {
                try KernelSource(pack: "\(folder)/\(name)", cache: nil)
            } throws: { "\($0)".contains("other users can change \(folder)") }
            chmod(folder, 0o755)
            #expect {
                try KernelSource(pack: "\(folder)/\(name)", cache: nil)
            } throws: { "\($0)".contains("damaged") }
        }
    }

    @Test func theCacheIsWhereXDGSays() {
        func cache(_ variables: [String: String]) -> String? {
            KernelCache.user { variables[$0] }?.folder
        }
        #expect(
            cache(["XDG_CACHE_HOME": "/root/x", "HOME": "/root"])
                == "/root/x/turbodiffusion/kernels")
        #expect(
            cache(["XDG_CACHE_HOME": "x", "HOME": "/root"]) == "/root/.cache/turbodiffusion/kernels"
        )
        #expect(cache(["HOME": "relative"]) == nil)
        #expect(cache([:]) == nil)
    }
}
