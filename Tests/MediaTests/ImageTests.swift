// Pictures in: formats, orientation, damage; resizing and sizes.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

/// A folder that goes away with the test.
final class Scratch {
    let path: String
    init() {
        var template = Array("/tmp/turbodiffusion-media-XXXXXX".utf8CString)
        path = String(cString: mkdtemp(&template))
    }
    deinit { remove(path) }
    private func remove(_ path: String) {
        if unlink(path) == 0 { return }
        for name in (try? FilePath(path).fileNames()) ?? [] { remove(path + "/" + name) }
        rmdir(path)
    }
    var names: [String] { (try? FilePath(path).fileNames()) ?? [] }
    func write(_ bytes: [UInt8], _ name: String) -> String {
        let file = path + "/" + name
        let stream = fopen(file, "wb")!
        fwrite(bytes, 1, bytes.count, stream)
        fclose(stream)
        return file
    }
    func read(_ name: String) -> [UInt8] {
        let stream = fopen(path + "/" + name, "rb")!
        defer { fclose(stream) }
        var bytes: [UInt8] = []
        while case let byte = fgetc(stream), byte != EOF { bytes.append(UInt8(byte)) }
        return bytes
    }
}

/// Red grows to the right, green downwards.
func gradient(width: Int, height: Int, blue: UInt8 = 40) -> RGBImage {
    var pixels: [UInt8] = []
    for y in 0..<height {
        for x in 0..<width {
            pixels += [
                UInt8(x * 255 / max(1, width - 1)), UInt8(y * 255 / max(1, height - 1)), blue,
            ]
        }
    }
    return RGBImage(width: width, height: height, pixels: pixels)
}

/// Writes `image` through ffmpeg with the given output arguments.
func encode(_ image: RGBImage, _ arguments: [String], to file: String) async throws {
    let child = try await Child.start(
        try FFmpeg.find().ffmpeg,
        ["-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s"]
            + ["\(image.width)x\(image.height)", "-i", "-"] + arguments + [file], input: .pipe)
    _ = await child.write(image.pixels)
    child.closeInput()
    let remains = await child.remains
    try #require(remains.ending.isSuccess, "\(remains.words.summary)")
}

func meanDifference(_ a: RGBImage, _ b: RGBImage) -> Double {
    let sum = zip(a.pixels, b.pixels).reduce(0) { $0 + abs(Int($1.0) - Int($1.1)) }
    return Double(sum) / Double(a.pixels.count)
}

@Suite("Pictures in")
struct ImageTests {
    @Test(
        "formats and pixel types",
        arguments: [
            ("a.png", ["-pix_fmt", "rgb24"], 0.0), ("a16.png", ["-pix_fmt", "rgb48be"], 0.6),
            ("alpha.png", ["-pix_fmt", "rgba"], 0.0), ("a.jpg", ["-q:v", "1"], 2.5),
            ("a.webp", ["-lossless", "1", "-pix_fmt", "bgra"], 0.0), ("a.bmp", [], 0.0),
        ])
    func formats(name: String, arguments: [String], tolerance: Double) async throws {
        let scratch = Scratch()
        let image = gradient(width: 38, height: 22)
        try await encode(image, arguments, to: scratch.path + "/" + name)
        let found = try await readImage(path: scratch.path + "/" + name)
        #expect((found.width, found.height) == (38, 22))
        #expect(meanDifference(found, image) <= tolerance)
    }

    @Test("grey pictures have three equal channels", arguments: ["gray", "gray16be"])
    func grey(pixelFormat: String) async throws {
        let scratch = Scratch()
        let file = scratch.path + "/grey.png"
        try await encode(gradient(width: 16, height: 16), ["-pix_fmt", pixelFormat], to: file)
        let found = try await readImage(path: file)
        for i in stride(from: 0, to: found.pixels.count, by: 3) {
            #expect(
                found.pixels[i] == found.pixels[i + 1] && found.pixels[i] == found.pixels[i + 2])
        }
    }

    @Test("EXIF orientation is applied", arguments: 1...8)
    func orientation(value: Int) async throws {
        let scratch = Scratch()
        let upright = gradient(width: 48, height: 32)
        // What a camera stores so that `value` makes it upright again.
        let stored = upright.stored(for: value)
        let file = scratch.path + "/plain.jpg"
        try await encode(stored, ["-q:v", "1"], to: file)
        var bytes = scratch.read("plain.jpg")
        let tiff: [UInt8] =
            Array("Exif".utf8) + [0, 0] + Array("MM".utf8) + [0, 42, 0, 0, 0, 8, 0, 1]
            + [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, UInt8(value), 0, 0, 0, 0, 0, 0]
        bytes.insert(contentsOf: [0xFF, 0xE1, 0, UInt8(tiff.count + 2)] + tiff, at: 2)
        let found = try await readImage(path: scratch.write(bytes, "exif.jpg"))
        #expect((found.width, found.height) == (48, 32))
        #expect(meanDifference(found, upright) < 3)
    }

    @Test("damaged and foreign files are refused with their reason")
    func refusals() async throws {
        let scratch = Scratch()
        await #expect(throws: MediaError.noSuchFile(path: "/nonexistent.png")) {
            try await readImage(path: "/nonexistent.png")
        }
        await #expect(throws: MediaError.self) {
            try await readImage(path: scratch.write(Array("hello".utf8), "text.png"))
        }
        await #expect(throws: MediaError.self) {
            try await readImage(path: scratch.write([], "empty.png"))
        }
        for name in ["whole.png", "whole.jpg", "whole.webp"] {
            let whole = scratch.path + "/" + name
            try await encode(gradient(width: 64, height: 64), [], to: whole)
            let bytes = scratch.read(name)
            let cut = scratch.write(Array(bytes.prefix(bytes.count * 2 / 3)), "cut-" + name)
            await #expect(throws: MediaError.truncated(path: cut)) {
                try await readImage(path: cut)
            }
        }
        // A header that announces 60,000 x 60,000 pixels.
        var bytes = scratch.read("whole.png")
        bytes.replaceSubrange(16..<24, with: [0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60])
        let huge = scratch.write(bytes, "huge.png")
        await #expect {
            try await readImage(path: huge)
        } throws: { error in
            if case MediaError.tooLarge = error { true } else { false }
        }
    }

    @Test("resizing keeps constant pictures, and averages when it shrinks")
    func resizing() {
        let flat = RGBImage(width: 31, height: 17, red: 200, green: 3, blue: 77)
        #expect(
            resize(flat, width: 64, height: 5)
                == RGBImage(width: 64, height: 5, red: 200, green: 3, blue: 77))
        let image = gradient(width: 64, height: 64)
        let small = resize(image, width: 4, height: 4)
        // The second of four pixels stands for columns 16 to 31, away from the edge.
        #expect(abs(Int(small.pixels[3]) - 95) <= 1, "\(small.pixels)")
        #expect(resize(image, width: 64, height: 64) == image)
    }

    @Test("sizes: names, pixels, and the nearest that fits")
    func sizes() throws {
        #expect(try Resolution("480p") == Resolution(width: 832, height: 480))
        #expect(try Resolution("720p", aspectRatio: "9:16") == Resolution(width: 720, height: 1280))
        #expect(try Resolution("256x144") == Resolution(width: 256, height: 144))
        #expect {
            try Resolution("250x144")
        } throws: { "\($0)".contains("256x144") }
        #expect(throws: MediaError.self) { try Resolution("9k") }
        #expect(
            try Resolution("720p").adapted(toImageWidth: 640, height: 480)
                == Resolution(width: 1104, height: 832))
    }
}

extension RGBImage {
    /// The picture as stored with an EXIF orientation: the inverse of what a reader applies.
    func stored(for orientation: Int) -> RGBImage {
        let (w, h) = orientation >= 5 ? (height, width) : (width, height)
        var out = [UInt8](repeating: 0, count: pixels.count)
        for y in 0..<height {
            for x in 0..<width {
                let (column, row) =
                    switch orientation {
                    case 1: (x, y)
                    case 2: (w - 1 - x, y)
                    case 3: (w - 1 - x, h - 1 - y)
                    case 4: (x, h - 1 - y)
                    case 5: (y, x)
                    case 6: (y, h - 1 - x)
                    case 7: (w - 1 - y, h - 1 - x)
                    default: (w - 1 - y, x)
                    }
                for c in 0..<3 { out[3 * (row * w + column) + c] = pixels[3 * (y * width + x) + c] }
            }
        }
        return RGBImage(width: w, height: h, pixels: out)
    }
}
