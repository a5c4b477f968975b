/// What is in folders already.

import Ground
import Media
import SystemPackage

/// Whether a file of that name is there; of a pattern, one of its pictures.
func isTaken(_ path: String) -> Bool {
    guard case .pngSequence(let folder, let pattern)? = try? VideoFormat(path: path) else {
        return FilePath(path).exists
    }
    let parts = pattern.split(separator: "%", omittingEmptySubsequences: false)
    guard parts.count == 2, let letter = parts[1].firstIndex(of: "d") else { return false }
    let (head, tail) = (parts[0], parts[1][parts[1].index(after: letter)...])
    let names = (try? FilePath(folder).fileNames()) ?? []
    return names.contains { name in
        name.hasPrefix(head) && name.hasSuffix(tail) && name.count > head.count + tail.count
            && name.dropFirst(head.count).dropLast(tail.count).allSatisfy {
                $0.isASCII && $0.isNumber
            }
    }
}
