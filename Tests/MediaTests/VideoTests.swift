// Video out: whole files or nothing, metadata, back-pressure, failures.

import Glibc
import Media
import Testing

@Suite("Video out")
struct VideoTests {
    private func write(
        _ path: String, frames: Int = 5, width: Int = 64, height: Int = 48, metadata: String? = nil
    ) async throws {
        let writer = try VideoWriter(
            .init(path: path, replaces: false, width: width, height: height, metadata: metadata))
        for index in 0..<frames {
            try await writer.append(
                gradient(width: width, height: height, blue: UInt8(index * 40 % 256)))
        }
        try await writer.finish()
    }

    @Test(
        "every format holds its frames and its metadata",
        arguments: ["v.mp4", "v.webm", "v.gif", "v.webp", "%03d.png"])
    func formats(name: String) async throws {
        let scratch = Scratch()
        let path = scratch.path + "/" + name
        let text = #"{"prompt":"a \"red\" <ball> & 一只猫","seed":7}"#
        try await write(path, metadata: text)
        let first = name.contains("%") ? scratch.path + "/001.png" : path
        #expect(try await readMetadata(path: first) == text)
        // FFmpeg 5 writes animated WebP but cannot read it.
        if name != "v.webp" {
            let video = try await readVideo(path: path)
            #expect((video.width, video.height, video.count) == (64, 48, 5))
            let last = RGBImage(
                width: 64, height: 48, pixels: Array(video.pixels.suffix(3 * 64 * 48)))
            let expected = gradient(width: 64, height: 48, blue: 160)
            let difference = zip(last.pixels, expected.pixels).map { abs(Int($0) - Int($1)) }
            #expect(difference.reduce(0, +) / difference.count <= (name == "v.gif" ? 12 : 3))
        }
        #expect(scratch.names.allSatisfy { !$0.hasPrefix(".") })
    }

    /// A video of one colour in each quarter of its frames. colors: red, green and blue of four
    private func quarters(_ colors: [[Int]], as format: PixelFormat) -> [UInt8] {
        func at(_ row: Int, _ column: Int, of height: Int, _ width: Int) -> [Double] {
            colors[row * 2 / height * 2 + column * 2 / width].map { Double($0) / 255 }
        }
        func luma(_ c: [Double]) -> Double { 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] }
        let (width, height) = (64, 64)
        var bytes: [UInt8] = []
        for row in 0..<height {
            for column in 0..<width {
                let color = at(row, column, of: height, width)
                bytes +=
                    format == .rgb24
                    ? color.map { UInt8($0 * 255 + 0.5) } : [UInt8(16.5 + 219 * luma(color))]
            }
        }
        guard format == .nv12 else { return bytes }
        for row in 0..<height / 2 {
            for column in 0..<width / 2 {
                let color = at(row, column, of: height / 2, width / 2)
                bytes.append(UInt8(128.5 + 224 * (color[2] - luma(color)) / 1.8556))
                bytes.append(UInt8(128.5 + 224 * (color[0] - luma(color)) / 1.5748))
            }
        }
        return bytes
    }

    @Test(
        "colours come back as they went in, from RGB as from NV12", arguments: ["v.mp4", "v.webm"],
        PixelFormat.allCases)
    func colors(name: String, format: PixelFormat) async throws {
        for colors in [
            [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0]],
            [[0, 0, 255], [128, 128, 128], [255, 255, 0], [40, 90, 200]],
        ] {
            let scratch = Scratch()
            let path = scratch.path + "/" + name
            let writer = try VideoWriter(
                .init(
                    path: path, replaces: false, width: 64, height: 64, pixelFormat: format, crf: 0)
            )
            for _ in 0..<3 { try await writer.append(quarters(colors, as: format)) }
            try await writer.finish()
            let video = try await readVideo(path: path)
            for quarter in 0..<4 {
                let (row, column) = (quarter / 2 * 32 + 16, quarter % 2 * 32 + 16)
                let pixel = video.pixels.dropFirst((row * 64 + column) * 3).prefix(3)
                for (got, wanted) in zip(pixel, colors[quarter]) {
                    #expect(abs(Int(got) - wanted) <= 2, "\(Array(pixel)) for \(colors[quarter])")
                }
            }
        }
    }

    @Test(
        "odd sides have no black edge, and NV12 makes pictures too", arguments: PixelFormat.allCases
    )
    func oddFrames(format: PixelFormat) async throws {
        let scratch = Scratch()
        for (name, width, height) in [("v.mp4", 33, 17), ("v.webm", 33, 17), ("%d.png", 34, 18)] {
            let path = scratch.path + "/" + name
            let writer = try VideoWriter(
                .init(
                    path: path, replaces: false, width: width, height: height, pixelFormat: format))
            let gray = format.planes(width: width, height: height).flatMap { plane in
                [UInt8](
                    repeating: plane.black == 16 ? 126 : 128, count: plane.rows * plane.rowBytes)
            }
            #expect(gray.count == writer.frameBytes)
            try await writer.append(gray + gray)
            try await writer.finish()
            let video = try await readVideo(path: path)
            #expect(video.count == 2)
            #expect(video.pixels.allSatisfy { (126...130).contains($0) }, "\(name)")
        }
    }

    @Test("equal frames give equal files")
    func deterministic() async throws {
        let scratch = Scratch()
        try await write(scratch.path + "/a.mp4")
        try await write(scratch.path + "/b.mp4")
        #expect(scratch.read("a.mp4") == scratch.read("b.mp4"))
    }

    @Test("cancelling a writer, or releasing it, leaves nothing behind")
    func cancelled() async throws {
        let scratch = Scratch()
        let writer = try VideoWriter(
            .init(path: scratch.path + "/v.mp4", replaces: false, width: 64, height: 48))
        try await writer.append(gradient(width: 64, height: 48))
        await writer.cancel()
        #expect(scratch.names.isEmpty)
        await #expect(throws: (any Error).self) {
            try await writer.append(gradient(width: 64, height: 48))
        }
    }

    @Test("an existing file survives a failed run")
    func keepsOldFile() async throws {
        let scratch = Scratch()
        let path = scratch.write(Array("precious".utf8), "v.mp4")
        #expect(throws: MediaError.exists(path: path)) {
            try VideoWriter(.init(path: path, replaces: false, width: 64, height: 48))
        }
        let writer = try VideoWriter(.init(path: path, replaces: true, width: 64, height: 48))
        try await writer.append(gradient(width: 64, height: 48))
        await writer.cancel()
        #expect(scratch.read("v.mp4") == Array("precious".utf8))
    }

    @Test("what cannot work is refused before any work")
    func refusals() {
        #expect(throws: MediaError.self) { try VideoWriter.check(path: "/tmp/video.xyz") }
        #expect(throws: MediaError.noSuchFolder(path: "/nonexistent/folder")) {
            try VideoWriter.check(path: "/nonexistent/folder/video.mp4")
        }
        #expect(throws: MediaError.self) { try VideoWriter.check(path: "/proc/video.mp4") }
        #expect(throws: MediaError.self) {
            try VideoWriter(
                .init(path: "/tmp/video.mp4", replaces: false, width: 64, height: 48, crf: 99))
        }
    }

    @Test("what is no video is told by its header alone")
    func headers() async throws {
        let scratch = Scratch()
        try await write(scratch.path + "/v.mp4")
        try await FrameReader.check(path: scratch.path + "/v.mp4")
        let junk = scratch.write(Array("junk".utf8), "junk.mp4")
        await #expect(throws: MediaError.self) { try await FrameReader.check(path: junk) }
    }

    @Test("why nothing can be read of an animated WebP is said")
    func animatedWebP() async throws {
        let scratch = Scratch()
        let path = scratch.path + "/v.webp"
        try await write(path)
        // Newer versions of FFmpeg read it.
        do { _ = try await readVideo(path: path) } catch {
            #expect("\(error)".contains("does not decode animated WebP"), "\(error)")
        }
    }

    @Test("a full disk is named, and nothing is left")
    func noSpace() async throws {
        let scratch = Scratch()
        // A limit on file sizes fails the child's writes as a full disk does.
        let real = try FFmpeg.find()
        let script = "#!/bin/sh\nulimit -f 8\nexec \(real.ffmpeg) \"$@\"\n"
        let limited = scratch.write(Array(script.utf8), "ffmpeg")
        chmod(limited, 0o755)
        let path = scratch.path + "/v.mp4"
        let writer = try VideoWriter(
            .init(
                path: path, replaces: false, width: 256, height: 256,
                ffmpeg: FFmpeg(ffmpeg: limited, ffprobe: real.ffprobe)))
        await #expect(throws: MediaError.noSpace(path: path)) {
            for index in 0..<60 {
                try await writer.append(gradient(width: 256, height: 256, blue: UInt8(index * 4)))
            }
            try await writer.finish()
        }
        #expect(scratch.names == ["ffmpeg"])
    }
}
