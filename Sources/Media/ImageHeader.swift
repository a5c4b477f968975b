// ImageHeader: what the first bytes of a picture announce, read before anything is decoded.

import Ground

/// Size, orientation and completeness of a PNG, JPEG or WebP file; other formats are left to FFmpeg.
struct ImageHeader: Equatable {
    enum Kind { case png, jpeg, webp }

    let kind: Kind
    /// As stored, before any rotation.
    let width: Int
    let height: Int
    /// EXIF orientation, 1 (upright) to 8.
    let orientation: Int
    /// Whether the file ends before the picture does.
    let isTruncated: Bool

    /// Nil where `bytes` are none of the three or have no readable size.
    init?(_ bytes: [UInt8]) {
        if bytes.starts(with: [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]) {
            guard let width = bytes.bigEndian(16, 4), let height = bytes.bigEndian(20, 4) else {
                return nil
            }
            let chunks = Self.pngChunks(bytes)
            let exif = chunks.first { $0.name == "eXIf" }.flatMap {
                Self.orientation(tiff: bytes[$0.content])
            }
            self.init(
                kind: .png, width: width, height: height, orientation: exif ?? 1,
                isTruncated: chunks.last?.name != "IEND")
        } else if bytes.starts(with: [0xFF, 0xD8, 0xFF]) {
            self.init(jpeg: bytes)
        } else if bytes.starts(with: "RIFF".utf8), bytes.dropFirst(8).starts(with: "WEBP".utf8) {
            self.init(webp: bytes)
        } else {
            return nil
        }
    }

    private init(kind: Kind, width: Int, height: Int, orientation: Int, isTruncated: Bool) {
        self.kind = kind
        self.width = width
        self.height = height
        self.orientation = (1...8).contains(orientation) ? orientation : 1
        self.isTruncated = isTruncated
    }

    // MARK: PNG

    /// The chunks of a PNG file, in order, as far as they are whole.
    static func pngChunks(_ bytes: [UInt8]) -> [(name: String, content: Range<Int>)] {
        var chunks: [(name: String, content: Range<Int>)] = []
        var at = 8
        while let length = bytes.bigEndian(at, 4), at + 12 + length <= bytes.count {
            let name = String(decoding: bytes[(at + 4)..<(at + 8)], as: UTF8.self)
            chunks.append((name, (at + 8)..<(at + 8 + length)))
            at += 12 + length
        }
        return chunks
    }

    // MARK: JPEG

    private init?(jpeg bytes: [UInt8]) {
        var orientation: Int?
        var size: (width: Int, height: Int)?
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
            if isFrame, let height = bytes.bigEndian(content + 1, 2),
                let width = bytes.bigEndian(content + 3, 2)
            {
                size = (width, height)
            }
            let end = min(at + 2 + length, bytes.count)
            if marker == 0xFFE1, content + 6 <= end,
                bytes[content..<end].starts(with: Array("Exif".utf8) + [0, 0])
            {
                orientation = orientation ?? Self.orientation(tiff: bytes[(content + 6)..<end])
            }
            at += 2 + length
            if marker == 0xFFDA { break }
        }
        guard let size else { return nil }
        var ends = false
        var index = bytes.count - 1
        while index > at, !ends {
            ends = bytes[index] == 0xD9 && bytes[index - 1] == 0xFF
            index -= 1
        }
        self.init(
            kind: .jpeg, width: size.width, height: size.height, orientation: orientation ?? 1,
            isTruncated: !ends)
    }

    // MARK: WebP

    /// The content of the first chunk of that name.
    static func webpChunk(_ name: String, in bytes: [UInt8]) -> Range<Int>? {
        var at = 12
        while let length = bytes.littleEndian(at + 4, 4), at + 8 + length <= bytes.count {
            if bytes[at..<(at + 4)].elementsEqual(name.utf8) { return (at + 8)..<(at + 8 + length) }
            at += 8 + length + (length & 1)
        }
        return nil
    }

    private init?(webp bytes: [UInt8]) {
        guard let riff = bytes.littleEndian(4, 4), bytes.count >= 30 else { return nil }
        let size: (Int, Int)
        switch String(decoding: bytes[12..<16], as: UTF8.self) {
        case "VP8X":
            size = (1 + bytes.littleEndian(24, 3)!, 1 + bytes.littleEndian(27, 3)!)
        case "VP8 ":
            size = (bytes.littleEndian(26, 2)! & 0x3FFF, bytes.littleEndian(28, 2)! & 0x3FFF)
        case "VP8L":
            let bits = bytes.littleEndian(21, 4)!
            size = (1 + bits & 0x3FFF, 1 + (bits >> 14) & 0x3FFF)
        default:
            return nil
        }
        let exif = Self.webpChunk("EXIF", in: bytes).flatMap { range -> Int? in
            let content = bytes[range]
            let prefix = Array("Exif".utf8) + [0, 0]
            return Self.orientation(
                tiff: content.starts(with: prefix) ? content.dropFirst(6) : content)
        }
        self.init(
            kind: .webp, width: size.0, height: size.1, orientation: exif ?? 1,
            isTruncated: bytes.count < riff + 8)
    }

    // MARK: EXIF

    /// Tag 0x0112 of the first directory of a TIFF block.
    private static func orientation(tiff: ArraySlice<UInt8>) -> Int? {
        let isLittle = tiff.starts(with: "II".utf8)
        guard isLittle || tiff.starts(with: "MM".utf8) else { return nil }
        func number(_ at: Int, _ count: Int) -> Int? {
            isLittle ? tiff.littleEndian(at, count) : tiff.bigEndian(at, count)
        }
        guard number(2, 2) == 42, let directory = number(4, 4),
            let entries = number(directory, 2)
        else { return nil }
        for entry in 0..<min(entries, 1000) {
            let at = directory + 2 + 12 * entry
            if number(at, 2) == 0x0112 { return number(at + 8, 2) }
        }
        return nil
    }
}
