// What the tests of the study share.

import FoundationEssentials

let projectFolder: String = {
    let parts = #filePath.split(separator: "/").dropLast(4)
    return "/" + parts.joined(separator: "/")
}()

/// A file that is gone at the end.
func withTemporaryFile<R>(_ text: String? = nil, _ body: (String) throws -> R) throws -> R {
    let path = "/tmp/nano-study-\(UInt64.random(in: 0...UInt64.max)).txt"
    if let text { try Data(text.utf8).write(to: URL(filePath: path)) }
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
}
