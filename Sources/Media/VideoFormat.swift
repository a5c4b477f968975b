// VideoFormat: what a file name asks for, and how ffmpeg is told to make it.

/// How the bytes of a frame are laid out.
public enum PixelFormat: String, Sendable, CaseIterable {
    /// [height, width, 3], full range.
    case rgb24
    /// Y [height, width], then CbCr [ceil(height / 2), ceil(width / 2), 2]; BT.709, limited range, a chroma sample
    /// in the middle of its four pixels.
    case nv12

    /// A part of a frame: its rows, from top to bottom, and the bytes of black.
    public struct Plane: Sendable, Equatable {
        public let rows, rowBytes: Int
        public let black: UInt8
    }

    /// The parts of a frame, in order.
    public func planes(width: Int, height: Int) -> [Plane] {
        switch self {
        case .rgb24: [Plane(rows: height, rowBytes: 3 * width, black: 0)]
        case .nv12:
            [
                Plane(rows: height, rowBytes: width, black: 16),
                Plane(rows: (height + 1) / 2, rowBytes: 2 * ((width + 1) / 2), black: 128),
            ]
        }
    }

    /// The bytes of one frame.
    public func frameBytes(width: Int, height: Int) -> Int {
        planes(width: width, height: height).reduce(0) { $0 + $1.rows * $1.rowBytes }
    }
}

/// What is written, by the name of the output.
public enum VideoFormat: Sendable, Equatable {
    /// `.mp4`: H.264, 4:2:0, BT.709, index in front. Odd sides grow by one repeated pixel, which
    /// 4:2:0 H.264 needs.
    case mp4
    /// `.webm`: VP9, 4:2:0, BT.709.
    case webm
    /// `.gif`: one palette of 256 colours for all frames, repeats for ever.
    case gif
    /// `.webp`: animated, lossy, repeats for ever.
    case webp
    /// `.png` without a counter in the name: one picture, exactly one frame.
    case png
    /// A `.png` name with a counter (`frames/%04d.png`), or a folder (a path that ends in `/`, which
    /// means `%04d.png` in it). Numbers begin at 1. The innermost folder is made if it is missing.
    case pngSequence(folder: String, pattern: String)

    public static let supported = [
        ".mp4", ".webm", ".gif", ".webp", ".png", "frames/%04d.png", "folder/",
    ]

    /// - Throws: ``MediaError/unknownExtension(path:supported:)``.
    public init(path: String) throws(MediaError) {
        let (folder, name) = Files.split(path)
        if name.isEmpty && !path.isEmpty {
            self = .pngSequence(folder: folder, pattern: "%04d.png")
            return
        }
        switch Files.fileExtension(path) {
        case "mp4": self = .mp4
        case "webm": self = .webm
        case "gif": self = .gif
        case "webp": self = .webp
        case "png" where !name.contains("%"): self = .png
        case "png" where Self.isCounter(name):
            self = .pngSequence(folder: folder, pattern: name)
        default: throw .unknownExtension(path: path, supported: Self.supported)
        }
    }

    /// Exactly one `%`, as `%d` or `%04d`.
    private static func isCounter(_ name: String) -> Bool {
        let parts = name.split(separator: "%", omittingEmptySubsequences: false)
        guard parts.count == 2 else { return false }
        let digits = parts[1].prefix { $0.isASCII && $0.isNumber }
        return digits.count <= 2 && parts[1].dropFirst(digits.count).first == "d"
    }

    /// The accepted range of `crf` and the default, which cannot be told from the frames by eye;
    /// `nil` where the format has no such option.
    var qualities: (range: ClosedRange<Int>, standard: Int)? {
        switch self {
        case .mp4: (0...51, 12)
        case .webm: (0...63, 16)
        default: nil
        }
    }

    /// The frames that are written without a conversion of colours.
    public var pixelFormat: PixelFormat {
        switch self {
        case .mp4, .webm: .nv12
        case .gif, .webp, .png, .pngSequence: .rgb24
        }
    }

    /// The arguments between the input and the output.
    func encoding(crf: Int?, input: PixelFormat, width: Int, height: Int) -> [String] {
        let crf = crf ?? qualities?.standard ?? 0
        let source = input == .rgb24 ? "" : "in_color_matrix=bt709:in_range=tv:"
        func toVideo(from source: String, _ pixels: String) -> String {
            let center = pixels == "yuv420p" ? ":out_h_chr_pos=128:out_v_chr_pos=128" : ""
            return "scale=\(source)out_color_matrix=bt709:out_range=tv\(center)"
                + ":\(FFmpeg.exactScaling),format=\(pixels)"
        }
        let toRGB = "scale=\(source)\(FFmpeg.exactScaling),format="
        let tags = FFmpeg.videoColors + ["-chroma_sample_location", "center"]
        switch self {
        case .mp4:
            let (right, bottom) = (width & 1, height & 1)
            // A GPU decodes 160 frames a second: the encoder must keep up. Against "medium" the files
            // of "veryfast" are no larger at one `crf` and lose 1 dB where 49 dB are reached.
            let settings =
                ["-c:v", "libx264", "-preset", "veryfast", "-crf", "\(crf)"] + tags
                + ["-movflags", "+faststart", "-f", "mp4"]
            // What x264 itself works on.
            if input == .nv12, right + bottom == 0 { return ["-pix_fmt", "nv12"] + settings }
            guard right + bottom > 0 else {
                return ["-vf", toVideo(from: source, "yuv420p")] + settings
            }
            // The edge is repeated rather than black, so that it does not bleed into the picture, and
            // while every pixel has its own chroma: only then may sides be odd.
            let even =
                "pad=\(width + right):\(height + bottom)"
                + ",fillborders=right=\(right):bottom=\(bottom):mode=smear"
            let steps = [
                toVideo(from: source, "yuv444p"), even,
                toVideo(from: "in_color_matrix=bt709:in_range=tv:", "yuv420p"),
            ]
            return ["-vf", steps.joined(separator: ",")] + settings
        case .webm:
            // From NV12 this only parts Cb from Cr.
            return ["-vf", toVideo(from: source, "yuv420p")]
                + [
                    "-c:v", "libvpx-vp9", "-crf", "\(crf)", "-b:v", "0", "-deadline", "good",
                    "-cpu-used", "3", "-row-mt", "1",
                ] + tags + ["-f", "webm"]
        case .gif:
            // Bayer dither is still from frame to frame; error diffusion would crawl.
            let palette =
                "split[a][b];[a]palettegen=stats_mode=full[p];"
                + "[b][p]paletteuse=dither=bayer:bayer_scale=4:diff_mode=rectangle"
            return ["-filter_complex", toRGB + "rgb24," + palette, "-loop", "0", "-f", "gif"]
        case .webp:
            return ["-vf", toRGB + "bgra", "-c:v", "libwebp_anim", "-quality", "90"]
                + ["-compression_level", "4", "-loop", "0", "-f", "webp"]
        case .png:
            return ["-vf", toRGB + "rgb24", "-c:v", "png", "-update", "1", "-f", "image2"]
        case .pngSequence:
            return ["-vf", toRGB + "rgb24", "-c:v", "png", "-start_number", "1", "-f", "image2"]
        }
    }
}
