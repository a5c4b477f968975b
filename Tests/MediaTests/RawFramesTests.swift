// Frames for other programs: through descriptors that were handed over for them, and no others.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

@Suite struct RawFramesTests {
    @Test(
        "names of descriptors",
        arguments: [
            ("-", 1), ("/dev/stdout", 1), ("/dev/fd/3", 3), ("/dev/fd/63", 63), ("/dev/fd/x", nil),
            ("/dev/fd/-1", nil), ("a-", nil), ("/dev/null", nil),
        ] as [(String, Int32?)])
    func names(path: String, descriptor: Int32?) {
        #expect(RawFrames.descriptor(named: path) == descriptor)
        if let descriptor { #expect(try! VideoFormat(path: path) == .raw(descriptor: descriptor)) }
    }

    /// A pipe as a parent hands it over: open in programs that this one starts.
    private func pipe() throws -> (reading: Int32, writing: Int32) {
        var ends: [Int32] = [-1, -1]
        try #require(Glibc.pipe(&ends) == 0)
        return (ends[0], ends[1])
    }

    @Test("frames arrive as they are, in order")
    func frames() async throws {
        let (reading, writing) = try pipe()
        defer { close(reading) }
        let path = "/dev/fd/\(writing)"
        let options = VideoWriter.Options(path: path, replaces: false, width: 4, height: 2)
        try await VideoWriter.check(options, frames: 3)
        let writer = try VideoWriter(options)
        let frames = (0..<3).map { frame in (0..<24).map { UInt8(frame * 24 + $0) } }
        try await writer.append(frames[0])
        try await writer.append(frames[1] + frames[2])
        #expect(try await writer.finish() == path)
        close(writing)
        var bytes = [UInt8](repeating: 0, count: 100)
        #expect(read(reading, &bytes, 100) == 72)
        #expect(Array(bytes.prefix(72)) == frames.flatMap { $0 })
    }

    @Test("descriptors that are not for frames are refused")
    func refused() throws {
        let (reading, writing) = try pipe()
        defer {
            close(reading)
            close(writing)
        }
        let own = fcntl(writing, F_DUPFD_CLOEXEC, 3)
        defer { close(own) }
        for descriptor in [reading, own, 0, 2, 9999] {
            #expect(throws: MediaError.self) {
                try RawFrames.check(descriptor, path: "/dev/fd/\(descriptor)")
            }
        }
        try RawFrames.check(writing, path: "-")
    }

    @Test("a reader that stops is an error, not the end of the process")
    func stopped() async throws {
        let (reading, writing) = try pipe()
        defer { close(writing) }
        let writer = try VideoWriter(
            .init(path: "/dev/fd/\(writing)", replaces: false, width: 4, height: 2))
        close(reading)
        await #expect(throws: MediaError.self) {
            for _ in 0..<100 { try await writer.append([UInt8](repeating: 0, count: 24)) }
            try await writer.finish()
        }
    }

    @Test("the ffmpeg of a Python package")
    func packaged() throws {
        let scratch = Scratch()
        #expect(FFmpeg.packaged(in: [FilePath(scratch.path)]) == nil)
        for folder in ["imageio_ffmpeg", "imageio_ffmpeg/binaries"] {
            mkdir(scratch.path + "/" + folder, 0o755)
        }
        _ = scratch.write([], "imageio_ffmpeg/binaries/README.md")
        let program = scratch.write([], "imageio_ffmpeg/binaries/ffmpeg-linux-x86_64-v7.1")
        #expect(FFmpeg.packaged(in: [FilePath(scratch.path)]) == nil)
        chmod(program, 0o755)
        #expect(FFmpeg.packaged(in: ["/nonexistent", FilePath(scratch.path)]) == program)
    }
}
