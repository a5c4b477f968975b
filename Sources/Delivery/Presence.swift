/// What is in folders already.

import Glibc
import Media
import SystemPackage

func isPresent(_ path: String) -> Bool { access(path, F_OK) == 0 }

/// Names of the files in a folder, sorted; hidden ones and folders do not count.
func fileNames(in folder: FilePath) throws(Errno) -> [String] {
    guard let stream = opendir(folder.string) else { throw Errno(rawValue: errno) }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if !name.hasPrefix("."), entry.pointee.d_type != DT_DIR { names.append(name) }
    }
    return names.sorted()
}

/// Whether a file of that name is there; of a pattern, one of its pictures.
func isTaken(_ path: String) -> Bool {
    guard case .pngSequence(let folder, let pattern)? = try? VideoFormat(path: path) else {
        return isPresent(path)
    }
    let parts = pattern.split(separator: "%", omittingEmptySubsequences: false)
    guard parts.count == 2, let letter = parts[1].firstIndex(of: "d") else { return false }
    let (head, tail) = (parts[0], parts[1][parts[1].index(after: letter)...])
    let names = (try? fileNames(in: FilePath(folder))) ?? []
    return names.contains { name in
        name.hasPrefix(head) && name.hasSuffix(tail) && name.count > head.count + tail.count
            && name.dropFirst(head.count).dropLast(tail.count).allSatisfy {
                $0.isASCII && $0.isNumber
            }
    }
}
