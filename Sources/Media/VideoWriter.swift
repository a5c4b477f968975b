// VideoWriter: takes frames as they are made and leaves one whole file, or nothing.

import Glibc
import Subprocess
import Synchronization
import SystemPackage

/// Streams frames into an ffmpeg child while later frames are still being computed.
///
///     try VideoWriter.check(path: path)           // before any work
///     let writer = try VideoWriter(.init(path: path, width: 832, height: 480))
///     for await chunk in chunks { try await writer.append(chunk) }
///     try await writer.finish()
///
/// The file is made under a temporary name in the same folder and renamed by `finish`. After an
/// error, a cancelled task, `cancel` or the end of the writer's life, the child is killed and the
/// temporary files are gone. One task at a time may use a writer. Equal frames and options give
/// equal bytes with the same FFmpeg on the same machine.
public final class VideoWriter: Sendable {
    public struct Options: Sendable {
        /// The output; its name decides the format, see ``VideoFormat``.
        public var path: String
        public var width: Int
        public var height: Int
        public var framesPerSecond: Double
        public var pixelFormat: PixelFormat
        /// Quality of `.mp4` (0...51, default 12) and `.webm` (0...63, default 16), less is better;
        /// other formats ignore it.
        public var crf: Int?
        /// Text to keep in the file (the request as JSON), read back by ``readMetadata(path:)``.
        public var metadata: String?
        /// Frames that wait for the encoder take at most this many bytes; then `append` waits.
        public var queueBytes: Int
        /// Default: found on `PATH`.
        public var ffmpeg: FFmpeg?

        public init(
            path: String, width: Int, height: Int, framesPerSecond: Double = 16,
            pixelFormat: PixelFormat = .rgb24, crf: Int? = nil, metadata: String? = nil,
            queueBytes: Int = 64 << 20, ffmpeg: FFmpeg? = nil
        ) {
            self.path = path
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
    private let child = Child()
    private let output: PendingOutput
    private let encoding: Task<Void, any Error>
    private let state = Mutex(State())

    private struct State {
        var frames = 0
        var open = true
    }

    /// Refuses what would fail later anyway: an unknown file name, no ffmpeg, a folder that does not
    /// exist or cannot be written. Takes milliseconds and leaves nothing behind.
    public static func check(path: String, ffmpeg: FFmpeg? = nil) throws(MediaError) {
        let format = try VideoFormat(path: path)
        if ffmpeg == nil { _ = try FFmpeg.find() }
        try PendingOutput(path: path, format: format).check()
    }

    /// Checks the options and starts the encoder.
    /// - Throws: ``MediaError``.
    public init(_ options: Options) throws(MediaError) {
        try Self.validate(options)
        let ffmpeg = if let given = options.ffmpeg { given } else { try FFmpeg.find() }
        let format = try VideoFormat(path: options.path)
        if let (range, _) = format.qualities, let crf = options.crf, !range.contains(crf) {
            throw .badOption(name: "crf", found: "\(crf)", expected: "\(range)")
        }
        let output = PendingOutput(path: options.path, format: format)
        try output.check()
        try output.prepare()

        let channel = BoundedChannel(limit: options.queueBytes)
        let child = child
        self.options = options
        self.format = format
        self.output = output
        self.channel = channel
        frameBytes = options.pixelFormat.frameBytes(width: options.width, height: options.height)
        // The task must not hold the writer, or the writer would never come to its end.
        encoding = Task {
            try await withTaskCancellationHandler {
                do {
                    try await Self.encode(
                        options, ffmpeg: ffmpeg, format: format, from: channel, into: output,
                        child: child)
                    try Task.checkCancellation()
                    try output.commit(metadata: options.metadata)
                } catch {
                    await channel.close(throwing: error)
                    output.discard()
                    throw error
                }
            } onCancel: {
                Task { await channel.close(throwing: CancellationError()) }
            }
        }
    }

    deinit {
        guard state.withLock({ $0.open }) else { return }
        encoding.cancel()
        child.kill()
        output.discard()
    }

    /// Appends one frame or several, one after the other; waits while the encoder is far behind.
    ///
    /// - Parameter frames: [n, frameBytes], n ≥ 1.
    /// - Throws: ``MediaError`` when the encoder failed, `CancellationError`; the writer is closed
    ///   then and its files are gone.
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
            throw MediaError.frameCount(
                path: options.path, found: "\(total) frames",
                expected: "one frame for a .png (use a counter, as in frames/%04d.png)")
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
            try await encoding.value
            throw error
        }
    }

    /// Appends one picture; the writer's pixel format must be RGB and the sizes equal.
    public func append(_ image: RGBImage) async throws {
        precondition(
            options.pixelFormat == .rgb24 && image.width == options.width
                && image.height == options.height,
            "VideoWriter.append: a picture of \(image.width)x\(image.height) RGB for a video of "
                + "\(options.width)x\(options.height) \(options.pixelFormat.rawValue)")
        try await append(image.pixels)
    }

    /// Waits for the encoder, stores the metadata and gives the file its name.
    /// - Throws: ``MediaError``, `CancellationError`; nothing is left behind then.
    public func finish() async throws {
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
        try await withTaskCancellationHandler {
            await channel.close()
            try await encoding.value
        } onCancel: {
            encoding.cancel()
        }
    }

    /// Stops the encoder, removes what it wrote and returns when both are done.
    public func cancel() async {
        state.withLock { $0.open = false }
        encoding.cancel()
        child.kill()
        _ = await encoding.result
    }
}

// MARK: - The encoder

extension VideoWriter {
    private static func validate(_ options: Options) throws(MediaError) {
        let sides = 1...Resolution.longestSide
        guard sides.contains(options.width), sides.contains(options.height) else {
            throw .badOption(
                name: "size", found: "\(options.width)x\(options.height)", expected: "\(sides)")
        }
        guard options.framesPerSecond >= 0.1 && options.framesPerSecond <= 1000 else {
            throw .badOption(
                name: "fps", found: "\(options.framesPerSecond)", expected: "0.1 to 1000")
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
    }

    private static func encode(
        _ options: Options, ffmpeg: FFmpeg, format: VideoFormat, from channel: BoundedChannel,
        into output: PendingOutput, child: Child
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
        arguments += ["-fflags", "+bitexact", "-flags:v", "+bitexact", output.encoderTarget]

        let result = try await FFmpeg.launch {
            try await Subprocess.run(
                .path(FilePath(ffmpeg.ffmpeg)), arguments: Arguments(arguments),
                platformOptions: FFmpeg.options, input: .inputWriter, output: .discarded,
                error: .sequence
            ) { execution in
                child.started(execution.processIdentifier.value)
                defer { child.ended() }
                // The end of the child's words is the end of the child: whoever waits to send the
                // next frame, perhaps minutes away, learns of it now.
                async let words = {
                    let tail = await ErrorTail.read(execution.standardError)
                    await channel.close(throwing: EncoderEnded())
                    return tail
                }()
                var complete = false
                let input = execution.standardInputWriter
                do {
                    while let frames = try await channel.receive() {
                        guard try await input.write(frames) == frames.count else {
                            throw EncoderEnded()
                        }
                    }
                    complete = true
                } catch {
                    await channel.close(throwing: error)
                }
                try? await input.finish()
                return (words: await words, complete: complete)
            }
        }
        try Task.checkCancellation()
        let (words, complete) = result.closureResult
        // ffmpeg 5 can end with status 0 although the last write failed: its words count too.
        let full = words.failure(writing: options.path, status: result.terminationStatus)
        guard complete, result.terminationStatus.isSuccess, full != .noSpace(path: options.path)
        else { throw full }
    }
}

/// The child's input is no longer read.
private struct EncoderEnded: Error {}

/// The process to kill when the writer goes away. The identifier is only kept while the child is
/// certainly not reaped, so that no other process can be hit.
private final class Child: Sendable {
    private let identifier = Mutex<pid_t?>(nil)

    func started(_ process: pid_t) { identifier.withLock { $0 = process } }
    func ended() { identifier.withLock { $0 = nil } }

    func kill() {
        identifier.withLock { process in
            if let process { _ = Glibc.kill(process, SIGKILL) }
        }
    }
}
