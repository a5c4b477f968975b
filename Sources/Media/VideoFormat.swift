// VideoFormat: the output format that a file name stands for, and ffmpeg's arguments for it.

import SystemPackage

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

/// The output format, decided by the name of the output.
public enum VideoFormat: Sendable, Equatable {
    /// `.mp4`: H.264, 4:2:0, BT.709, index at the start. 4:2:0 H.264 needs even sides: odd ones grow by one
    /// repeated pixel.
    case mp4
    /// `.webm`: VP9, 4:2:0, BT.709.
    case webm
    /// `.gif`: one palette of 256 colours for all frames, loops for ever.
    case gif
    /// `.webp`: animated, lossy, loops for ever.
    case webp
    /// `.png` without a counter in the name: one picture, exactly one frame.
    case png
    /// A `.png` name with a counter (`frames/%04d.png`), or a folder (a path that ends in `/`, which
    /// means `%04d.png` in it). Numbers start at 1. The innermost folder is made if it is missing.
    case pngSequence(FrameNames)
    /// RGB, 8 bits, frame after frame and nothing else, for another program: `-` is standard output, `/dev/fd/3` a
    /// descriptor that this program was started with.
    case raw(descriptor: Int32)

    public static let supported = [
        ".mp4", ".webm", ".gif", ".webp", ".png", "frames/%04d.png", "folder/", "- (raw RGB)",
    ]

    /// - Throws: ``MediaError/unknownExtension(path:supported:)``.
    public init(path: String) throws(MediaError) {
        if let descriptor = RawFrames.descriptor(named: path) {
            self = .raw(descriptor: descriptor)
            return
        }
        let suffix = Files.fileExtension(path)
        if let names = FrameNames(path), suffix == "png" || path.hasSuffix("/") {
            self = .pngSequence(names)
            return
        }
        switch suffix {
        case "mp4": self = .mp4
        case "webm": self = .webm
        case "gif": self = .gif
        case "webp": self = .webp
        case "png": self = .png
        default: throw .unknownExtension(path: path, supported: Self.supported)
        }
    }

    /// The longest side that the format or its encoder supports, in pixels.
    var longestSide: Int { self == .webp ? 16383 : Resolution.longestSide }

    /// The highest frame rate. GIF counts hundredths of a second, WebP thousandths, and viewers show a frame that should
    /// last less than 2 or 11 of them for a tenth of a second.
    var highestRate: Double {
        switch self {
        case .gif: 50
        case .webp: 90
        default: 1000
        }
    }

    /// The files that a video of `frames` frames is written to.
    public func files(path: String, frames: Int) -> [String] {
        guard case .pngSequence(let names) = self else { return [path] }
        return (0..<max(0, frames)).map { names.path($0 + 1).string }
    }

    /// The accepted range of `crf` and the default, which looks like the original frames to the eye;
    /// `nil` if the format has no such option.
    var qualities: (range: ClosedRange<Int>, standard: Int)? {
        switch self {
        case .mp4: (0...51, 12)
        case .webm: (0...63, 16)
        default: nil
        }
    }

    /// The pixel format that needs no colour conversion.
    public var pixelFormat: PixelFormat {
        switch self {
        case .mp4, .webm: .nv12
        case .gif, .webp, .png, .pngSequence, .raw: .rgb24
        }
    }

    /// The arguments between the input and the output.
    func encoding(crf: Int?, input: PixelFormat, width: Int, height: Int) -> [String] {
        let crf = crf ?? qualities?.standard ?? 0
        // At 0, x264 writes a lossless profile (High 4:4:4 Predictive), which browsers and QuickTime do not play.
        let quality = self == .mp4 ? max(1, crf) : crf
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
            // A GPU decodes 160 frames a second: the encoder must keep up. At the same `crf`, the files of
            // "veryfast" are no larger than those of "medium" and lose 1 dB of 49 dB.
            let settings =
                ["-c:v", "libx264", "-preset", "veryfast", "-crf", "\(quality)"] + tags
                + ["-movflags", "+faststart", "-f", "mp4"]
            // x264 itself works on NV12.
            if input == .nv12, right + bottom == 0 { return ["-pix_fmt", "nv12"] + settings }
            guard right + bottom > 0 else {
                return ["-vf", toVideo(from: source, "yuv420p")] + settings
            }
            // The edge is repeated: black would bleed into the picture. This happens while every pixel
            // still has its own chroma: only then may sides be odd.
            let even =
                "pad=\(width + right):\(height + bottom)"
                + ",fillborders=right=\(right):bottom=\(bottom):mode=smear"
            let steps = [
                toVideo(from: source, "yuv444p"), even,
                toVideo(from: "in_color_matrix=bt709:in_range=tv:", "yuv420p"),
            ]
            return ["-vf", steps.joined(separator: ",")] + settings
        case .webm:
            // From NV12 this only separates Cb from Cr.
            return ["-vf", toVideo(from: source, "yuv420p")]
                + [
                    "-c:v", "libvpx-vp9", "-crf", "\(quality)", "-b:v", "0", "-deadline", "good",
                    "-cpu-used", "3", "-row-mt", "1",
                ] + tags + ["-f", "webm"]
        case .gif:
            // Bayer dither stays still from frame to frame; error diffusion would crawl.
            let palette =
                "split[a][b];[a]palettegen=stats_mode=full[p];"
                + "[b][p]paletteuse=dither=bayer:bayer_scale=4:diff_mode=rectangle"
            return ["-filter_complex", toRGB + "rgb24," + palette, "-loop", "0", "-f", "gif"]
        case .webp:
            return ["-vf", toRGB + "bgra", "-c:v", "libwebp_anim", "-quality", "90"]
                + ["-compression_level", "4", "-loop", "0", "-f", "webp"]
        case .png, .pngSequence:
            return ["-vf", toRGB + "rgb24", "-c:v", "png", "-f", "image2pipe"]
        case .raw:
            // What they already are, if FFmpeg were asked.
            return ["-c:v", "copy", "-f", "rawvideo"]
        }
    }
}
