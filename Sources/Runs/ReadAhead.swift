/// Reading files into the system's page cache before they are needed, so that disk and device work at the same time.

import Checkpoints
import Dispatch
import Glibc
import Ground
import Synchronization
import SystemPackage

/// In the background, asks the system to read one file after the other, and then compares their checksums, which the
/// loading of single tensors does not. Stops when it is released.
final class ReadAhead: Sendable {
    private let isWanted: Wanted

    /// A flag that is shared with the background work.
    private final class Wanted: Sendable {
        let value = Atomic(true)
    }

    /// - Parameter models: in the order of their use: their paths, which are files or folders of files, and what was
    ///   opened there. Reading ends at the first that does not fit into the available memory: its pages would displace
    ///   others that are needed sooner.
    /// - Parameter damaged: is given a message for every file whose checksum is wrong.
    init(
        _ models: [(path: String, opened: OpenedModel)],
        damaged: @escaping @Sendable (String) -> Void
    ) {
        let isWanted = Wanted()
        self.isWanted = isWanted
        DispatchQueue.global(qos: .utility).async {
            // 2 GiB are left for the process itself.
            var left = HostMemory.current.available - (2 << 30)
            for file in models.flatMap({ Self.files($0.path) }) {
                left -= Self.read(file, upTo: left) { isWanted.value.load(ordering: .relaxed) }
                if left < 0 { return }
            }
            for model in models {
                let error = model.opened.damage { isWanted.value.load(ordering: .relaxed) }
                if let error { damaged(error.description) }
            }
        }
    }

    deinit { isWanted.value.store(false, ordering: .relaxed) }

    /// The files of the checkpoint at a path.
    static func files(_ path: String) -> [String] {
        let isIndex = path.hasSuffix(".index.json")
        let folder = isIndex ? FilePath(path).folder : FilePath(path)
        guard let names = try? folder.fileNames() else { return isIndex ? [] : [path] }
        return names.filter { $0.hasSuffix(".safetensors") }.map { folder.appending($0).string }
    }

    /// Asks the system to read one file, unless it is larger than `limit` bytes.
    /// - Returns: its size in bytes in either case; 0 if it cannot be opened.
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
