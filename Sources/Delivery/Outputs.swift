/// The files of a run: one video, or one for each sample and a grid of them all. Everything that can be known to be
/// wrong with them is found before the run begins.

import Families
import Ground
public import Media
public import Runs
import SystemPackage
import Tensors

/// Where the frames of a run go.
public struct Outputs: Sendable, Equatable {
    /// What happens to files that are there already.
    public enum Existing: Sendable, Hashable {
        case refuse, replace
        /// They stay; the new ones are called `video-2.mp4`, and so on.
        case number
    }

    /// As it was asked for, or numbered; of several samples, the grid.
    public let path: String
    public let format: VideoFormat
    /// One for each sample, then the grid where there are several. None of a run that ends with its latents.
    public let files: [String]
    /// Of one video.
    let width, height, frames: Int
    public let samples: Int
    public let framesPerSecond: Int
    /// Quality, where it was chosen.
    public let crf: Int?
    let replaces: Bool
    /// Made for the run, where it is missing.
    let makesFolder: Bool

    /// - Parameters:
    ///   - path: its ending, or a pattern of picture names, decides the format.
    ///   - makesFolder: whether the innermost folder is made where it is missing.
    /// - Throws: `MediaError` for a name that no format has, ``OutputError`` for files that are there already.
    public init(
        of run: Run, path: String, crf: Int? = nil, existing: Existing = .refuse,
        makesFolder: Bool = false
    ) throws {
        format = try VideoFormat(path: path)
        (width, height, frames) = (run.video.w, run.video.h, run.video.t)
        samples = run.samples
        framesPerSecond = run.request.framesPerSecond
        self.crf = crf
        self.makesFolder = makesFolder
        replaces = existing == .replace
        guard run.options.makesFrames else {
            (self.path, files) = (path, [])
            return
        }
        func isFree(_ path: String) -> Bool {
            !Self.files(path, run.samples).contains(where: isTaken)
        }
        var path = path
        if existing == .number {
            let first = path
            var number = 1
            while !isFree(path) {
                number += 1
                path = Self.renamed(first) { "\($0)-\(number)" }
            }
        }
        self.path = path
        files = Self.files(path, run.samples)
        if existing == .refuse, let taken = files.first(where: isTaken) {
            throw OutputError.exists(path: taken)
        }
    }

    private static func files(_ path: String, _ samples: Int) -> [String] {
        samples == 1 ? [path] : (0..<samples).map { name(path, ofSample: $0) } + [path]
    }

    /// "a.b/c.mp4", 2 → "a.b/c_2.mp4"; "frames/%04d.png" → "frames/s2_%04d.png"; "out/" → "out/s2_%04d.png"
    static func name(_ path: String, ofSample sample: Int) -> String {
        if path.hasSuffix("/") { return path + "s\(sample)_%04d.png" }
        if FilePath(path).lastComponent?.string.contains("%") == true {
            return renamed(path) { "s\(sample)_\($0)" }
        }
        return renamed(path) { "\($0)_\(sample)" }
    }

    /// Another stem, in the same folder and with the same extension.
    private static func renamed(_ path: String, _ name: (String) -> String) -> String {
        let path = FilePath(path)
        guard let last = path.lastComponent else { return path.string }
        let ending = last.extension.map { "." + $0 } ?? ""
        return path.removingLastComponent().appending(name(last.stem) + ending).string
    }

    /// Columns and rows of the grid: as near to a square as whole rows allow.
    var grid: (columns: Int, rows: Int) {
        var columns = 1
        while columns * columns < samples { columns += 1 }
        return (columns, ceilDivide(samples, columns))
    }

    /// Bytes of the frames that wait for the grid.
    var waitingBytes: Int {
        (samples - 1) * frames * format.pixelFormat.frameBytes(width: width, height: height)
    }
}

/// Whether a file of that name is there; of a pattern, one of its pictures.
private func isTaken(_ path: String) -> Bool {
    guard case .pngSequence(let names)? = try? VideoFormat(path: path) else {
        return FilePath(path).exists
    }
    return !names.existing().isEmpty
}

/// Files that cannot be written.
public enum OutputError: Error, Sendable, Hashable, Codable {
    case exists(path: String)
    /// The name says something else than what will be in the file.
    case suffix(path: String, expected: String)
    /// Two results of one name.
    case twice(path: String)
    /// More than the format can hold.
    case limit(path: String, what: String, found: String, expected: String)
    case space(folder: String, neededBytes: Int, freeBytes: Int)
    case temporary(folder: String, reason: String)
}

extension OutputError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .exists(let path): "\(path) exists already"
        case .suffix(let path, let expected): "\(path): the name must end in \(expected)"
        case .twice(let path): "\(path) is named for two results"
        case .limit(let path, let what, let found, let expected):
            "\(path): \(what) must be \(expected), not \(found)"
        case .space(let folder, let needed, let free):
            "the frames that wait for the grid take \(needed >> 20) MiB, \(folder) has \(free >> 20) MiB: "
                + "set TMPDIR to a folder with more space"
        case .temporary(let folder, let reason):
            "the frames that wait for the grid cannot be kept in \(folder): \(reason)"
        }
    }
}

// MARK: - Checks

extension Outputs {
    /// Refuses what would fail after the work: folders, formats, space, and an encoder that cannot do it, which is tried
    /// with a black frame. Leaves nothing behind.
    /// - Parameters:
    ///   - metadata: what the files will say about their making.
    ///   - save: products of the run that are written too.
    public func check(metadata: String, save: RunOptions.Files = .init()) async throws {
        if !files.isEmpty { try checkFormat(metadataBytes: metadata.utf8.count) }
        let saved = [save.text, save.conditioning, save.latents].compactMap { $0 }
        var names = Set<FilePath>()
        for path in files + saved {
            let file = FilePath(path).followingLinks.lexicallyNormalized()
            guard names.insert(file).inserted else { throw OutputError.twice(path: path) }
        }
        for path in saved {
            guard path.hasSuffix(".safetensors") else {
                throw OutputError.suffix(path: path, expected: ".safetensors")
            }
            if !replaces, FilePath(path).exists { throw OutputError.exists(path: path) }
            try checkWritable(path)
        }
        if files.isEmpty { return }
        for path in files { try VideoWriter.check(path: probe(path)) }
        try await VideoWriter.check(
            VideoWriter.Options(
                path: probe(path), replaces: replaces, width: width, height: height,
                framesPerSecond: Double(framesPerSecond),
                pixelFormat: format.pixelFormat, crf: crf, metadata: metadata),
            frames: frames)
        guard samples > 1 else { return }
        let folder = FilePath.temporaryFolder
        guard let free = folder.freeBytes, waitingBytes > free else { return }
        throw OutputError.space(folder: folder.string, neededBytes: waitingBytes, freeBytes: free)
    }

    /// A name that can be tried: one beside the folder that is yet to be made.
    private func probe(_ path: String) -> String {
        let folder = FilePath(path).removingLastComponent()
        guard makesFolder, !folder.isEmpty, !folder.exists, let name = FilePath(path).lastComponent
        else { return path }
        return folder.removingLastComponent().appending(name).string
    }

    private func checkFormat(metadataBytes: Int) throws(OutputError) {
        func require(_ isRight: Bool, _ what: String, _ found: Any, _ expected: String)
            throws(OutputError)
        {
            guard isRight else {
                throw .limit(path: path, what: what, found: "\(found)", expected: expected)
            }
        }
        try require(
            (1...240).contains(framesPerSecond), "frames per second", framesPerSecond, "1 to 240")
        let qualities: ClosedRange<Int>? =
            switch format {
            case .mp4: 0...51
            case .webm: 0...63
            default: nil
            }
        if let qualities, let crf {
            try require(
                qualities.contains(crf), "quality (crf)", crf,
                "\(qualities.lowerBound) to \(qualities.upperBound)")
        }
        switch format {
        case .png:
            try require(
                frames == 1, "the number of frames", frames,
                "1 (for more, a pattern: frames/%04d.png)")
        case .gif:
            try require(framesPerSecond <= 50, "frames per second", framesPerSecond, "at most 50")
        default: break
        }
        let (columns, rows) = grid
        let side = format == .webp ? 16383 : Resolution.longestSide
        for (what, size) in [("width", width * columns), ("height", height * rows)] {
            try require(
                size <= side, samples > 1 ? "the \(what) of the grid" : "the \(what)", size,
                "at most \(side)")
        }
        try require(
            metadataBytes <= 96 << 10, "the request in the file", "\(metadataBytes) bytes",
            "at most \(96 << 10) bytes (shorten the prompt)")
    }

    /// Proves that a file can be made beside `path`, by making one.
    private func checkWritable(_ path: String) throws {
        let folder = FilePath(path).folder
        guard folder.isFolder else { throw MediaError.noSuchFolder(path: folder.string) }
        do throws(FileError) {
            try FilePath(path).followingLinks.checkName()
            _ = try ScratchFile(in: folder)
        } catch {
            throw MediaError.unwritable(path: path, reason: error.reason)
        }
    }
}
