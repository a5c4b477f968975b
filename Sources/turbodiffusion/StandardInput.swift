/// Standard input, whose descriptor the caller of the program may have closed.

import SystemPackage

enum StandardInput {
    /// - Returns: the number of bytes; 0 at the end.
    static func read(into buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        do { return try FileDescriptor.standardInput.read(into: buffer) } catch let error as Errno
            where error == .badFileDescriptor || error == .isDirectory
        {
            let what = error == .isDirectory ? "a folder" : "closed"
            throw UserError(
                "request.missing", "standard input is \(what): pipe in what is to be read")
        }
    }
}
