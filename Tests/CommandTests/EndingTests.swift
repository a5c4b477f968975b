// How the program ends: by signals, without descriptors, with a file that shrinks; and what it leaves.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

private let project = FilePath(
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/"))

@Suite("The process", .serialized)
final class EndingTests {
    /// Holds the other two.
    private let root: FilePath
    /// Where the program writes.
    private let folder: FilePath
    /// Holds an `ffmpeg` that takes a second for each second of a video.
    private let slow: FilePath

    init() throws {
        var template = Array("/tmp/turbodiffusion-process-XXXXXX".utf8CString)
        root = FilePath(platformString: try #require(mkdtemp(&template)))
        (folder, slow) = (root.appending("out"), root.appending("slow"))
        for folder in [folder, slow] { mkdir(folder.string, 0o777) }
        let ffmpeg = slow.appending("ffmpeg")
        let script = "#!/bin/sh\nPATH=${PATH#*:}\nexec ffmpeg -re \"$@\"\n"
        try PendingFile.write(Array(script.utf8), to: ffmpeg, overwrite: false)
        chmod(ffmpeg.string, 0o755)
    }

    deinit { _ = system("rm -rf '\(root.string)'") }

    private func names() throws -> [String] { try folder.fileNames() }

    private let program = FilePath("/proc/self/exe").followingLinks.folder.appending(
        "turbodiffusion")

    /// Starts the program, as a shell does after `setting`. That another test lets this process ignore signals just now is
    /// not passed on.
    private func start(_ arguments: [String], after setting: String = "") async throws -> Child {
        try await Child.start(
            "/usr/bin/env",
            [
                "--default-signal=INT,QUIT", "/bin/sh", "-c", "\(setting)\nexec \"$0\" \"$@\"",
                program.string,
            ]
                + arguments)
    }

    private func video(frames: Int, fps: Int = 16) -> [String] {
        [
            "t2v", "--model", project.appending("Models/nano").string, "--prompt", "a red ball",
            "--num_frames", "\(frames)", "--fps", "\(fps)",
            "--save_path", folder.appending("v.mp4").string,
        ]
    }

    /// Starts what is still encoding its video minutes later, and waits until it does.
    private func startEncoding(after setting: String = "") async throws -> (
        child: Child, encoders: [pid_t]
    ) {
        let child = try await start(
            video(frames: 129, fps: 1), after: "PATH='\(slow.string)':$PATH\n\(setting)")
        let process = try #require(child.process)
        var encoders: [pid_t] = []
        try #require(
            wait {
                encoders = children(of: process)
                // One that only tries the encoder is gone soon.
                usleep(500_000)
                return encoders.contains { kill($0, 0) == 0 }
            })
        return (child, encoders)
    }

    /// The children of a process that run now.
    private func children(of process: pid_t) -> [pid_t] {
        ((try? FilePath("/proc").fileNames()) ?? []).compactMap { pid_t($0) }.filter { child in
            guard let file = fopen("/proc/\(child)/stat", "r") else { return false }
            defer { fclose(file) }
            var line = [CChar](repeating: 0, count: 512)
            guard fgets(&line, 512, file) != nil else { return false }
            let text = String(
                decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
            let fields = text.split(separator: ")").last?.split(separator: " ")
            return fields?.dropFirst().first.flatMap { pid_t($0) } == process
                && fields?.first != "Z"
        }
    }

    /// Waits for what comes soon, even where the machine has much else to do.
    private func wait(until isDone: () throws -> Bool) rethrows -> Bool {
        for _ in 0..<1200 {
            if try isDone() { return true }
            usleep(50_000)
        }
        return false
    }

    @Test(
        "ended while a video is encoded, it leaves no file and no encoder, and ends by the signal",
        arguments: [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1, SIGUSR2, SIGKILL])
    func signals(number: Int32) async throws {
        try await withTaskExecutorPreference(OwnThreads()) {
            let (child, encoders) = try await startEncoding()
            child.kill(by: number)
            let remains = await child.remains
            #expect(remains.ending == .signaled(number))
            #expect(number == SIGKILL || remains.words.contains("stopped"))
            #expect(wait { encoders.allSatisfy { kill($0, 0) != 0 } })
            guard number == SIGKILL else { return #expect(try names() == []) }
            // The sign that something is written stays until the next run in this folder, and takes no space.
            #expect(
                try names().allSatisfy {
                    $0.hasSuffix(".part") && folder.appending($0).fileSize == 0
                })
            let next = try await start(video(frames: 5))
            #expect(await next.remains.ending == .exited(0))
            #expect(try names() == ["v.mp4"])
        }
    }

    @Test("signals ignored by its parent stay ignored")
    func ignored() async throws {
        try await withTaskExecutorPreference(OwnThreads()) {
            let (child, _) = try await startEncoding(after: "trap '' HUP INT")
            for number in [SIGHUP, SIGINT] { child.kill(by: number) }
            usleep(300_000)
            child.kill(by: SIGTERM)
            #expect(await child.remains.ending == .signaled(SIGTERM))
        }
    }

    @Test("without standard descriptors, printed text does not end up in a file")
    func closedDescriptors() async throws {
        let child = try await start(video(frames: 5) + ["--json"], after: "exec <&- >&- 2>&-")
        _ = await child.remains
        // Whether it ends well is another matter: what it has written is whole.
        if try names() != [] {
            #expect(try await readVideo(path: folder.appending("v.mp4").string).count == 5)
        }
    }

    /// Of addresses AddressSanitizer takes terabytes.
    private static let addresses =
        environment("TURBODIFFUSION_SANITIZED") == nil
        ? ["-v 60000", "-v 200000", "-v 420000"] : []

    @Test(
        "what it may take is too little: one line before any work",
        arguments: addresses + ["-s 64", "-n 5", "-n 16", "-n 20"])
    func limits(limit: String) async throws {
        let child = try await start(video(frames: 17), after: "ulimit \(limit)")
        let remains = await child.remains
        #expect(remains.ending == .exited(1))
        #expect(remains.words.lines.count { $0.hasPrefix("Error: ") } == 1)
        #expect(!remains.words.contains("Fatal error") && !remains.words.contains("step"))
        #expect(remains.words.contains("ulimit \(limit.prefix(2))"))
        #expect(try names() == [])
    }

    @Test("who only wants latents needs no ffmpeg")
    func onlyLatents() async throws {
        let options =
            Array(video(frames: 5).dropLast(2)) + [
                "--num_steps", "1", "--save_latents", folder.appending("l.safetensors").string,
            ]
        let child = try await start(options, after: "PATH=/nonexistent")
        #expect(await child.remains.ending == .exited(0))
        #expect(try names() == ["l.safetensors"])
        let video = try await start(video(frames: 5), after: "PATH=/nonexistent")
        #expect(await video.remains.words.contains("ffmpeg was not found on PATH"))
    }

    @Test("a case that ends the process of its checks is one that failed")
    func badCase() async throws {
        let golden = project.appending("Tests/Golden/norms")
        for name in try golden.fileNames() {
            symlink(golden.appending(name).string, folder.appending(name).string)
        }
        // A norm of three numbers has no four weights.
        let header = """
            {"in.x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},\
            "w.weight":{"dtype":"F32","shape":[4],"data_offsets":[24,40]},\
            "w.bias":{"dtype":"F32","shape":[4],"data_offsets":[40,56]},\
            "out.wan_rmsnorm":{"dtype":"F32","shape":[2,3],"data_offsets":[56,80]}}
            """
        let length = (0..<8).map { UInt8(truncatingIfNeeded: header.utf8.count >> (8 * $0)) }
        try PendingFile.write(
            length + Array(header.utf8) + [UInt8](repeating: 0, count: 80),
            to: folder.appending("a.safetensors"), overwrite: false)
        let description =
            #"{"name": "bad", "op": "norms", "file": "a.safetensors", "config": {"eps": 1e-6}}"#
        try PendingFile.write(
            Array(description.utf8), to: folder.appending("a.json"), overwrite: false)
        let child = try await Child.start(
            "/bin/sh",
            [
                "-c", "\"$0\" verify --device cpu \"$1\" >\"$1/printed\"", program.string,
                folder.string,
            ])
        let remains = await child.remains
        #expect(remains.ending == .exited(1) && remains.words.lines.isEmpty)
        let printed = String(
            decoding: try folder.appending("printed").contents(), as: UTF8.self
        ).split(separator: "\n")
        #expect(printed.count { $0.hasPrefix("ok ") } >= 1)
        #expect(printed.count { $0.hasPrefix("FAIL") } == 1)
        #expect(printed.contains { $0.contains("it ended the process: rmsNorm: these do not fit") })
    }

    @Test("a mapped file that shrinks ends it with one line")
    func shrunk() async throws {
        let path = folder.appending("in\n.safetensors")
        let size = 1 << 31
        let header = #"{"x":{"dtype":"F32","shape":[\#(size / 4)],"data_offsets":[0,\#(size)]}}"#
        let length = (0..<8).map { UInt8(truncatingIfNeeded: header.utf8.count >> (8 * $0)) }
        try PendingFile.write(length + Array(header.utf8), to: path, overwrite: false)
        try #require(truncate(path.string, off_t(8 + header.utf8.count + size)) == 0)
        let output = folder.appending("out.safetensors")
        let remains = try await withTaskExecutorPreference(OwnThreads()) {
            let child = try await start(["convert", path.string, output.string, "--dtype", "bf16"])
            let process = try #require(child.process)
            // Behind the header, once the file is mapped.
            try #require(
                wait {
                    let maps = (try? FilePath("/proc/\(process)/maps").contents()) ?? []
                    return String(decoding: maps, as: UTF8.self).contains(".safetensors")
                })
            truncate(path.string, 4096)
            return await child.remains
        }
        #expect(remains.ending == .exited(1))
        #expect(remains.words.summary.contains("was made shorter while it was in use"))
        #expect(remains.words.summary.contains("in"))
        #expect(try names() == ["in\n.safetensors"])
    }
}

/// Runs each job of a task on a thread of its own: tests that fill the shared pool with computations must not keep one
/// waiting that has to meet a process while it runs.
private final class OwnThreads: TaskExecutor {
    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let executor = asUnownedTaskExecutor()
        if !onThread({ job.runSynchronously(on: executor) }) {
            job.runSynchronously(on: executor)
        }
    }
}
