// PendingOutput: a file, or a folder of pictures, that exists under a temporary name until it is whole.

import Glibc
import Ground
import SystemPackage

struct PendingOutput: Sendable {
    let path: String
    let format: VideoFormat
    /// Where a file appears: what a symbolic link leads to, not the link.
    private let target: FilePath
    /// The folder that the result goes to.
    private let folder: String
    /// Where the encoder writes: a file, or for a sequence a folder.
    private let temporary: TemporaryPath
    /// Whether `folder` itself is ours, to be removed with the rest.
    private let makesFolder: Bool

    init(path: String, format: VideoFormat) {
        self.path = path
        self.format = format
        target = FilePath(path).followingLinks
        if case .pngSequence(let target, _) = format {
            folder = target
            makesFolder = Files.status(target) == nil
            temporary = TemporaryPath(beside: FilePath(target).appending("frames"))
        } else {
            folder = target.folder.string
            makesFolder = false
            temporary = TemporaryPath(
                beside: target, suffix: "." + Files.fileExtension(path))
        }
    }

    /// The name that ffmpeg is given.
    var encoderTarget: String {
        let temporary = temporary.path.string
        guard case .pngSequence(_, let pattern) = format else { return "file:" + temporary }
        let escaped = temporary.split(separator: "%", omittingEmptySubsequences: false)
            .joined(separator: "%%")
        return "file:\(escaped)/\(pattern)"
    }

    func check() throws(MediaError) {
        if case .pngSequence = format {
            if makesFolder {
                try Files.checkWritable(folder: Files.split(folder).folder, for: path)
            } else {
                try Files.checkWritable(folder: folder, for: path)
            }
        } else if Files.isFolder(path) {
            throw .unwritable(path: path, reason: "it is a folder")
        } else {
            try Files.checkWritable(folder: folder, for: path)
        }
    }

    /// Makes the folders of a sequence.
    func prepare() throws(MediaError) {
        guard case .pngSequence = format else { return }
        if makesFolder { try makeFolder(folder) }
        try makeFolder(temporary.path.string)
    }

    private func makeFolder(_ name: String) throws(MediaError) {
        guard mkdir(name, 0o777) == 0 else {
            throw .unwritable(path: path, reason: Files.lastError)
        }
    }

    /// Adds the metadata that the encoder could not write and gives the result its name.
    func commit(metadata: String?) throws(MediaError) {
        let temporary = temporary.path.string
        if case .pngSequence = format {
            let names = (try? self.temporary.path.fileNames()) ?? []
            for name in names {
                let file = temporary + "/" + name
                if let metadata { try Metadata.embed(metadata, in: file, format: .png) }
            }
            for name in names { try Files.move(temporary + "/" + name, to: folder + "/" + name) }
            rmdir(temporary)
            return
        }
        guard Files.size(temporary) > 0 else {
            throw .ffmpegFailed(lines: "it wrote nothing and gave no reason")
        }
        if let metadata { try Metadata.embed(metadata, in: temporary, format: format) }
        try Files.move(temporary, to: target.string)
    }

    func discard() {
        temporary.remove()
        if makesFolder { rmdir(folder) }
    }
}
