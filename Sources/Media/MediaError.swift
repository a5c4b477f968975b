// MediaError: every way in which reading a picture or writing a video can fail for a user.

import Ground
import SystemPackage

/// A failure that the user can act on. `description` is one line: what was expected, what was
/// found, what to do.
public enum MediaError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A program of FFmpeg (`ffmpeg` or `ffprobe`) was not found.
    case ffmpegMissing(program: String)
    /// The program could not be started.
    case cannotStart(program: String, reason: String)
    /// This FFmpeg was built without an encoder that the format needs.
    case encoderMissing(encoder: String)
    /// The input file does not exist.
    case noSuchFile(path: String)
    /// The input exists but cannot be read, or is not a regular file.
    case unreadable(path: String, reason: String)
    /// The content is not a picture that FFmpeg can decode.
    case notAPicture(path: String, reason: String)
    /// The picture starts correctly but ends too early.
    case truncated(path: String)
    /// The picture's header announces more than the reader's limits.
    case tooLarge(path: String, found: String, limit: String)
    /// The file is not a video that FFmpeg can decode.
    case notAVideo(path: String, reason: String)
    /// A child process took longer than its limit.
    case timedOut(program: String, seconds: Int)
    /// No format has this file name.
    case unknownExtension(path: String, supported: [String])
    /// The folder of the output does not exist.
    case noSuchFolder(path: String)
    /// The output cannot be created there.
    case unwritable(path: String, reason: String)
    /// A file with that name exists and is not to be replaced.
    case exists(path: String)
    /// The disk or quota was full while writing.
    case noSpace(path: String)
    /// An option's value is out of range.
    case badOption(name: String, found: String, expected: String)
    /// Data appended to a writer is not whole frames.
    case badFrame(found: Int, expected: Int)
    /// A still picture takes one frame, a video takes at least one.
    case frameCount(path: String, found: String, expected: String)
    /// FFmpeg failed for another reason; `lines` are the last that it printed.
    case ffmpegFailed(lines: String)
    /// `append` or `finish` on a writer that was finished, cancelled or failed.
    case writerClosed(path: String)

    /// On one line, without control characters: much of it is what a file or FFmpeg says.
    public var description: String { text.printable }

    private var text: String {
        switch self {
        case .ffmpegMissing(let program):
            "\(program) was not found on PATH; install it (Debian, Ubuntu: apt-get install ffmpeg)"
        case .cannotStart(let program, let reason):
            "\(program) cannot be started: \(reason)"
        case .encoderMissing(let encoder):
            "this ffmpeg has no encoder \(encoder); install a full build "
                + "(Debian, Ubuntu: apt-get install ffmpeg) or choose another file extension"
        case .noSuchFile(let path):
            "no such file: \(path)"
        case .unreadable(let path, let reason):
            cannotRead(path, reason)
        case .notAPicture(let path, let reason):
            "\(path): not a picture that ffmpeg can decode: \(reason)"
        case .truncated(let path):
            "\(path): the picture is truncated; copy or export it again"
        case .tooLarge(let path, let found, let limit):
            "\(path): the picture is too large: \(found), the limit is \(limit); scale it down first"
        case .notAVideo(let path, let reason):
            "\(path): not a video that ffmpeg can decode: \(reason)"
        case .timedOut(let program, let seconds):
            "\(program) was stopped after \(seconds) seconds without a result"
        case .unknownExtension(let path, let supported):
            "\(path): no writer for this file name; supported: "
                + supported.joined(separator: ", ")
        case .noSuchFolder(let path):
            "\(path): no such folder; create it first"
        case .unwritable(let path, let reason):
            "\(path): cannot be written: \(reason)"
        case .exists(let path):
            "\(path): already exists"
        case .noSpace(let path):
            "\(path): no space left while writing; free some space or choose another disk"
        case .badOption(let name, let found, let expected):
            "\(name): expected \(expected), found \(found)"
        case .badFrame(let found, let expected):
            "expected whole frames of \(expected) bytes, found \(found) bytes"
        case .frameCount(let path, let found, let expected):
            "\(path): expected \(expected), found \(found)"
        case .ffmpegFailed(let lines):
            "ffmpeg failed: \(lines)"
        case .writerClosed(let path):
            "\(path): the writer is already finished, cancelled or failed"
        }
    }
}

extension MediaError {
    /// A failure while writing the output `path`.
    init(writing path: String, _ error: FileError) {
        switch error {
        case .exists: self = .exists(path: path)
        case .noFolder(let file): self = .noSuchFolder(path: file.folder.string)
        case .noRoom, .system(_, .noSpace), .system(_, .diskQuotaExceeded),
            .system(_, .fileTooLarge):
            self = .noSpace(path: path)
        case .notRegular, .tooLarge, .system: self = .unwritable(path: path, reason: error.reason)
        }
    }
}
