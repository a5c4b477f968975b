/// The files of a run: one video, or one for each sample and a grid of them all. Whatever can be wrong with them is found
/// before the run begins, as far as possible.

import Families
import Ground
public import Media
public import Runs
import SystemPackage
import Tensors

/// Where the frames of a run go.
public struct Outputs: Sendable, Equatable {
    /// What to do about files that exist already.
    public enum Existing: Sendable, Hashable {
        case refuse, replace
        /// Keep them; name the new ones `video-2.mp4`, and so on.
        case number
    }

    /// The path that was asked for, perhaps with a number; with several samples, the grid.
    public let path: String
    public let format: VideoFormat
    /// One file for each sample, then the grid if there are several. Of raw frames there is one stream, sample after
    /// sample; none for a run that ends with its latents.
    public let files: [String]
    /// Of one video.
    let width, height, frames: Int
    public let samples: Int
    public let framesPerSecond: Int
    /// The quality, if one was chosen.
    public let crf: Int?
    let replaces: Bool
    /// Whether the innermost folder is made if it is missing.
    let makesFolder: Bool

    /// - Parameters:
    ///   - path: its ending, or a pattern of picture names, decides the format.
    ///   - crf: the quality; nil: the format's default.
    ///   - makesFolder: whether the innermost folder is made if it is missing.
    /// - Throws: `MediaError` for a name that no format has, ``OutputError`` for files that exist already.
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
            let isVideo = if case .pngSequence = format { false } else { true }
            if isVideo, FilePath(taken).isFolder {
                // It is no video that was made before, and --force would not replace it.
                throw MediaError.unwritable(path: taken, reason: "it is a folder")
            }
            throw OutputError.exists(path: taken)
        }
    }

    /// Whether frames go to another program instead of into files.
    public var isStream: Bool { if case .raw = format { true } else { false } }

    private static func files(_ path: String, _ samples: Int) -> [String] {
        if case .raw? = try? VideoFormat(path: path) { return [path] }
        return samples == 1 ? [path] : (0..<samples).map { name(path, ofSample: $0) } + [path]
    }

    /// "a.b/c.mp4", 2 → "a.b/c_2.mp4"; "frames/%04d.png" → "frames/s2_%04d.png"; "out/" → "out/s2_%04d.png"
    static func name(_ path: String, ofSample sample: Int) -> String {
        if path.hasSuffix("/") { return path + "s\(sample)_%04d.png" }
        if FilePath(path).lastComponent?.string.contains("%") == true {
            return renamed(path) { "s\(sample)_\($0)" }
        }
        return renamed(path) { "\($0)_\(sample)" }
    }

    /// Replaces the stem; folder and extension stay.
    private static func renamed(_ path: String, _ name: (String) -> String) -> String {
        let path = FilePath(path)
        guard let last = path.lastComponent else { return path.string }
        let ending = last.extension.map { "." + $0 } ?? ""
        return path.removingLastComponent().appending(name(last.stem) + ending).string
    }

    /// Columns and rows of the grid: the smallest square that holds all samples, without empty rows.
    var grid: (columns: Int, rows: Int) {
        var columns = 1
        while columns * columns < samples { columns += 1 }
        return (columns, ceilDivide(samples, columns))
    }

    /// Bytes of the frames that must be kept for the grid.
    var waitingBytes: Int {
        (samples - 1) * frames * format.pixelFormat.frameBytes(width: width, height: height)
    }
}

/// Whether the file exists; for a pattern, whether one of its pictures does.
private func isTaken(_ path: String) -> Bool {
    switch try? VideoFormat(path: path) {
    case .pngSequence(let names): !names.existing().isEmpty
    case .raw: false
    default: FilePath(path).exists
    }
}

/// Files that cannot be written.
public enum OutputError: Error, Sendable, Hashable, Codable {
    case exists(path: String)
    /// The file's ending does not fit its content.
    case suffix(path: String, expected: String)
    /// Two results have the same name.
    case twice(path: String)
    /// A value that the format cannot hold.
    case limit(path: String, what: String, found: String, expected: String)
    case space(folder: String, neededBytes: Int, freeBytes: Int)
    case temporary(folder: String, reason: String)
}

extension OutputError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .exists(let path): "\(path) already exists"
        case .suffix(let path, let expected): "\(path): the name must end in \(expected)"
        case .twice(let path): "\(path) is the name of two results"
        case .limit(let path, let what, let found, let expected):
            "\(path): \(what) must be \(expected), not \(found)"
        case .space(let folder, let needed, let free):
            "the frames kept for the grid take \(needed >> 20) MiB, but \(folder) has only \(free >> 20) MiB free: "
                + "set TMPDIR to a folder with more space"
        case .temporary(let folder, let reason):
            "the frames for the grid cannot be kept in \(folder): \(reason)"
        }
    }
}

// MARK: - Checks

extension Outputs {
    /// Refuses what would otherwise fail after the work: folders, formats, free space, and an encoder that does not work,
    /// which is tried with a black frame. Leaves nothing behind.
    /// - Parameters:
    ///   - metadata: what the files will say about how they were made.
    ///   - save: intermediate results of the run that are written too.
    ///   - triesEncoder: false if the same encoder is known to work for such a video.
    /// - Throws: ``OutputError``, `MediaError`.
    public func check(
        metadata: String, save: RunOptions.Files = .init(), triesEncoder: Bool = true
    ) async throws {
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
        if triesEncoder {
            try await tryEncoder(metadata)
        }
        guard samples > 1, !isStream else { return }
        let folder = FilePath.temporaryFolder
        guard let free = folder.freeBytes, waitingBytes > free else { return }
        throw OutputError.space(folder: folder.string, neededBytes: waitingBytes, freeBytes: free)
    }

    private func tryEncoder(_ metadata: String) async throws {
        try await VideoWriter.check(
            VideoWriter.Options(
                path: probe(path), replaces: replaces, width: width, height: height,
                framesPerSecond: Double(framesPerSecond),
                pixelFormat: format.pixelFormat, crf: crf, metadata: metadata),
            frames: frames)
    }

    /// The path to try instead of `path` if its folder does not exist yet: beside that folder.
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
        let (columns, rows) = isStream ? (1, 1) : grid
        let side = format == .webp ? 16383 : Resolution.longestSide
        for (what, size) in [("width", width * columns), ("height", height * rows)] {
            try require(
                size <= side, samples > 1 && !isStream ? "the \(what) of the grid" : "the \(what)",
                size,
                "at most \(side)")
        }
        try require(
            metadataBytes <= 96 << 10, "the request in the file", "\(metadataBytes) bytes",
            "at most \(96 << 10) bytes (shorten the prompt)")
    }

    /// Checks that a file can be made beside `path`, by making one.
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
