// What the tests of this room share: fixtures, temporary folders, memory.

import Checkpoints
import FoundationEssentials
import Glibc
import Ground
import Tensors
import Testing

/// A path below Tests/Golden.
func golden(_ path: String) -> String {
    "/" + #filePath.split(separator: "/").dropLast(2).joined(separator: "/") + "/Golden/" + path
}

func decode<T: Decodable>(_ type: T.Type, _ path: String) throws -> T {
    let data = try #require(FileManager.default.contents(atPath: path))
    return try JSONDecoder().decode(T.self, from: data)
}

/// A folder that is removed when the test is over.
final class TemporaryFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/checkpoints-XXXXXX".utf8CString)
        path = try #require(mkdtemp(&template).map { String(cString: $0) })
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String, _ bytes: [UInt8]) throws -> String {
        let full = path + "/" + name
        let stream = try #require(fopen(full, "w"))
        fwrite(bytes, 1, bytes.count, stream)
        fclose(stream)
        return full
    }

    var contents: [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
    }
}

/// Peak resident memory of this process so far.
func peakMemory() -> Int {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return usage.ru_maxrss * 1024
}

extension Tensor {
    var bytes: [UInt8] {
        [UInt8](UnsafeRawBufferPointer(start: hostAddress, count: byteCount))
    }
}

func sha256(_ message: [UInt8]) -> String { message.withUnsafeBytes { SHA256.hexadecimal($0) } }
