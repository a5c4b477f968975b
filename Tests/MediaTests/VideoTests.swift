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
            .init(path: path, width: width, height: height, metadata: metadata))
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

    @Test("equal frames give equal files")
    func deterministic() async throws {
        let scratch = Scratch()
        try await write(scratch.path + "/a.mp4")
        try await write(scratch.path + "/b.mp4")
        #expect(scratch.read("a.mp4") == scratch.read("b.mp4"))
    }

    @Test("cancelling, or letting go, leaves nothing behind")
    func cancelled() async throws {
        let scratch = Scratch()
        let writer = try VideoWriter(.init(path: scratch.path + "/v.mp4", width: 64, height: 48))
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
        let writer = try VideoWriter(.init(path: path, width: 64, height: 48))
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
            try VideoWriter(.init(path: "/tmp/video.mp4", width: 64, height: 48, crf: 99))
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
                path: path, width: 256, height: 256,
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
