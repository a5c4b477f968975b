// ImageHeader: what a picture's header says, read before anything is decoded.

import Ground

/// Size, orientation and completeness, as far as the program must know them before FFmpeg sees the picture.
struct ImageHeader: Equatable {
    var kind: MediaKind
    /// As stored, before any turn; nil if FFmpeg must be asked.
    var width: Int?
    var height: Int?
    /// EXIF orientation, 1 (upright) to 8.
    private(set) var orientation = 1
    /// Whether the file ends before the picture does.
    var isTruncated = false

    /// Nil unless `bytes` are a picture of a known kind.
    init?(_ bytes: [UInt8]) {
        guard let kind = MediaKind(bytes), kind.isPicture else { return nil }
        self.kind = kind
        switch kind {
        case .png: readPNG(bytes)
        case .jpeg: readJPEG(bytes)
        case .webp: readWebP(bytes)
        case .tiff: readTIFF(bytes)
        case .heif: readHEIF(bytes)
        default: break
        }
    }

    /// Where each orientation takes a pixel: x' = a x + b y, y' = c x + d y.
    private static let turns = [
        [1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, -1], [1, 0, 0, -1],
        [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, -1, 0], [0, 1, -1, 0],
    ]

    /// Adds a turn after the earlier ones; anything but 1 to 8 is ignored.
    mutating func turn(_ next: Int?) {
        guard let next, (1...8).contains(next) else { return }
        let (a, b) = (Self.turns[orientation - 1], Self.turns[next - 1])
        let both = [
            b[0] * a[0] + b[1] * a[2], b[0] * a[1] + b[1] * a[3],
            b[2] * a[0] + b[3] * a[2], b[2] * a[1] + b[3] * a[3],
        ]
        orientation = 1 + (Self.turns.firstIndex(of: both) ?? 0)
    }

    // MARK: PNG

    /// The name and content of each chunk of a PNG file, in order, up to the first incomplete one.
    static func pngChunks(_ bytes: some RandomAccessCollection<UInt8>, from start: Int = 8)
        -> some Sequence<(name: Int, content: Range<Int>)>
    {
        sequence(state: start) { at in
            guard let length = bytes.bigEndian(at, 4), let name = bytes.bigEndian(at + 4, 4),
                length <= bytes.count - at - 12
            else { return nil }
            defer { at += 12 + length }
            return (name, (at + 8)..<(at + 8 + length))
        }
    }

    /// The name of a chunk or box as a number.
    static func code(_ name: StaticString) -> Int { Array("\(name)".utf8).bigEndian(0, 4) ?? 0 }

    private mutating func readPNG(_ bytes: [UInt8]) {
        (width, height) = (bytes.bigEndian(16, 4), bytes.bigEndian(20, 4))
        isTruncated = true
        let (exif, end) = (Self.code("eXIf"), Self.code("IEND"))
        for chunk in Self.pngChunks(bytes) {
            if chunk.name == exif, orientation == 1 {
                turn(TIFF(bytes[chunk.content])?.orientation)
            }
            if chunk.name == end {
                isTruncated = false
                break
            }
        }
    }

    // MARK: JPEG

    private mutating func readJPEG(_ bytes: [UInt8]) {
        var orientation: Int?
        var at = 2
        // Segments up to the entropy-coded data: FF, marker, length.
        while let marker = bytes.bigEndian(at, 2), marker >= 0xFFC0 {
            if marker == 0xFFFF {
                at += 1
                continue
            }
            guard let length = bytes.bigEndian(at + 2, 2), length >= 2 else { break }
            let content = at + 4
            let isFrame =
                (0xFFC0...0xFFCF).contains(marker) && ![0xFFC4, 0xFFC8, 0xFFCC].contains(marker)
            if isFrame {
                (height, width) = (bytes.bigEndian(content + 1, 2), bytes.bigEndian(content + 3, 2))
            }
            let end = min(at + 2 + length, bytes.count)
            if marker == 0xFFE1, content + 6 <= end,
                bytes[content..<end].starts(with: Array("Exif".utf8) + [0, 0])
            {
                orientation = orientation ?? TIFF(bytes[(content + 6)..<end])?.orientation
            }
            at += 2 + length
            if marker == 0xFFDA { break }
        }
        turn(orientation)
        isTruncated = true
        var index = bytes.count - 1
        while index > at, isTruncated {
            isTruncated = bytes[index] != 0xD9 || bytes[index - 1] != 0xFF
            index -= 1
        }
    }

    // MARK: WebP

    /// The content of the first chunk with that name.
    static func webpChunk(_ name: String, in bytes: [UInt8]) -> Range<Int>? {
        var at = 12
        while let length = bytes.littleEndian(at + 4, 4), length <= bytes.count - at - 8 {
            if bytes[at..<(at + 4)].elementsEqual(name.utf8) { return (at + 8)..<(at + 8 + length) }
            at += 8 + length + (length & 1)
        }
        return nil
    }

    private mutating func readWebP(_ bytes: [UInt8]) {
        let first = String(decoding: bytes.dropFirst(12).prefix(4), as: UTF8.self)
        func number(_ at: Int, _ count: Int) -> Int? { bytes.littleEndian(at, count) }
        switch first {
        case "VP8X":
            width = number(24, 3).map { 1 + $0 }
            height = number(27, 3).map { 1 + $0 }
        case "VP8 ":
            width = number(26, 2).map { $0 & 0x3FFF }
            height = number(28, 2).map { $0 & 0x3FFF }
        case "VP8L":
            width = number(21, 4).map { 1 + $0 & 0x3FFF }
            height = number(21, 4).map { 1 + ($0 >> 14) & 0x3FFF }
        default: break
        }
        if let range = Self.webpChunk("EXIF", in: bytes) {
            let content = bytes[range]
            let prefix = Array("Exif".utf8) + [0, 0]
            turn(TIFF(content.starts(with: prefix) ? content.dropFirst(6) : content)?.orientation)
        }
        isTruncated = number(4, 4).map { bytes.count < $0 + 8 } ?? true
    }

    /// Whether it is an animated WebP, which most versions of FFmpeg cannot decode.
    static func isAnimatedWebP(_ bytes: [UInt8]) -> Bool {
        MediaKind(bytes) == .webp && bytes.dropFirst(12).starts(with: "VP8X".utf8)
            && (bytes.bigEndian(20, 1) ?? 0) & 2 != 0
    }

    // MARK: TIFF

    private mutating func readTIFF(_ bytes: [UInt8]) {
        guard let tiff = TIFF(bytes[...]) else { return }
        // Raw photographs are TIFF files that start with a small preview.
        if tiff.isPreview { return (width, height) = (0, 0) }
        (width, height) = (tiff.width, tiff.height)
        turn(tiff.orientation)
    }
}

/// The first directory of a TIFF file, or of EXIF, which has the same form.
private struct TIFF {
    private(set) var width, height, orientation: Int?
    /// Whether the picture is a reduced version of another one in the file.
    private(set) var isPreview = false

    init?(_ bytes: ArraySlice<UInt8>) {
        let isLittle = bytes.starts(with: "II".utf8)
        guard isLittle || bytes.starts(with: "MM".utf8) else { return nil }
        func number(_ at: Int, _ count: Int) -> Int? {
            isLittle ? bytes.littleEndian(at, count) : bytes.bigEndian(at, count)
        }
        guard number(2, 2) == 42, let directory = number(4, 4), let entries = number(directory, 2)
        else { return nil }
        for entry in 0..<entries {
            let at = directory + 2 + 12 * entry
            guard let tag = number(at, 2) else { break }
            // A SHORT or a LONG.
            let value = number(at + 2, 2) == 3 ? number(at + 8, 2) : number(at + 8, 4)
            switch tag {
            case 0xFE: isPreview = (value ?? 0) & 1 == 1
            case 0x100: width = value
            case 0x101: height = value
            case 0x112: orientation = orientation ?? value
            default: break
            }
        }
    }
}
