// FFmpeg: finds the programs of FFmpeg and runs them as child processes.

import Glibc
import Ground
import SystemPackage

/// Where `ffmpeg` and `ffprobe` are. FFmpeg 5.1 or later.
public struct FFmpeg: Sendable, Equatable {
    public var ffmpeg: String
    /// Only what reads videos needs it, see ``probe``.
    public var ffprobe: String?

    public init(ffmpeg: String, ffprobe: String?) {
        self.ffmpeg = ffmpeg
        self.ffprobe = ffprobe
    }

    /// The programs on `PATH`, or else the `ffmpeg` of a Python package that was installed with this program.
    /// - Throws: ``MediaError/ffmpegMissing(program:)``.
    public static func find() throws(MediaError) -> FFmpeg {
        guard let ffmpeg = locate("ffmpeg") ?? packaged(in: Installation.packages) else {
            throw .ffmpegMissing(program: "ffmpeg")
        }
        return FFmpeg(ffmpeg: ffmpeg, ffprobe: locate("ffprobe"))
    }

    /// - Throws: ``MediaError/ffmpegMissing(program:)``.
    var probe: String {
        get throws(MediaError) {
            guard let ffprobe else { throw .ffmpegMissing(program: "ffprobe") }
            return ffprobe
        }
    }

    private static func locate(_ program: String) -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/local/bin:/usr/bin:/bin"
        // Relative folders are skipped: what they hold depends on where this program is started.
        return path.split(separator: ":").lazy.filter { $0.hasPrefix("/") }
            .map { "\($0)/\(program)" }.first(where: isProgram)
    }

    /// The `ffmpeg` of the package imageio-ffmpeg, which is built for this system and has all encoders; it has no `ffprobe`.
    static func packaged(in folders: [FilePath]) -> String? {
        folders.lazy.map { $0.appending("imageio_ffmpeg/binaries") }.flatMap { folder in
            ((try? folder.fileNames()) ?? []).filter { $0.hasPrefix("ffmpeg-linux") }.sorted()
                .map { folder.appending($0).string }
        }.first(where: isProgram)
    }

    private static func isProgram(_ path: String) -> Bool {
        access(path, X_OK) == 0 && FilePath(path).isRegularFile
    }
}

// MARK: - Running

extension FFmpeg {
    /// The first arguments of every `ffmpeg`: no banner, no questions, errors only.
    static let quiet = ["-hide_banner", "-nostdin", "-loglevel", "error"]

    /// Limits for tasks that normally take a tenth of a second.
    static let probing = Child.Limits(idle: 10, total: 60)

    /// Swscale flags for a conversion between RGB and YCbCr without its fast, rough shortcuts.
    static let exactScaling = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

    /// The colour tags of video, for input and output.
    static let videoColors = [
        "-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709",
        "-color_range", "tv",
    ]

    /// Runs a program to its end and collects its standard output.
    /// - Parameters:
    ///   - limit: the most bytes to read; a child that writes more fails.
    ///   - limits: how long the child may take.
    /// - Throws: ``MediaError``, `CancellationError`.
    static func collect(
        _ program: String, _ arguments: [String], input: Child.Input = .nothing, limit: Int,
        limits: Child.Limits
    ) async throws -> (output: [UInt8], remains: Child.Remains) {
        let child = try await Child.start(
            program, arguments, input: input, output: .pipe, limits: limits)
        return try await withTaskCancellationHandler {
            let output = await child.read(limit)
            // A child with more output would otherwise wait for ever.
            child.closeOutput()
            let remains = await child.remains
            try Task.checkCancellation()
            if case .tooSlow(let seconds) = remains.ending {
                throw MediaError.timedOut(program: Files.split(program).name, seconds: seconds)
            }
            return (output, remains)
        } onCancel: {
            child.kill()
        }
    }
}

/// The last lines of a child's standard error.
struct ErrorTail: Sendable {
    private static let limit = 4096
    private var bytes: ArraySlice<UInt8> = []

    init(_ text: String = "") { bytes = Array(text.utf8)[...] }

    /// Reads what is available.
    /// - Returns: whether there may be more.
    mutating func read(_ descriptor: Int32) -> Bool {
        let new = [UInt8](unsafeUninitializedCapacity: Self.limit) { buffer, count in
            count = max(0, Glibc.read(descriptor, buffer.baseAddress, Self.limit))
        }
        bytes = (bytes + new).suffix(Self.limit)
        return !new.isEmpty
    }

    /// The lines, without the addresses that ffmpeg puts in front: `[png @ 0x5581c0]`.
    var lines: [Substring] {
        String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline).map { line in
            guard line.first == "[", line.firstRange(of: " @ 0x") != nil,
                let end = line.firstRange(of: "] ")
            else { return line }
            return line[end.upperBound...]
        }
    }

    /// The last three lines, joined into one.
    var summary: String { lines.suffix(3).joined(separator: " | ") }

    func contains(_ text: String) -> Bool {
        String(decoding: bytes, as: UTF8.self).firstRange(of: text) != nil
    }

    /// The error that explains why a child that wrote `path` failed.
    func failure(writing path: String, _ ending: Child.Ending) -> MediaError {
        let full = ["No space left on device", "Disk quota exceeded", "File too large"]
        if ending == .signaled(SIGXFSZ) || full.contains(where: contains) {
            return .noSpace(path: path)
        }
        if let line = lines.first(where: { $0.hasPrefix("Unknown encoder '") }) {
            return .encoderMissing(encoder: String(line.split(separator: "'")[1]))
        }
        switch ending {
        case .tooSlow(let seconds): return .timedOut(program: "ffmpeg", seconds: seconds)
        case _ where !lines.isEmpty: return .ffmpegFailed(lines: summary)
        case .signaled(let signal): return .ffmpegFailed(lines: "killed by signal \(signal)")
        case .exited(let code): return .ffmpegFailed(lines: "exit code \(code), no reason given")
        }
    }
}
