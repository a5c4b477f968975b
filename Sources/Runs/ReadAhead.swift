/// Files brought into the system's page cache before they are wanted, so that a cold disk works while the device does.

import Checkpoints
import Dispatch
import Glibc
import Ground
import Synchronization
import SystemPackage

/// Asks the system for files, one after the other, in the background, and then compares their checksums, which
/// reading only what is wanted next would leave out; stops when it is let go.
final class ReadAhead: Sendable {
    private let isWanted: Wanted

    /// Shared with the thread that asks.
    private final class Wanted: Sendable {
        let value = Atomic(true)
    }

    /// - Parameter paths: checkpoints in the order of their use: files, or folders of files. One that does not fit into
    ///   the memory that is available now ends the list: its pages would push out those that are wanted sooner.
    /// - Parameter damaged: told of a file whose bytes are not those that were written.
    init(_ paths: [String], damaged: @escaping @Sendable (String) -> Void) {
        let isWanted = Wanted()
        self.isWanted = isWanted
        DispatchQueue.global(qos: .utility).async {
            // What else the process needs meanwhile.
            var left = HostMemory.current.available - (2 << 30)
            for file in paths.flatMap(Self.files) {
                left -= Self.read(file, upTo: left) { isWanted.value.load(ordering: .relaxed) }
                if left < 0 { return }
            }
            for path in paths {
                let error = damage(in: path) { isWanted.value.load(ordering: .relaxed) }
                if let error { damaged(error.description) }
            }
        }
    }

    deinit { isWanted.value.store(false, ordering: .relaxed) }

    /// The checkpoint files that a path stands for.
    static func files(_ path: String) -> [String] {
        let isIndex = path.hasSuffix(".index.json")
        let folder = isIndex ? FilePath(path).folder : FilePath(path)
        guard let names = try? folder.fileNames() else { return isIndex ? [] : [path] }
        return names.filter { $0.hasSuffix(".safetensors") }.map { folder.appending($0).string }
    }

    /// Asks for one file.
    /// - Returns: its size, also where that is more than `limit` and nothing was asked for.
    static func read(_ path: String, upTo limit: Int, while isWanted: () -> Bool) -> Int {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return 0 }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return 0 }
        let size = Int(status.st_size)
        guard size <= limit else { return size }
        let piece = 16 << 20
        for start in stride(from: 0, to: size, by: piece) where isWanted() {
            posix_fadvise(descriptor, start, min(piece, size - start), POSIX_FADV_WILLNEED)
        }
        return size
    }
}
