// ImageReader: a picture file as 8-bit RGB, upright.

import Subprocess

/// Reads a PNG, JPEG, WebP or any other still picture that FFmpeg decodes.
///
/// Grey, palette and 16-bit pictures become 8-bit RGB. Alpha is ignored, as the original
/// implementation does (`PIL.Image.convert("RGB")`). EXIF orientation is applied.
/// - Throws: ``MediaError``: no such file, not a picture, truncated, larger than
///   ``RGBImage/longestSide`` or ``RGBImage/pixelLimit``; `CancellationError`.
public func readImage(path: String, ffmpeg: FFmpeg? = nil) async throws -> RGBImage {
    guard Files.status(path) != nil else { throw MediaError.noSuchFile(path: path) }
    guard Files.isRegular(path) else {
        throw MediaError.notAPicture(path: path, reason: "it is a folder or a device")
    }
    let size = Files.size(path)
    guard size <= RGBImage.fileLimit else {
        throw MediaError.tooLarge(
            path: path, found: "\(size) bytes", limit: "\(RGBImage.fileLimit) bytes")
    }
    guard let bytes = Files.read(path, limit: size) else {
        throw MediaError.unreadable(path: path, reason: Files.lastError)
    }
    guard !bytes.isEmpty else {
        throw MediaError.notAPicture(path: path, reason: "it is empty")
    }
    let ffmpeg = if let ffmpeg { ffmpeg } else { try FFmpeg.find() }
    let header = ImageHeader(bytes)
    let (width, height): (Int, Int)
    if let header {
        (width, height) = (header.width, header.height)
        guard !header.isTruncated else { throw MediaError.truncated(path: path) }
    } else {
        let probe = try await ffmpeg.frameSize(of: "file:" + path)
        guard let size = probe.size else {
            throw MediaError.notAPicture(path: path, reason: probe.reason)
        }
        (width, height) = size
    }
    guard width > 0, height > 0 else {
        throw MediaError.notAPicture(path: path, reason: "it has no pixels")
    }
    guard max(width, height) <= RGBImage.longestSide, width * height <= RGBImage.pixelLimit else {
        throw MediaError.tooLarge(
            path: path, found: "\(width)x\(height)",
            limit: "\(RGBImage.longestSide) pixels a side and "
                + "\(RGBImage.pixelLimit / 1_000_000) million in all")
    }
    let count = 3 * width * height
    let outcome = try await FFmpeg.collect(
        ffmpeg.ffmpeg,
        ["-hide_banner", "-nostdin", "-loglevel", "error", "-noautorotate", "-i", "file:" + path]
            + ["-frames:v", "1", "-vf", "scale=\(FFmpeg.exactScaling)", "-pix_fmt", "rgb24"]
            + ["-f", "rawvideo", "pipe:1"],
        limit: count + 1, seconds: 60)
    guard outcome.status.isSuccess, outcome.output.count == count else {
        // A flag of the extended format; many an FFmpeg decodes still WebP only.
        let isAnimated =
            header?.kind == .webp && bytes[12..<16].elementsEqual("VP8X".utf8)
            && bytes[20] & 2 != 0
        let reason =
            isAnimated
            ? "it is an animated WebP; save one of its frames as PNG" : outcome.errors.summary
        throw MediaError.notAPicture(
            path: path, reason: reason.isEmpty ? "\(outcome.output.count) bytes decoded" : reason)
    }
    let image = RGBImage(width: width, height: height, pixels: outcome.output)
    return image.oriented(header?.orientation ?? 1)
}

extension RGBImage {
    /// Limits of ``readImage(path:ffmpeg:)``: far beyond any video, far below any trouble.
    public static let longestSide = 32768
    public static let pixelLimit = 200_000_000
    public static let fileLimit = 1 << 29

    /// The picture upright, for an EXIF orientation of 1 to 8.
    func oriented(_ orientation: Int) -> RGBImage {
        guard orientation != 1 else { return self }
        let swaps = orientation >= 5
        let (newWidth, newHeight) = swaps ? (height, width) : (width, height)
        var out = [UInt8](repeating: 0, count: pixels.count)
        for y in 0..<newHeight {
            for x in 0..<newWidth {
                // Where the upright pixel (x, y) is stored.
                let (column, row) =
                    switch orientation {
                    case 2: (width - 1 - x, y)
                    case 3: (width - 1 - x, height - 1 - y)
                    case 4: (x, height - 1 - y)
                    case 5: (y, x)
                    case 6: (y, height - 1 - x)
                    case 7: (width - 1 - y, height - 1 - x)
                    default: (width - 1 - y, x)
                    }
                let source = 3 * (row * width + column)
                let target = 3 * (y * newWidth + x)
                for channel in 0..<3 { out[target + channel] = pixels[source + channel] }
            }
        }
        return RGBImage(width: newWidth, height: newHeight, pixels: out)
    }
}
