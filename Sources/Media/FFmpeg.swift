// FFmpeg: finds the programs of FFmpeg and runs them as child processes.

import Glibc
import Subprocess
import SystemPackage

/// Where `ffmpeg` and `ffprobe` are. FFmpeg 5.1 or later.
public struct FFmpeg: Sendable, Equatable {
    public var ffmpeg: String
    public var ffprobe: String

    public init(ffmpeg: String, ffprobe: String) {
        self.ffmpeg = ffmpeg
        self.ffprobe = ffprobe
    }

    /// The programs on `PATH`.
    /// - Throws: ``MediaError/ffmpegMissing(program:)``.
    public static func find() throws(MediaError) -> FFmpeg {
        FFmpeg(ffmpeg: try locate("ffmpeg"), ffprobe: try locate("ffprobe"))
    }

    private static func locate(_ program: String) throws(MediaError) -> String {
        let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/local/bin:/usr/bin:/bin"
        for folder in path.split(separator: ":") {
            let candidate = "\(folder)/\(program)"
            if access(candidate, X_OK) == 0 && Files.isRegular(candidate) { return candidate }
        }
        throw .ffmpegMissing(program: program)
    }
}

// MARK: - Running

extension FFmpeg {
    /// What every `ffmpeg` here is told first: no banner, no questions, errors only.
    static let quiet = ["-hide_banner", "-nostdin", "-loglevel", "error", "-y"]

    /// Swscale flags for a conversion between RGB and YCbCr without its fast, rough shortcuts.
    static let exactScaling = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

    /// The colours of video, for the frames that come in as for those that go out.
    static let videoColors = [
        "-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709",
        "-color_range", "tv",
    ]

    /// What a finished child left behind.
    struct Outcome: Sendable {
        var output: [UInt8] = []
        var errors: ErrorTail
        var status: TerminationStatus
    }

    /// Runs a program without input and collects its standard output.
    /// - Parameters:
    ///   - limit: the most bytes of output to accept.
    ///   - seconds: the child is killed after this time.
    static func collect(
        _ program: String, _ arguments: [String], limit: Int, seconds: Int
    ) async throws -> Outcome {
        try await withThrowingTaskGroup(of: Outcome?.self) { group in
            group.addTask {
                let result = try await launch {
                    try await Subprocess.run(
                        .path(FilePath(program)), arguments: Arguments(arguments),
                        platformOptions: options, input: .none, output: .bytes(limit: limit),
                        error: .sequence
                    ) { child in
                        await ErrorTail.read(child.standardError)
                    }
                }
                return Outcome(
                    output: result.standardOutput, errors: result.closureResult,
                    status: result.terminationStatus)
            }
            group.addTask {
                try await Task.sleep(for: .seconds(seconds))
                return nil
            }
            defer { group.cancelAll() }
            guard let outcome = try await group.next()! else {
                throw MediaError.timedOut(program: Files.split(program).name, seconds: seconds)
            }
            try Task.checkCancellation()
            return outcome
        }
    }

    /// The child gets its own process group: a Ctrl-C in the terminal reaches this program alone,
    /// which then decides what becomes of the file.
    static var options: PlatformOptions {
        var options = PlatformOptions()
        options.processGroupID = 0
        return options
    }

    /// Starts a child with `body` and names the one failure of starting that a user can mend.
    static func launch<Result>(_ body: () async throws -> sending Result) async throws
        -> sending Result
    {
        ignoreBrokenPipes
        do {
            return try await body()
        } catch let error as SubprocessError where error.code == .executableNotFound {
            throw MediaError.ffmpegMissing(program: "ffmpeg")
        }
    }

    /// A child that dies while it is written to must be an error here, not the end of this process.
    /// A handler that the program installed itself is left alone.
    private static let ignoreBrokenPipes: Void = {
        var current = sigaction()
        sigaction(SIGPIPE, nil, &current)
        if unsafeBitCast(current.__sigaction_handler.sa_handler, to: Int.self) == 0 {
            signal(SIGPIPE, SIG_IGN)
        }
    }()
}

/// The last lines of a child's standard error.
struct ErrorTail: Sendable {
    private static let limit = 4096
    private var bytes: [UInt8] = []

    init(_ text: String = "") { bytes = Array(text.utf8) }

    /// Reads the stream to its end, so that the child never blocks on it.
    static func read(_ stream: SubprocessOutputSequence) async -> ErrorTail {
        var tail = ErrorTail()
        do {
            for try await buffer in stream {
                buffer.withUnsafeBytes { tail.bytes.append(contentsOf: $0) }
                if tail.bytes.count > limit { tail.bytes.removeFirst(tail.bytes.count - limit) }
            }
        } catch {
            // The words of a child are a courtesy: its exit status tells whether it failed.
        }
        return tail
    }

    var lines: [Substring] {
        String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline)
    }

    /// The last three lines, joined into one.
    var summary: String { lines.suffix(3).joined(separator: " | ") }

    func contains(_ text: String) -> Bool {
        String(decoding: bytes, as: UTF8.self).firstRange(of: text) != nil
    }

    /// The error that these words and this exit status mean, for a child that wrote `path`.
    func failure(writing path: String, status: TerminationStatus) -> MediaError {
        let full = ["No space left on device", "Disk quota exceeded", "File too large"]
        if status == .signaled(SIGXFSZ) || full.contains(where: contains) {
            return .noSpace(path: path)
        }
        if let line = lines.first(where: { $0.hasPrefix("Unknown encoder '") }) {
            return .encoderMissing(encoder: String(line.split(separator: "'")[1]))
        }
        switch (lines.isEmpty, status) {
        case (false, _): return .ffmpegFailed(lines: summary)
        case (true, .signaled(let signal)):
            return .ffmpegFailed(lines: "killed by signal \(signal)")
        case (true, .exited(let code)): return .ffmpegFailed(lines: "exit code \(code)")
        }
    }
}
