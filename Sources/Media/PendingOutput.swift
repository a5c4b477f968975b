// PendingOutput: a video, a picture or a folder of pictures that has no name until it is complete.

import Glibc
import Ground
import SystemPackage

/// What an encoder writes: one file, or the concatenated pictures of a sequence, which become separate files at the end.
final class PendingOutput {
    private enum Target {
        case file(PendingFile)
        case pictures(ScratchFile, FrameNames)
    }

    private let path: String
    private let format: VideoFormat
    private let replaces: Bool
    private let target: Target
    /// An empty hidden file beside the target, which shows that something is being written there.
    private let sign: TemporaryPath
    private let signLock: Descriptor?

    init(path: String, format: VideoFormat, replaces: Bool) throws(MediaError) {
        self.path = path
        self.format = format
        self.replaces = replaces
        let folder = Self.folder(path, format)
        do throws(FileError) {
            sign = TemporaryPath(beside: folder.appending(Files.split(path).name))
            signLock = Descriptor(try sign.makeFile())
            target =
                switch format {
                case .pngSequence(let names): .pictures(try ScratchFile(in: folder), names)
                default: .file(try PendingFile(FilePath(path), overwrite: replaces))
                }
        } catch { throw MediaError(writing: path, error) }
    }

    /// The folder whose disk holds the bytes until they have a name.
    private static func folder(_ path: String, _ format: VideoFormat) -> FilePath {
        guard case .pngSequence(let names) = format else {
            return FilePath(path).followingLinks.folder
        }
        return names.folder.isFolder ? names.folder : names.folder.followingLinks.folder
    }

    /// Refuses what would otherwise fail at the end.
    /// - Returns: a nameless file in the output's folder. Making one is the only sure test: permission bits tell nothing
    ///   about read-only file systems, and do not bind root.
    @discardableResult
    static func check(path: String, format: VideoFormat, replaces: Bool) throws(MediaError)
        -> ScratchFile
    {
        if case .pngSequence(let names) = format {
            if let type = names.folder.fileType, type != .directory {
                throw .unwritable(path: path, reason: "\(names.folder) is not a folder")
            }
            for (_, picture) in names.existing() {
                if !replaces { throw .exists(path: picture.string) }
                // A rename would fail after others have their names.
                if picture.fileType == .directory {
                    throw .unwritable(path: picture.string, reason: "it is a folder")
                }
            }
        } else {
            switch FilePath(path).fileType {
            case nil: break
            case .regular: if !replaces { throw .exists(path: path) }
            case .directory: throw .unwritable(path: path, reason: "it is a folder")
            default: throw .unwritable(path: path, reason: "it is not a regular file")
            }
        }
        let folder = folder(path, format)
        guard folder.isFolder else { throw .noSuchFolder(path: folder.string) }
        var name = FilePath(path).followingLinks.lastComponent
        if case .pngSequence(let names) = format { name = names.path(1).lastComponent }
        do throws(FileError) {
            try folder.appending(name?.string ?? "").checkName()
            return try ScratchFile(in: folder)
        } catch {
            throw MediaError(writing: path, error)
        }
    }

    /// The encoder's standard output.
    var descriptor: Int32 {
        switch target {
        case .file(let file): file.descriptor
        case .pictures(let file, _): file.descriptor
        }
    }

    /// Adds the metadata that the encoder could not write and gives the result its name.
    /// - Returns: that name, with a number if another file has taken the wanted one in the meantime.
    func commit(metadata: String?) throws(MediaError) -> String {
        guard let size = sizeOfFile(descriptor), size > 0 else { throw Self.wroteNothing }
        switch target {
        case .file(let file):
            return try writing { () throws(FileError) in
                if let metadata, let kind = Metadata.Kind(format),
                    let bytes = readBytes(descriptor, from: 0, count: size),
                    let whole = Metadata.adding(metadata, to: bytes, kind)
                {
                    try file.write(whole)
                }
                let name = try numbered(file.path) { name throws(FileError) in
                    try file.commit(as: name)
                }
                return name == file.path ? path : name.string
            }
        case .pictures(let file, let names):
            let pictures = try Self.pictures(in: file)
            return try writing { () throws(FileError) in
                try commit(pictures, of: file, names, metadata)
            }
        }
    }

    static let wroteNothing = MediaError.ffmpegFailed(lines: "it wrote nothing and gave no reason")

    private func writing<Result>(_ body: () throws(FileError) -> Result) throws(MediaError)
        -> Result
    {
        do throws(FileError) { return try body() } catch { throw MediaError(writing: path, error) }
    }

    /// Tries `name`; if that is taken and not to be replaced, tries it with numbers.
    private func numbered(
        _ name: FilePath, _ body: (FilePath) throws(FileError) -> Void
    ) throws(FileError) -> FilePath {
        var (attempt, number) = (name, 2)
        while true {
            do throws(FileError) {
                try body(attempt)
                return attempt
            } catch {
                guard case .exists = error, !replaces else { throw error }
                attempt = name.numbered(number)
                number += 1
            }
        }
    }

    // MARK: Sequences

    /// The ranges of the PNG files that an encoder has written one after the other.
    private static func pictures(in file: ScratchFile) throws(MediaError) -> [Range<Int>] {
        let (size, end) = (file.size, ImageHeader.code("IEND"))
        var pictures: [Range<Int>] = []
        var at = 0
        while at < size {
            var next = at + 8
            while true {
                guard let head = readBytes(file.descriptor, from: next, count: 8),
                    let length = head.bigEndian(0, 4), let name = head.bigEndian(4, 4),
                    next + 12 + length <= size
                else { throw .ffmpegFailed(lines: "it wrote an incomplete picture") }
                next += 12 + length
                if name == end { break }
            }
            pictures.append(at..<next)
            at = next
        }
        return pictures
    }

    /// Writes the files into a temporary folder, which then gets the wanted name, or whose files are moved to the folder
    /// that has it: thus a full disk is noticed before any of them has its name.
    private func commit(
        _ pictures: [Range<Int>], of file: ScratchFile, _ names: FrameNames, _ metadata: String?
    ) throws(FileError) -> String {
        let isThere = names.folder.isFolder
        let temporary = TemporaryPath(
            beside: isThere ? names.folder.appending("frames") : names.folder.followingLinks)
        try temporary.makeFolder()
        var inside = names
        inside.folder = temporary.path
        for (index, range) in pictures.enumerated() {
            var bytes = try file.read(from: range.lowerBound, count: range.count)
            if let metadata { bytes = Metadata.adding(metadata, to: bytes, .png) ?? bytes }
            try PendingFile.write(
                bytes, to: inside.path(index + 1), overwrite: false, durable: false)
        }
        guard isThere, replaces || names.existing().isEmpty else {
            let folder = try numbered(names.folder.followingLinks) { folder throws(FileError) in
                try temporary.move(to: folder, replacing: false)
            }
            return folder == names.folder.followingLinks ? path : folder.string
        }
        for number in 1...pictures.count {
            try inside.path(number).move(to: names.path(number), replacing: replaces)
        }
        // Pictures of an earlier, longer sequence must not remain among the new ones.
        for (number, path) in names.existing() where !(1...pictures.count).contains(number) {
            unlink(path.string)
        }
        return path
    }
}
