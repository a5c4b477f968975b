// Names of outputs, and the checks before any work.

import CProcess
import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

@Suite("Outputs")
struct OutputTests {
    private func options(
        _ path: String, replaces: Bool = false, fps: Double = 16, width: Int = 64, crf: Int? = nil,
        ffmpeg: FFmpeg? = nil
    ) -> VideoWriter.Options {
        .init(
            path: path, replaces: replaces, width: width, height: 48, framesPerSecond: fps,
            crf: crf,
            ffmpeg: ffmpeg)
    }

    @discardableResult
    private func write(_ options: VideoWriter.Options, frames: Int = 2, blue: UInt8 = 0)
        async throws -> String
    {
        let writer = try VideoWriter(options)
        for _ in 0..<frames {
            try await writer.append(gradient(width: options.width, height: 48, blue: blue))
        }
        return try await writer.finish()
    }

    /// A program in ffmpeg's place.
    private func program(_ script: String, in scratch: Scratch) -> FFmpeg {
        let path = scratch.write(Array("#!/bin/sh\n\(script)\n".utf8), "ffmpeg")
        chmod(path, 0o755)
        return FFmpeg(ffmpeg: path, ffprobe: path)
    }

    @Test(
        "an FFmpeg that does not work is noticed beforehand",
        arguments: [
            ("cat >/dev/null", "it wrote nothing"), ("cat >/dev/null; exit 3", "exit code 3"),
            ("echo \"Unknown encoder 'libx264'\" >&2; exit 1", "no encoder libx264"),
            ("kill -SEGV $$", "killed by signal 11"),
            ("echo broken >&2; exit 1", "ffmpeg failed: broken"),
        ])
    func brokenPrograms(script: String, words: String) async throws {
        let scratch = Scratch()
        let ffmpeg = program(script, in: scratch)
        await #expect {
            try await VideoWriter.check(options(scratch.path + "/v.mp4", ffmpeg: ffmpeg), frames: 2)
        } throws: { "\($0)".contains(words) }
        #expect(scratch.names == ["ffmpeg"])
    }

    @Test("a program that cannot be run is named")
    func notAProgram() async throws {
        let scratch = Scratch()
        let path = scratch.write([0, 1, 2, 3], "ffmpeg")
        chmod(path, 0o755)
        await #expect {
            try await VideoWriter.check(
                options(scratch.path + "/v.mp4", ffmpeg: FFmpeg(ffmpeg: path, ffprobe: path)))
        } throws: { "\($0)".contains("cannot be started: Exec format error") }
    }

    @Test(
        "every format passes its own check",
        arguments: ["v.mp4", "v.webm", "v.gif", "v.webp", "new/%03d.png", "v.png"])
    func sound(name: String) async throws {
        let scratch = Scratch()
        try await VideoWriter.check(
            options(scratch.path + "/" + name), frames: name == "v.png" ? 1 : 5)
        #expect(scratch.names == [])
    }

    @Test("what a format cannot hold is refused beforehand")
    func limits() async throws {
        let scratch = Scratch()
        for (bad, words) in [
            (options(scratch.path + "/v.gif", fps: 60), "0.1 to 50"),
            (options(scratch.path + "/v.webp", fps: 120), "0.1 to 90"),
            (options(scratch.path + "/v.webp", width: 16384), "16383"),
            (options(scratch.path + "/v.mp4", crf: 99), "0...51"),
            (options(scratch.path + "/v.png"), "one frame"),
            (options(scratch.path + "/no/v.mp4"), "no such folder"),
            (options(scratch.path + "/no/new/%d.png"), "no such folder"),
            (options(scratch.path + "/v.mp4.tmp"), "no writer"),
        ] {
            await #expect { try await VideoWriter.check(bad, frames: 2) } throws: {
                "\($0)".contains(words)
            }
        }
        try await VideoWriter.check(options(scratch.path + "/v.gif", fps: 50), frames: 2)
        #expect(scratch.names == [])
    }

    @Test("a GIF plays as long as it should", arguments: [50.0, 24])
    func durations(fps: Double) async throws {
        let scratch = Scratch()
        try await write(options(scratch.path + "/v.gif", fps: fps), frames: 24)
        let bytes = scratch.read("v.gif")
        // Graphic control extensions hold each frame's hundredths of a second.
        let delays = bytes.indices.dropLast(6).filter {
            bytes[$0...].starts(with: [0x21, 0xF9, 4])
        }
        .compactMap { bytes.littleEndian($0 + 4, 2) }
        #expect(delays.count == 24 && delays.allSatisfy { $0 >= 2 })
        #expect(abs(Double(delays.reduce(0, +)) / 100 - 24 / fps) < 0.02)
    }

    @Test("the best quality is what browsers play")
    func profile() async throws {
        let scratch = Scratch()
        let path = scratch.path + "/v.mp4"
        try await write(options(path, crf: 0), frames: 5)
        let file = try InputFile(path)
        let (output, _) = try await FFmpeg.collect(
            try FFmpeg.find().probe,
            ["-v", "error", "-show_entries", "stream=profile,pix_fmt", "-of", "csv=p=0"]
                + FFmpeg.reading(.mp4, pixelLimit: 1 << 20),
            input: .descriptor(file.descriptor.number), limit: 1000, limits: FFmpeg.probing)
        #expect(String(decoding: output, as: UTF8.self) == "High,yuv420p\n")
    }

    @Test("nothing is replaced without being asked to", arguments: ["v.mp4", "v.gif", "v.png"])
    func existing(name: String) async throws {
        let scratch = Scratch()
        let path = scratch.write(Array("precious".utf8), name)
        await #expect(throws: MediaError.exists(path: path)) {
            try await VideoWriter.check(options(path), frames: 1)
        }
        #expect(try await write(options(path, replaces: true), frames: 1) == path)
        #expect(scratch.read(name) != Array("precious".utf8))
        #expect(scratch.names == [name])
    }

    @Test("a folder in the place of one of the pictures is told beforehand")
    func folderAmongPictures() async throws {
        let scratch = Scratch()
        mkdir(scratch.path + "/0002.png", 0o755)
        await #expect(
            throws: MediaError.unwritable(
                path: scratch.path + "/0002.png", reason: "it is a folder")
        ) {
            try await VideoWriter.check(
                options(scratch.path + "/%04d.png", replaces: true), frames: 2)
        }
        #expect(scratch.names == ["0002.png"])
    }

    @Test("a file that appears while a video is made stays, and so does the video")
    func race() async throws {
        let scratch = Scratch()
        let path = scratch.path + "/v.mp4"
        let writer = try VideoWriter(options(path))
        try await writer.append(gradient(width: 64, height: 48))
        _ = scratch.write(Array("precious".utf8), "v.mp4")
        #expect(try await writer.finish() == scratch.path + "/v-2.mp4")
        #expect(scratch.read("v.mp4") == Array("precious".utf8))
        #expect(scratch.names == ["v-2.mp4", "v.mp4"])
    }

    @Test("a video is written through a symbolic link", arguments: [true, false])
    func links(exists: Bool) async throws {
        let scratch = Scratch()
        mkdir(scratch.path + "/real", 0o755)
        if exists { _ = scratch.write(Array("old".utf8), "real/target.mp4") }
        symlink("real/target.mp4", scratch.path + "/v.mp4")
        try await write(options(scratch.path + "/v.mp4", replaces: exists))
        #expect(
            FilePath(scratch.path + "/v.mp4").followingLinks.string == scratch.path
                + "/real/target.mp4")
        #expect(MediaKind(scratch.read("real/target.mp4")) == .mp4)
        #expect(try FilePath(scratch.path + "/real").fileNames() == ["target.mp4"])
    }

    @Test(
        "pictures get a new folder, are refused where some exist, and replace a longer sequence completely"
    )
    func sequences() async throws {
        let scratch = Scratch()
        let path = scratch.path + "/new/%02d.png"
        #expect(try await write(options(path), frames: 12) == path)
        #expect(try FilePath(scratch.path + "/new").fileNames().count == 12)
        let folder = FilePath(scratch.path + "/new")
        #expect(throws: MediaError.exists(path: folder.appending("01.png").string)) {
            try VideoWriter(options(path))
        }
        _ = scratch.write([1], "new/other.png")
        try await write(options(path, replaces: true), frames: 3, blue: 200)
        #expect(try folder.fileNames() == ["01.png", "02.png", "03.png", "other.png"])
        let found = try await readImage(path: folder.appending("03.png").string)
        #expect(found == gradient(width: 64, height: 48, blue: 200))
        #expect(scratch.names == ["new"])
        // A folder, and numbers that outgrow their zeros.
        try await write(options(scratch.path + "/all/"), frames: 2)
        #expect(try FilePath(scratch.path + "/all").fileNames() == ["0001.png", "0002.png"])
        #expect(FrameNames("x/a%02db.png")?.path(123).string == "x/a123b.png")
        #expect(
            try VideoFormat(path: "f/%02d.png").files(path: "f/%02d.png", frames: 2) == [
                "f/01.png", "f/02.png",
            ])
    }

    @Test("pictures go into a folder beside the wanted one if others have appeared there")
    func sequenceRace() async throws {
        let scratch = Scratch()
        let writer = try VideoWriter(options(scratch.path + "/new/%02d.png"))
        try await writer.append(gradient(width: 64, height: 48))
        mkdir(scratch.path + "/new", 0o755)
        _ = scratch.write([1], "new/01.png")
        #expect(try await writer.finish() == scratch.path + "/new-2")
        #expect(scratch.read("new/01.png") == [1])
        #expect(scratch.names == ["new", "new-2"])
    }
}

@Suite("Children")
struct ChildTests {
    private func shell(
        _ script: String, input: Child.Input = .nothing, output: Child.Output = .nothing,
        limits: Child.Limits = .init()
    ) async throws -> Child {
        try await Child.start(
            "/bin/sh", ["-c", script], input: input, output: output, limits: limits)
    }

    @Test("messages, endings and streams")
    func endings() async throws {
        #expect(await (try shell("exit 7")).remains.ending == .exited(7))
        #expect(await (try shell("kill -TERM $$")).remains.ending == .signaled(SIGTERM))
        let cat = try await shell("cat; echo done >&2", input: .pipe, output: .pipe)
        #expect(await cat.write([1, 2, 3]))
        cat.closeInput()
        #expect(await cat.read(10) == [1, 2, 3])
        #expect(await cat.remains.words.summary == "done")
        await #expect { try await Child.start("/nonexistent", []) } throws: {
            "\($0)".contains("/nonexistent cannot be started: No such file")
        }
    }

    @Test("a child that does nothing is stopped, with all that it has started")
    func hanging() async throws {
        let start = ContinuousClock.now
        let child = try await shell("sleep 100 & sleep 100", output: .pipe, limits: .init(idle: 1))
        #expect(await child.read(1) == [])
        #expect(await child.remains.ending == .tooSlow(seconds: 1))
        // One that works is only stopped by the limit for all of it.
        let busy = try await shell("while :; do :; done", limits: .init(idle: 30, total: 3))
        #expect(await busy.remains.ending == .tooSlow(seconds: 3))
        #expect(ContinuousClock.now - start < .seconds(60))
    }

    @Test("a child that nobody waits for does not count as hanging")
    func patient() async throws {
        let child = try await shell("cat", input: .pipe, output: .pipe, limits: .init(idle: 3))
        try await Task.sleep(for: .seconds(6))
        #expect(await child.write([9]))
        child.closeInput()
        #expect(await child.read(5) == [9])
        #expect(await child.remains.ending == .exited(0))
    }

    @Test("endless messages take no memory")
    func manyWords() async throws {
        let child = try await shell("yes word | head -c 30000000 >&2; echo last >&2")
        let words = await child.remains.words
        #expect(words.summary.hasSuffix("last") && words.summary.utf8.count < 5000)
    }

    @Test("a child ends with the thread that watches it, and so with the process")
    func parentEnds() async throws {
        let process = await withCheckedContinuation {
            (started: CheckedContinuation<pid_t, Never>) in
            _ = onThread {
                var process = pid_t()
                let words = ["sleep", "100"]
                var arguments = words.map { strdup($0) } + [nil]
                _ = child_start("/bin/sleep", &arguments, [0, 1, 2], &process)
                started.resume(returning: process)
            }
        }
        var status: Int32 = 0
        #expect(waitpid(process, &status, 0) == process)
        #expect(status & 0x7F == SIGKILL)
    }

    @Test("a child has the standard descriptors and no other")
    func inheritance() async throws {
        let secret = open("/dev/null", O_RDONLY)
        defer { close(secret) }
        let child = try await shell("ls /proc/self/fd | wc -l", output: .pipe)
        // ls itself has the folder open.
        #expect(String(decoding: await child.read(10), as: UTF8.self) == "4\n")
        #expect(await child.remains.ending == .exited(0))
    }
}
