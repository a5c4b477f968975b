// Resolution: names, aspect ratios and the adaptive rule that give a width and a height.

import Ground

/// The size of a video in pixels.
public struct Resolution: Sendable, Equatable, CustomStringConvertible {
    public let width: Int
    public let height: Int

    /// Sizes are multiples of this: 8 of the VAE times 2 of the transformer's patches.
    public static let multiple = 16
    /// The longest side that is accepted.
    public static let longestSide = 16384

    public static let names = ["480", "480p", "512", "720", "720p"]
    public static let aspectRatios = ["1:1", "4:3", "3:4", "16:9", "9:16"]

    public var description: String { "\(width)x\(height)" }

    /// `WIDTHxHEIGHT` in pixels, both positive multiples of 16.
    public init(width: Int, height: Int) throws(MediaError) {
        let expected = "multiples of \(Self.multiple) up to \(Self.longestSide) on both sides"
        let valid = 1...Self.longestSide
        guard valid.contains(width), valid.contains(height) else {
            throw .badOption(name: "resolution", found: "\(width)x\(height)", expected: expected)
        }
        guard width % Self.multiple == 0 && height % Self.multiple == 0 else {
            let nearest = "\(Self.snap(width))x\(Self.snap(height))"
            throw .badOption(
                name: "resolution", found: "\(width)x\(height)",
                expected: "\(expected) (the nearest is \(nearest))")
        }
        self.width = width
        self.height = height
    }

    /// A named resolution with an aspect ratio (`480p`, `16:9`), or `WIDTHxHEIGHT`, which ignores the aspect
    /// ratio. The sizes are those of the original implementation (`VIDEO_RES_SIZE_INFO`).
    public init(_ text: String, aspectRatio: String = "16:9") throws(MediaError) {
        let sides = text.split(separator: "x", omittingEmptySubsequences: false)
        if sides.count == 2, let width = Int(sides[0]), let height = Int(sides[1]) {
            try self.init(width: width, height: height)
            return
        }
        guard let row = Self.table[text] else {
            throw .badOption(
                name: "resolution", found: text,
                expected: "one of \(Self.names.joined(separator: ", ")) or WIDTHxHEIGHT")
        }
        let column = try Self.place(ofAspectRatio: aspectRatio)
        try self.init(width: row[column].0, height: row[column].1)
    }

    /// Its place among ``aspectRatios``.
    /// - Throws: ``MediaError/badOption(name:found:expected:)`` for one that is none of them.
    @discardableResult
    public static func place(ofAspectRatio text: String) throws(MediaError) -> Int {
        guard let place = aspectRatios.firstIndex(of: text) else {
            throw .badOption(
                name: "aspect ratio", found: text,
                expected: "one of \(aspectRatios.joined(separator: ", "))")
        }
        return place
    }

    /// The size with this one's area and an image's aspect ratio: each ideal side is rounded to a multiple
    /// of 16, ties to the even multiple (as Python's `round`).
    /// - Throws: ``MediaError/badOption(name:found:expected:)`` for an aspect ratio so extreme that a side
    ///   would be 0 or exceed ``longestSide``.
    public func adapted(toImageWidth imageWidth: Int, height imageHeight: Int) throws(MediaError)
        -> Resolution
    {
        ensure(
            imageWidth > 0 && imageHeight > 0,
            "Resolution.adapted: an image of \(imageWidth)x\(imageHeight)")
        let area = Double(width * height)
        let aspect = Double(imageHeight) / Double(imageWidth)
        func snap(_ ideal: Double) -> Int {
            Int((ideal / Double(Self.multiple)).rounded(.toNearestOrEven)) * Self.multiple
        }
        let width = snap((area / aspect).squareRoot())
        let height = snap((area * aspect).squareRoot())
        guard width > 0, height > 0, max(width, height) <= Self.longestSide else {
            throw .badOption(
                name: "image", found: "\(imageWidth)x\(imageHeight)",
                expected: "an aspect ratio that gives sides of 16 to \(Self.longestSide) pixels; "
                    + "crop it, or give the resolution as WIDTHxHEIGHT")
        }
        return try Resolution(width: width, height: height)
    }

    private static func snap(_ side: Int) -> Int {
        max(1, (side + multiple / 2) / multiple) * multiple
    }

    /// [name][aspect ratio] in the order of ``aspectRatios``.
    private static let table: [String: [(Int, Int)]] = [
        "480": [(480, 480), (640, 480), (480, 640), (768, 432), (432, 768)],
        "480p": [(640, 640), (640, 480), (480, 640), (832, 480), (480, 832)],
        "512": [(512, 512), (640, 512), (512, 640), (640, 384), (384, 640)],
        "720": [(960, 960), (960, 704), (704, 960), (1280, 704), (704, 1280)],
        "720p": [(960, 960), (960, 720), (720, 960), (1280, 720), (720, 1280)],
    ]
}
