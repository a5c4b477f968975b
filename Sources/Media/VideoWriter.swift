// VideoWriter: takes frames as they are made and leaves one complete file, or nothing.

import Ground
import Synchronization

/// Streams frames into an ffmpeg child while later frames are still being computed.
///
///     let options = VideoWriter.Options(path: path, replaces: false, width: 832, height: 480)
///     try await VideoWriter.check(options, frames: 81)       // before any work
///     let writer = try VideoWriter(options)
///     for await chunk in chunks { try await writer.append(chunk) }
///     let path = try await writer.finish()
///
/// The file has no name until `finish` gives it one. Raw frames (``VideoFormat/raw(descriptor:)``) go out at once instead. After an error, a cancelled task or `cancel`, or when the writer is
/// deallocated or the process ends, the child is killed and nothing is left. Only one task at a time may use a writer.
/// Equal frames and options give equal bytes with the same FFmpeg on the same machine.
public final class VideoWriter: Sendable {
    public struct Options: Sendable {
        /// The output; its name decides the format, see ``VideoFormat``.
        public var path: String
        /// Whether existing files are replaced. If not, they are refused; if such a file appears while the video is
        /// being made, the video gets a number: `video-2.mp4`.
        public var replaces: Bool
        public var width: Int
        public var height: Int
        public var framesPerSecond: Double
        public var pixelFormat: PixelFormat
        /// Quality of `.mp4` (0...51, default 12) and `.webm` (0...63, default 16), lower is better;
        /// other formats ignore it. For `.mp4`, 0 means 1, as no browser plays x264's 0.
        public var crf: Int?
        /// Text to keep in the file (the request as JSON), read back by ``readMetadata(path:)``.
        public var metadata: String?
        /// Frames waiting for the encoder take at most this many bytes; beyond that, `append` waits.
        public var queueBytes: Int
        /// Default: found on `PATH`.
        public var ffmpeg: FFmpeg?

        public init(
            path: String, replaces: Bool, width: Int, height: Int, framesPerSecond: Double = 16,
            pixelFormat: PixelFormat = .rgb24, crf: Int? = nil, metadata: String? = nil,
            queueBytes: Int = 64 << 20, ffmpeg: FFmpeg? = nil
        ) {
            self.path = path
            self.replaces = replaces
            self.width = width
            self.height = height
            self.framesPerSecond = framesPerSecond
            self.pixelFormat = pixelFormat
            self.crf = crf
            self.metadata = metadata
            self.queueBytes = queueBytes
            self.ffmpeg = ffmpeg
        }
    }

    public let options: Options
    public let format: VideoFormat
    /// The bytes of one frame in the writer's pixel format.
    public let frameBytes: Int
    private let channel: BoundedChannel
    private let child = Encoder()
    private let encoding: Task<String, any Error>
    private let state = Mutex(State())

    private struct State {
        var frames = 0
        var open = true
    }

    /// Refuses names that no format has, a missing FFmpeg, and folders that do not exist or cannot be written to. Takes
    /// milliseconds and leaves nothing behind.
    public static func check(path: String, ffmpeg: FFmpeg? = nil) throws(MediaError) {
        let format = try VideoFormat(path: path)
        if case .raw(let descriptor) = format {
            return try RawFrames.check(descriptor, path: path)
        }
        if ffmpeg == nil { _ = try FFmpeg.find() }
        try PendingOutput.check(path: path, format: format, replaces: true)
    }

    /// Refuses what would fail later, by making a video of one black frame that is thrown away: unknown names, values that
    /// the format cannot hold, files that exist, folders that cannot be written to, and an FFmpeg that is missing, broken,
    /// hangs or lacks the encoder. Takes a tenth of a second and leaves nothing behind.
    /// - Parameter frames: how many frames there will be, if known.
    /// - Throws: ``MediaError``.
    public static func check(_ options: Options, frames: Int? = nil) async throws {
        let format = try validate(options)
        if format == .png, let frames, frames != 1 { throw onlyOneFrame(options.path, frames) }
        if case .raw(let descriptor) = format {
            return try RawFrames.check(descriptor, path: options.path)
        }
        let ffmpeg = if let given = options.ffmpeg { given } else { try FFmpeg.find() }
        let output = try PendingOutput.check(
            path: options.path, format: format, replaces: options.replaces)
        let black = options.pixelFormat.planes(width: options.width, height: options.height).flatMap
        { [UInt8](repeating: $0.black, count: $0.rows * $0.rowBytes) }
        let channel = BoundedChannel(limit: 0)
        try await channel.send(black)
        await channel.close()
        try await encode(
            options, ffmpeg: ffmpeg, format: format, from: channel, to: output.descriptor,
            child: Encoder(), limits: FFmpeg.probing)
        guard output.size > 0 else { throw PendingOutput.wroteNothing }
    }

    /// Checks the options and starts the encoder.
    /// - Throws: ``MediaError``.
    public init(_ options: Options) throws(MediaError) {
        let format = try Self.validate(options)
        let channel = BoundedChannel(limit: options.queueBytes)
        let child = child
        self.options = options
        self.format = format
        self.channel = channel
        frameBytes = options.pixelFormat.frameBytes(width: options.width, height: options.height)
        if case .raw(let descriptor) = format {
            try RawFrames.check(descriptor, path: options.path)
            encoding = Self.passing(channel, to: descriptor, path: options.path)
            return
        }
        let ffmpeg = if let given = options.ffmpeg { given } else { try FFmpeg.find() }
        try PendingOutput.check(path: options.path, format: format, replaces: options.replaces)
        let output = try PendingOutput(
            path: options.path, format: format, replaces: options.replaces)
        // The task must not hold the writer, or the writer would never be deallocated.
        encoding = Task {
            try await withTaskCancellationHandler {
                do {
                    try await Self.encode(
                        options, ffmpeg: ffmpeg, format: format, from: channel,
                        to: output.descriptor,
                        child: child, limits: Child.Limits(idle: 120))
                    try Task.checkCancellation()
                    return try output.commit(metadata: options.metadata)
                } catch {
                    await channel.close(throwing: error)
                    throw error
                }
            } onCancel: {
                child.kill()
                Task { await channel.close(throwing: CancellationError()) }
            }
        }
    }

    deinit {
        guard state.withLock({ $0.open }) else { return }
        encoding.cancel()
    }

    /// Appends one or more frames; waits while the encoder is far behind.
    ///
    /// - Parameter frames: [n, frameBytes], n ≥ 1.
    /// - Throws: ``MediaError`` if the encoder failed, `CancellationError`; the writer is then closed
    ///   and its files are gone.
    public func append(_ frames: [UInt8]) async throws {
        let count = frames.count / frameBytes
        guard count > 0 && count * frameBytes == frames.count else {
            throw MediaError.badFrame(found: frames.count, expected: frameBytes)
        }
        let total = state.withLock { state -> Int? in
            guard state.open else { return nil }
            state.frames += count
            return state.frames
        }
        guard let total else { throw MediaError.writerClosed(path: options.path) }
        if format == .png && total > 1 {
            await cancel()
            throw Self.onlyOneFrame(options.path, total)
        }
        do {
            try await withTaskCancellationHandler {
                try Task.checkCancellation()
                try await channel.send(frames)
            } onCancel: {
                encoding.cancel()
            }
        } catch {
            // A closed channel says only that the encoder has stopped; its task knows why.
            state.withLock { $0.open = false }
            encoding.cancel()
            _ = try await encoding.value
            throw error
        }
    }

    /// Appends one picture; the writer's pixel format must be RGB and the sizes equal.
    public func append(_ image: RGBImage) async throws {
        ensure(
            options.pixelFormat == .rgb24 && image.width == options.width
                && image.height == options.height,
            "VideoWriter.append: a picture of \(image.width)x\(image.height) RGB for a video of "
                + "\(options.width)x\(options.height) \(options.pixelFormat.rawValue)")
        try await append(image.pixels)
    }

    /// Waits for the encoder, stores the metadata and gives the file its name.
    /// - Returns: that name, see ``Options/replaces``.
    /// - Throws: ``MediaError``, `CancellationError`; nothing is then left behind.
    @discardableResult
    public func finish() async throws -> String {
        let frames = state.withLock { state -> Int? in
            guard state.open else { return nil }
            state.open = false
            return state.frames
        }
        guard let frames else { throw MediaError.writerClosed(path: options.path) }
        guard frames > 0 else {
            await cancel()
            throw MediaError.frameCount(
                path: options.path, found: "none", expected: "at least one frame")
        }
        return try await withTaskCancellationHandler {
            await channel.close()
            return try await encoding.value
        } onCancel: {
            encoding.cancel()
        }
    }

    /// Stops the encoder, removes what it wrote and returns when both are done.
    public func cancel() async {
        state.withLock { $0.open = false }
        encoding.cancel()
        _ = await encoding.result
    }
}

// MARK: - The encoder

extension VideoWriter {
    /// Passes frames on as they are.
    private static func passing(
        _ channel: BoundedChannel, to descriptor: Int32, path: String
    ) -> Task<String, any Error> {
        Task {
            try await withTaskCancellationHandler {
                do {
                    try await RawFrames.write(channel, to: descriptor, path: path)
                    try Task.checkCancellation()
                    return path
                } catch {
                    await channel.close(throwing: error)
                    throw error
                }
            } onCancel: {
                Task { await channel.close(throwing: CancellationError()) }
            }
        }
    }

    private static func onlyOneFrame(_ path: String, _ found: Int) -> MediaError {
        .frameCount(
            path: path, found: "\(found) frames",
            expected: "one frame for a .png (use a counter, as in frames/%04d.png)")
    }

    private static func validate(_ options: Options) throws(MediaError) -> VideoFormat {
        let format = try VideoFormat(path: options.path)
        let name = "." + Files.fileExtension(options.path)
        guard (1...format.longestSide).contains(options.width),
            (1...format.longestSide).contains(options.height)
        else {
            throw .badOption(
                name: "size", found: "\(options.width)x\(options.height)",
                expected: "1 to \(format.longestSide) pixels a side for \(name)")
        }
        guard options.framesPerSecond >= 0.1 && options.framesPerSecond <= format.highestRate else {
            throw .badOption(
                name: "fps", found: "\(options.framesPerSecond)",
                expected: "0.1 to \(Int(format.highestRate)) for \(name)")
        }
        if let (range, _) = format.qualities, let crf = options.crf, !range.contains(crf) {
            throw .badOption(name: "crf", found: "\(crf)", expected: "\(range) for \(name)")
        }
        let bytes = options.metadata?.utf8.count ?? 0
        guard bytes <= Metadata.limit else {
            throw .badOption(
                name: "metadata", found: "\(bytes) bytes",
                expected: "at most \(Metadata.limit) bytes")
        }
        if options.metadata?.utf8.contains(0) == true {
            throw .badOption(name: "metadata", found: "a NUL byte", expected: "text without NUL")
        }
        return format
    }

    /// Feeds an ffmpeg child from `channel` until the channel is closed.
    /// - Parameter descriptor: the file that the child writes to.
    private static func encode(
        _ options: Options, ffmpeg: FFmpeg, format: VideoFormat, from channel: BoundedChannel,
        to descriptor: Int32, child encoder: Encoder, limits: Child.Limits
    ) async throws {
        var arguments = FFmpeg.quiet
        arguments += ["-f", "rawvideo", "-pixel_format", options.pixelFormat.rawValue]
        if options.pixelFormat != .rgb24 { arguments += FFmpeg.videoColors }
        arguments += ["-video_size", "\(options.width)x\(options.height)"]
        arguments += ["-framerate", "\(options.framesPerSecond)", "-i", "pipe:0", "-an"]
        arguments += format.encoding(
            crf: options.crf, input: options.pixelFormat, width: options.width,
            height: options.height)
        if let text = options.metadata, format == .mp4 || format == .webm {
            arguments += ["-metadata", "comment=\(text)"]
        }
        // The file has no name yet, so ffmpeg gets it by number. It exists already, hence -y.
        arguments += [
            "-fflags", "+bitexact", "-flags:v", "+bitexact", "-y", "file:/proc/self/fd/1",
        ]

        let child = try await Child.start(
            ffmpeg.ffmpeg, arguments, input: .pipe, output: .descriptor(descriptor), limits: limits)
        encoder.started(child)
        // A sender learns at once that the child has ended, not only with the next frame, which may take minutes.
        async let end = {
            let remains = await child.remains
            await channel.close(throwing: EncoderEnded())
            return remains
        }()
        var complete = false
        do {
            while let frames = try await channel.receive() {
                guard await child.write(frames) else { throw EncoderEnded() }
            }
            complete = true
        } catch {
            await channel.close(throwing: error)
        }
        child.closeInput()
        let remains = await end
        try Task.checkCancellation()
        // ffmpeg 5 can end with status 0 although the last write failed, so its messages count too.
        let failure = remains.words.failure(writing: options.path, remains.ending)
        guard complete, remains.ending.isSuccess, failure != .noSpace(path: options.path) else {
            throw failure
        }
    }
}

/// The child no longer reads its input.
private struct EncoderEnded: Error {}

/// The child to end when the writer is cancelled, perhaps before it has been started.
private final class Encoder: Sendable {
    private let state = Mutex<(child: Child?, isKilled: Bool)>((nil, false))

    func started(_ child: Child) {
        let isKilled = state.withLock { state in
            state.child = child
            return state.isKilled
        }
        if isKilled { child.kill() }
    }

    func kill() {
        let child = state.withLock { state in
            state.isKilled = true
            return state.child
        }
        child?.kill()
    }
}
