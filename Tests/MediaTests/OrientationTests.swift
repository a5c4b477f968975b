// Which way up a picture is: every format's own way of saying so.

import Ground
import Testing

@testable import Media

/// A TIFF block of one directory with nothing but an orientation.
private func exif(_ orientation: Int, isLittle: Bool, isLong: Bool) -> [UInt8] {
    func number(_ value: Int, _ count: Int) -> [UInt8] {
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        return isLittle ? bytes : bytes.reversed()
    }
    return Array((isLittle ? "II" : "MM").utf8) + number(42, 2) + number(8, 4) + number(1, 2)
        + number(0x112, 2) + number(isLong ? 4 : 3, 2) + number(1, 4)
        + number(orientation, isLong ? 4 : 2) + (isLong ? [] : [0, 0]) + number(0, 4)
}

private func big(_ value: Int, _ count: Int = 4) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * (count - 1 - $0))) }
}

private func box(_ name: String, _ content: [UInt8]) -> [UInt8] {
    big(content.count + 8) + Array(name.utf8) + content
}

@Suite("Which way up")
struct OrientationTests {
    private let upright = gradient(width: 48, height: 32)

    private func check(_ bytes: [UInt8], _ name: String, tolerance: Double = 3) async throws {
        let scratch = Scratch()
        let found = try await readImage(path: scratch.write(bytes, name))
        #expect((found.width, found.height) == (48, 32))
        guard found.pixels.count == upright.pixels.count else { return }
        #expect(meanDifference(found, upright) < tolerance)
    }

    private func stored(for orientation: Int, as name: String, _ arguments: [String] = [])
        async throws -> [UInt8]
    {
        let scratch = Scratch()
        try await encode(upright.stored(for: orientation), arguments, to: scratch.path + "/" + name)
        return scratch.read(name)
    }

    @Test("JPEG: EXIF in both byte orders, as SHORT and as LONG", arguments: 1...8, [false, true])
    func jpeg(orientation: Int, isLong: Bool) async throws {
        let plain = try await stored(for: orientation, as: "a.jpg", ["-q:v", "1"])
        for isLittle in [false, true] {
            let block =
                Array("Exif".utf8) + [0, 0] + exif(orientation, isLittle: isLittle, isLong: isLong)
            var bytes = plain
            bytes.insert(contentsOf: [0xFF, 0xE1] + big(block.count + 2, 2) + block, at: 2)
            try await check(bytes, "a.jpg")
        }
    }

    @Test("PNG: eXIf", arguments: [3, 6])
    func png(orientation: Int) async throws {
        var bytes = try await stored(for: orientation, as: "a.png")
        let content = Array("eXIf".utf8) + exif(orientation, isLittle: true, isLong: true)
        let crc = Int(content.withUnsafeBytes { CRC32.checksum($0) })
        bytes.insert(contentsOf: big(content.count - 4) + content + big(crc), at: 33)
        try await check(bytes, "a.png", tolerance: 0.1)
    }

    @Test("WebP: EXIF", arguments: [6, 8])
    func webp(orientation: Int) async throws {
        let simple = try await stored(
            for: orientation, as: "a.webp", ["-lossless", "1", "-pix_fmt", "bgra"])
        func little(_ value: Int, _ count: Int = 4) -> [UInt8] { big(value, count).reversed() }
        let block = exif(orientation, isLittle: false, isLong: false)
        let extended =
            Array("VP8X".utf8) + little(10) + [8, 0, 0, 0] + little(31, 3) + little(47, 3)
            + simple[12...] + Array("EXIF".utf8) + little(block.count) + block
        try await check(
            Array("RIFF".utf8) + little(extended.count + 4) + Array("WEBP".utf8) + extended,
            "a.webp",
            tolerance: 0.1)
    }

    @Test("TIFF: its own tag", arguments: [1, 3, 6, 7], ["", "deflate"])
    func tiff(orientation: Int, compression: String) async throws {
        var bytes = try await stored(
            for: orientation, as: "a.tiff",
            compression.isEmpty ? [] : ["-compression_algo", compression])
        // Takes the place of a tag that no decoder needs, the resolution; tags ascend.
        let directory = try #require(bytes.littleEndian(4, 4))
        func entry(_ tag: Int) -> Int? {
            (0..<14).map { directory + 2 + 12 * $0 }.first { bytes.littleEndian($0, 2) == tag }
        }
        let (samples, resolution) = (try #require(entry(0x115)), try #require(entry(0x11A)))
        bytes.replaceSubrange(
            samples..<resolution + 12,
            with: exif(orientation, isLittle: true, isLong: true)[10..<22]
                + bytes[samples..<resolution])
        try await check(bytes, "a.tiff", tolerance: 0.1)
    }

    @Test("TIFF's tags are read in either byte order")
    func tiffHeader() {
        for isLittle in [false, true] {
            let header = ImageHeader(exif(5, isLittle: isLittle, isLong: false))
            #expect(header?.kind == .tiff && header?.orientation == 5)
        }
    }

    /// An AVIF header whose primary item, the second one, has these turns.
    private func heif(_ properties: [[UInt8]], indices: [Int], isLarge: Bool = false) -> [UInt8] {
        let size = box("ispe", [0, 0, 0, 0] + big(48) + big(32))
        let wide = isLarge ? 2 : 1
        let associations =
            [0, 0, 0, UInt8(wide - 1)] + big(2)
            + big(1, 2) + [1] + big(1, wide)
            + big(2, 2) + [UInt8(indices.count)]
            + indices.flatMap { big($0 | 1 << (8 * wide - 1), wide) }
        let meta = box(
            "meta",
            [0, 0, 0, 0] + box("pitm", [0, 0, 0, 0] + big(2, 2))
                + box(
                    "iprp",
                    box("ipco", (properties + [size]).flatMap { $0 }) + box("ipma", associations)))
        return box("ftyp", Array("avif".utf8) + big(0) + Array("mif1".utf8)) + meta
    }

    @Test("AVIF and HEIC: rotations and mirrorings in their order", arguments: [false, true])
    func turns(isLarge: Bool) {
        func irot(_ angle: UInt8) -> [UInt8] { box("irot", [angle]) }
        func imir(_ axis: UInt8) -> [UInt8] { box("imir", [axis]) }
        for (properties, orientation) in [
            ([], 1), ([irot(1)], 8), ([irot(2)], 3), ([irot(3)], 6), ([imir(0)], 4), ([imir(1)], 2),
            // First turned, then mirrored: rows and columns exchanged.
            ([irot(1), imir(0)], 5), ([irot(3), imir(1)], 5), ([irot(1), imir(1)], 7),
            ([imir(1), imir(1)], 1),
        ] {
            let count = properties.count
            let header = ImageHeader(
                heif(properties, indices: [count + 1] + Array(1..<count + 1), isLarge: isLarge))
            #expect(header?.kind == .heif)
            #expect((header?.width, header?.height) == (48, 32))
            #expect(header?.orientation == orientation, "\(properties)")
        }
        // Properties that are of another item, or are not there.
        #expect(ImageHeader(heif([irot(1)], indices: [2, 9, 127]))?.orientation == 1)
    }

    @Test("turns are combined")
    func composition() {
        let image = gradient(width: 5, height: 3)
        for first in 1...8 {
            for second in 1...8 {
                var header = ImageHeader(heif([], indices: []))!
                header.turn(first)
                header.turn(second)
                #expect(
                    image.oriented(first).oriented(second) == image.oriented(header.orientation))
            }
        }
    }
}
