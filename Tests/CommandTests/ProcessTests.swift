/// What only a whole process shows: signals, and an output that cannot be written.

import Glibc
import Ground
import SystemPackage
import Testing

/// The program that is built beside the tests.
private let program = FilePath("/proc/self/exe").followingLinks.folder.appending("turbodiffusion")
    .string
private let nano =
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/") + "/Models/nano"

/// Runs a script of the shell, `$P` being the program, in a folder that is gone afterwards.
/// - Returns: what it printed to its standard output.
private func shell(_ script: String) throws -> [String] {
    var template = Array("/tmp/process-XXXXXX".utf8CString)
    let folder = FilePath(try #require(mkdtemp(&template).map { String(cString: $0) }))
    defer { _ = Glibc.system("rm -r '\(folder)'") }
    let output = FilePath(folder.string + ".out")
    defer { unlink(output.string) }
    setenv("P", program, 1)
    setenv("NANO", nano, 1)
    #expect(Glibc.system("cd '\(folder)' && { \(script); } > '\(output)'") == 0)
    return String(decoding: try output.contents(), as: UTF8.self)
        .split(separator: "\n").map(String.init)
}

@Suite struct ProcessTests {
    @Test("a result that cannot be written is an error; a reader that has gone is not told")
    func outputs() throws {
        let lines = try shell(
            """
            "$P" inspect "$NANO/vae.safetensors" > /dev/full 2> words; echo $?; cat words;
            { "$P" inspect "$NANO/vae.safetensors" 2> words; echo $? > code; } | true; cat code words
            """)
        #expect(lines == ["1", "cannot write the output: No space left on device", "1"])
    }
}
