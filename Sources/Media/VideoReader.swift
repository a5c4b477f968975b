// VideoReader: the frames of a finished video, for comparing and looking at.

import Subprocess

/// All frames of a video, animation, picture or numbered sequence (`frames/%04d.png`).
public struct Video: Sendable {
    public let width: Int
    public let height: Int
    /// frames: [count, height, width, 3]
    public let pixels: [UInt8]
    public var count: Int { pixels.count / (3 * width * height) }

    /// pixels: [count, height, width, 3]
    public init(width: Int, height: Int, pixels: [UInt8]) {
        precondition(
            width > 0 && height > 0 && pixels.count % (3 * width * height) == 0,
            "Video: whole frames")
        self.width = width
        self.height = height
        self.pixels = pixels
    }
}

/// Decodes at most `frameLimit` frames as 8-bit RGB.
/// - Throws: ``MediaError``: no such file, not a video, more than 8 GiB of frames.
public func readVideo(path: String, frameLimit: Int = 4096, ffmpeg: FFmpeg? = nil) async throws
    -> Video
{
    let isPattern = path.contains("%")
    guard isPattern || Files.isRegular(path) else { throw MediaError.noSuchFile(path: path) }
    let ffmpeg = if let ffmpeg { ffmpeg } else { try FFmpeg.find() }
    // A sequence is opened by its pattern, anything else by its exact name.
    let input = isPattern ? path : "file:" + path
    let probe = try await ffmpeg.frameSize(of: input)
    guard let (width, height) = probe.size, width > 0, height > 0 else {
        throw MediaError.notAVideo(path: path, reason: probe.reason)
    }
    let frameBytes = 3 * width * height
    let limit = min(frameLimit * frameBytes, 8 << 30)
    let outcome = try await FFmpeg.collect(
        ffmpeg.ffmpeg,
        ["-hide_banner", "-nostdin", "-loglevel", "error", "-i", input]
            + ["-frames:v", "\(limit / frameBytes)", "-vf", "scale=\(FFmpeg.exactScaling)"]
            + ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"],
        limit: limit + 1, seconds: 600)
    guard outcome.status.isSuccess, !outcome.output.isEmpty,
        outcome.output.count % frameBytes == 0
    else {
        let reason = outcome.errors.summary
        throw MediaError.notAVideo(
            path: path, reason: reason.isEmpty ? "\(outcome.output.count) bytes decoded" : reason)
    }
    return Video(width: width, height: height, pixels: outcome.output)
}

extension FFmpeg {
    /// Width and height of the first video stream of `input`, or why there is none.
    func frameSize(of input: String) async throws -> (size: (Int, Int)?, reason: String) {
        let outcome = try await FFmpeg.collect(
            ffprobe,
            ["-hide_banner", "-loglevel", "error", "-select_streams", "v:0"]
                + ["-show_entries", "stream=width,height", "-of", "csv=p=0:s=x", "-i", input],
            limit: 1 << 16, seconds: 60)
        let sides = String(decoding: outcome.output, as: UTF8.self)
            .split(whereSeparator: \.isNewline).first?.split(separator: "x").compactMap { Int($0) }
        guard outcome.status.isSuccess, let sides, sides.count == 2 else {
            let reason = outcome.errors.summary
            return (nil, reason.isEmpty ? "there is no picture in it" : reason)
        }
        return ((sides[0], sides[1]), "")
    }
}
