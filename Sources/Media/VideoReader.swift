// VideoReader: reads the frames of a finished video, for comparison.

import Ground
import Synchronization
import SystemPackage

/// The frames of a video, animation, picture or numbered sequence (`frames/%04d.png`), one after the other, as they are
/// stored: none is repeated, dropped or turned. It holds one frame at a time, however long the video is.
public final class FrameReader: Sendable {
    /// Frames of more pixels are refused; those of 8K video have 33.2 million.
    public static let pixelLimit = 1 << 25

    public let path: String
    public let width: Int
    public let height: Int
    public var frameBytes: Int { 3 * width * height }
    private let child: Child
    /// Writes the files of a sequence to the child.
    private let feeding: Task<Void, any Error>?
    private let count = Mutex(0)

    /// What is known before anything is decoded.
    private struct Opened {
        let file: InputFile
        let kind: MediaKind
        let width, height: Int
        /// The files of a sequence; nil: there is one file.
        let sequence: [String]?
        let ffmpeg: FFmpeg
    }

    private static func open(_ path: String, _ ffmpeg: FFmpeg?) async throws -> Opened {
        let sequence = FrameNames(path)?.existing().map(\.path.string) ?? []
        let isSequence = !sequence.isEmpty && !FilePath(path).isRegularFile
        let file = try InputFile(isSequence ? sequence[0] : path)
        let head = try file.bytes(limit: 1024)
        guard let kind = MediaKind(head) else {
            throw MediaError.notAVideo(
                path: path, reason: "its first bytes are not those of a supported video or picture")
        }
        let ffmpeg = if let ffmpeg { ffmpeg } else { try FFmpeg.find() }
        let probe = try await ffmpeg.frameSize(of: file, kind)
        guard let (width, height) = probe.size, width > 0, height > 0 else {
            let reason =
                ImageHeader.isAnimatedWebP(head)
                ? "this ffmpeg does not decode animated WebP"
                : probe.reason.isEmpty ? "it contains no picture" : probe.reason
            throw MediaError.notAVideo(path: path, reason: reason)
        }
        let limit = Resolution.longestSide
        guard max(width, height) <= limit, width * height <= pixelLimit else {
            throw MediaError.tooLarge(
                path: path, found: "\(width)x\(height)",
                limit: "\(limit) pixels a side and \(pixelLimit / 1_000_000) million in all")
        }
        return Opened(
            file: file, kind: kind, width: width, height: height,
            sequence: isSequence ? sequence : nil, ffmpeg: ffmpeg)
    }

    /// Throws what opening it would throw, by its header alone.
    public static func check(path: String, ffmpeg: FFmpeg? = nil) async throws {
        _ = try await open(path, ffmpeg)
    }

    /// - Throws: ``MediaError``: no such file, not a video, frames of more than ``pixelLimit`` pixels.
    public init(path: String, ffmpeg: FFmpeg? = nil) async throws {
        let opened = try await Self.open(path, ffmpeg)
        let (file, kind, sequence) = (opened.file, opened.kind, opened.sequence)
        let (width, height) = (opened.width, opened.height)
        let child = try await Child.start(
            opened.ffmpeg.ffmpeg,
            FFmpeg.quiet + ["-noautorotate"]
                + FFmpeg.reading(kind, pixelLimit: Self.pixelLimit, isPipe: sequence != nil)
                + [
                    "-map", "0:v:0", "-fps_mode", "passthrough", "-vf",
                    "scale=\(FFmpeg.exactScaling)",
                ]
                + ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"],
            input: sequence == nil ? .descriptor(file.descriptor.number) : .pipe, output: .pipe)
        feeding = sequence.map { sequence in
            Task { try await Self.feed(child, sequence, kind, (width, height)) }
        }
        (self.path, self.width, self.height, self.child) = (path, width, height, child)
    }

    deinit {
        feeding?.cancel()
        child.kill()
    }

    /// The next frame.
    /// - Returns: [height, width, 3] of 8-bit RGB, or nil after the last frame.
    /// - Throws: ``MediaError``, `CancellationError`.
    public func next() async throws -> [UInt8]? {
        let frame = await withTaskCancellationHandler {
            await child.read(frameBytes)
        } onCancel: {
            child.kill()
        }
        try Task.checkCancellation()
        if frame.count == frameBytes {
            count.withLock { $0 += 1 }
            return frame
        }
        let remains = await child.remains
        try await feeding?.value
        if case .tooSlow(let seconds) = remains.ending {
            throw MediaError.timedOut(program: "ffmpeg", seconds: seconds)
        }
        guard remains.ending.isSuccess, frame.isEmpty, count.withLock({ $0 }) > 0 else {
            let words = remains.words.summary
            throw MediaError.notAVideo(
                path: path, reason: words.isEmpty ? "\(frame.count) bytes decoded" : words)
        }
        return nil
    }

    /// Writes one file after the other; all must have the kind and size of the first.
    private static func feed(
        _ child: Child, _ files: [String], _ kind: MediaKind, _ size: (Int, Int)
    ) async throws {
        defer { child.closeInput() }
        for path in files {
            let bytes = try InputFile(path).bytes(limit: RGBImage.fileLimit)
            guard let header = ImageHeader(bytes), header.kind == kind, !header.isTruncated,
                (header.width ?? size.0, header.height ?? size.1) == size
            else {
                throw MediaError.notAVideo(
                    path: path,
                    reason: "it is not a complete picture of \(size.0)x\(size.1) like the first one"
                )
            }
            guard await child.write(bytes) else { return }
        }
    }
}

/// All frames of a video, animation, picture or numbered sequence.
public struct Video: Sendable {
    public let width: Int
    public let height: Int
    /// frames: [count, height, width, 3]
    public let pixels: [UInt8]
    public var count: Int { pixels.count / (3 * width * height) }

    /// pixels: [count, height, width, 3]
    public init(width: Int, height: Int, pixels: [UInt8]) {
        ensure(
            width > 0 && height > 0 && pixels.count % (3 * width * height) == 0,
            "Video: \(pixels.count) bytes are not whole frames of \(width)x\(height)")
        self.width = width
        self.height = height
        self.pixels = pixels
    }

    /// Videos with more bytes of frames are refused.
    public static let byteLimit = 1 << 30
}

/// Decodes a whole video as 8-bit RGB. For videos that may exceed ``Video/byteLimit``, use ``FrameReader``.
/// - Throws: ``MediaError``: no such file, not a video, too large.
public func readVideo(path: String, ffmpeg: FFmpeg? = nil) async throws -> Video {
    let reader = try await FrameReader(path: path, ffmpeg: ffmpeg)
    var pixels: [UInt8] = []
    while let frame = try await reader.next() {
        guard pixels.count + frame.count <= Video.byteLimit else {
            throw MediaError.tooLarge(
                path: path, found: "more than \(pixels.count / frame.count) frames",
                limit: "\(Video.byteLimit) bytes of frames")
        }
        pixels += frame
    }
    return Video(width: reader.width, height: reader.height, pixels: pixels)
}

extension FFmpeg {
    /// FFmpeg's arguments for one input, its standard input: a file or a pipe of pictures, read by the given demuxer.
    /// Whatever the input says, no other file is opened.
    static func reading(_ kind: MediaKind, pixelLimit: Int, isPipe: Bool = false) -> [String] {
        [
            "-protocol_whitelist", "file,pipe", "-f", kind.demuxer, "-max_pixels", "\(pixelLimit)",
            "-i",
            isPipe ? "pipe:0" : "file:/proc/self/fd/0",
        ]
    }

    /// Width and height of the first video stream of a file, or why there is none.
    func frameSize(of file: InputFile, _ kind: MediaKind) async throws -> (
        size: (Int, Int)?, reason: String
    ) {
        let (output, remains) = try await FFmpeg.collect(
            probe,
            ["-hide_banner", "-loglevel", "error", "-select_streams", "v:0"]
                + ["-show_entries", "stream=width,height", "-of", "csv=p=0:s=x"]
                + FFmpeg.reading(kind, pixelLimit: RGBImage.pixelLimit),
            input: .descriptor(file.descriptor.number), limit: 1 << 16, limits: FFmpeg.probing)
        let sides = String(decoding: output, as: UTF8.self)
            .split(whereSeparator: \.isNewline).first?.split(separator: "x").compactMap { Int($0) }
        guard remains.ending.isSuccess, let sides, sides.count == 2,
            sides.allSatisfy({ (0...1 << 30).contains($0) })
        else {
            let reason = remains.words.summary
            return (nil, reason.isEmpty ? "it contains no picture" : reason)
        }
        return ((sides[0], sides[1]), "")
    }
}
