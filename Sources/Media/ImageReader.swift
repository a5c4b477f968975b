// ImageReader: reads a picture file as 8-bit RGB, upright.

/// Reads a still picture: PNG, JPEG, WebP, GIF (its first frame), BMP, TIFF, AVIF, HEIC, JPEG XL, JPEG 2000, PNM or QOI,
/// recognised by its first bytes.
///
/// Grey, palette and 16-bit pictures become 8-bit RGB. Alpha is ignored, as in the original
/// implementation (`PIL.Image.convert("RGB")`). The orientation stored in the file is applied.
/// - Throws: ``MediaError``: no such file, not a picture, truncated, larger than
///   ``RGBImage/longestSide`` or ``RGBImage/pixelLimit``; `CancellationError`.
public func readImage(path: String, ffmpeg: FFmpeg? = nil) async throws -> RGBImage {
    let file = try InputFile(path)
    guard file.size <= RGBImage.fileLimit else {
        throw MediaError.tooLarge(
            path: path, found: "\(file.size) bytes", limit: "\(RGBImage.fileLimit) bytes")
    }
    let bytes = try file.bytes()
    guard let header = ImageHeader(bytes) else {
        throw MediaError.notAPicture(path: path, reason: foreign(bytes))
    }
    guard !header.isTruncated else { throw MediaError.truncated(path: path) }
    let ffmpeg = if let ffmpeg { ffmpeg } else { try FFmpeg.find() }
    let (width, height) = try await size(of: file, header, ffmpeg)
    guard width > 0, height > 0 else {
        throw MediaError.notAPicture(path: path, reason: "it contains no pixels")
    }
    guard max(width, height) <= RGBImage.longestSide, width * height <= RGBImage.pixelLimit else {
        throw MediaError.tooLarge(
            path: path, found: "\(width)x\(height)",
            limit: "\(RGBImage.longestSide) pixels a side and "
                + "\(RGBImage.pixelLimit / 1_000_000) million in all")
    }
    let count = 3 * width * height
    let (pixels, remains) = try await FFmpeg.collect(
        ffmpeg.ffmpeg,
        FFmpeg.quiet + ["-noautorotate"]
            + FFmpeg.reading(header.kind, pixelLimit: RGBImage.pixelLimit)
            + ["-map", "0:v:0", "-frames:v", "1", "-vf", "scale=\(FFmpeg.exactScaling)"]
            + ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"],
        input: .descriptor(file.descriptor.number), limit: count + 1,
        limits: Child.Limits(idle: 30, total: 120))
    guard remains.ending.isSuccess, pixels.count == count else {
        var reason = remains.words.summary
        if ImageHeader.isAnimatedWebP(bytes) {
            reason = "it is an animated WebP; save one of its frames as PNG"
        } else if reason.isEmpty {
            reason = "\(pixels.count) bytes decoded, not \(count)"
            if header.kind == .heif {
                reason += "; it may be made of tiles: save it as PNG or JPEG"
            }
        }
        throw MediaError.notAPicture(path: path, reason: reason)
    }
    return RGBImage(width: width, height: height, pixels: pixels).oriented(header.orientation)
}

/// What a file is that is not a picture.
private func foreign(_ bytes: [UInt8]) -> String {
    if bytes.isEmpty { return "it is empty" }
    if MediaKind(bytes) != nil { return "it is a video" }
    return
        "its first bytes are not those of a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG XL, JPEG 2000, PNM or QOI"
}

/// Width and height as stored: from the header, or else from FFmpeg.
private func size(of file: InputFile, _ header: ImageHeader, _ ffmpeg: FFmpeg) async throws -> (
    Int, Int
) {
    if let width = header.width, let height = header.height { return (width, height) }
    let probe = try await ffmpeg.frameSize(of: file, header.kind)
    guard let size = probe.size else {
        throw MediaError.notAPicture(path: file.path, reason: probe.reason)
    }
    return size
}

extension RGBImage {
    /// Limits of ``readImage(path:ffmpeg:)``, in pixels, pixels and bytes: more than any video needs, little enough for
    /// any machine.
    public static let longestSide = 32768
    public static let pixelLimit = 1 << 27
    public static let fileLimit = 1 << 29

    /// The picture turned upright, for an EXIF orientation of 1 to 8.
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
