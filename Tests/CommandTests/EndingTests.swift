// How the program ends: by signals, without descriptors, with a file that shrinks; and what it leaves.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

private let root = FilePath(
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/"))

@Suite("The process", .serialized)
final class EndingTests {
    private let folder: FilePath

    init() throws {
        var template = Array("/tmp/turbodiffusion-process-XXXXXX".utf8CString)
        folder = FilePath(platformString: try #require(mkdtemp(&template)))
    }

    deinit { _ = system("rm -rf '\(folder.string)'") }

    private func names() throws -> [String] { try folder.fileNames() }

    /// Starts the program, as a shell does after `setting`. That another test lets this process ignore signals just now is
    /// not passed on.
    private func start(_ arguments: [String], after setting: String = "") async throws -> Child {
        let program = FilePath("/proc/self/exe").followingLinks.folder.appending("turbodiffusion")
        return try await Child.start(
            "/usr/bin/env",
            [
                "--default-signal=INT,QUIT", "/bin/sh", "-c", "\(setting)\nexec \"$0\" \"$@\"",
                program.string,
            ]
                + arguments)
    }

    private func video(frames: Int) -> [String] {
        [
            "t2v", "--model", root.appending("Models/nano").string, "--prompt", "a red ball",
            "--num_frames", "\(frames)", "--save_path", folder.appending("v.mp4").string,
        ]
    }

    /// The children of a process that run now.
    private func children(of process: pid_t) -> [pid_t] {
        ((try? FilePath("/proc").fileNames()) ?? []).compactMap { pid_t($0) }.filter { child in
            guard let file = fopen("/proc/\(child)/stat", "r") else { return false }
            defer { fclose(file) }
            var line = [CChar](repeating: 0, count: 512)
            guard fgets(&line, 512, file) != nil else { return false }
            let fields = String(cString: line).split(separator: ")").last?.split(separator: " ")
            return fields?.dropFirst().first.flatMap { pid_t($0) } == process
                && fields?.first != "Z"
        }
    }

    /// Waits for what comes soon, even where the machine has much else to do.
    private func wait(until isDone: () throws -> Bool) async throws -> Bool {
        for _ in 0..<1200 {
            if try isDone() { return true }
            try await Task.sleep(for: .milliseconds(50))
        }
        return false
    }

    @Test(
        "ended while a video is encoded, it leaves no file and no encoder, and ends by the signal",
        arguments: [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1, SIGUSR2, SIGKILL])
    func signals(number: Int32) async throws {
        let child = try await start(video(frames: 129))
        let process = try #require(child.process)
        try #require(try await wait { !children(of: process).isEmpty })
        let encoders = children(of: process)
        try await Task.sleep(for: .milliseconds(300))
        child.kill(by: number)
        let remains = await child.remains
        #expect(remains.ending == .signaled(number))
        #expect(number == SIGKILL || remains.words.contains("stopped"))
        #expect(try await wait { encoders.allSatisfy { kill($0, 0) != 0 } })
        guard number == SIGKILL else { return #expect(try names() == []) }
        // The sign that something is written stays until the next run in this folder, and takes no space.
        #expect(
            try names().allSatisfy { $0.hasSuffix(".part") && folder.appending($0).fileSize == 0 })
        let next = try await start(video(frames: 5))
        #expect(await next.remains.ending == .exited(0))
        #expect(try names() == ["v.mp4"])
    }

    @Test("signals ignored by its parent stay ignored")
    func ignored() async throws {
        let child = try await start(video(frames: 129), after: "trap '' HUP INT")
        let process = try #require(child.process)
        try #require(try await wait { !children(of: process).isEmpty })
        for number in [SIGHUP, SIGINT] { child.kill(by: number) }
        try await Task.sleep(for: .milliseconds(300))
        child.kill(by: SIGTERM)
        #expect(await child.remains.ending == .signaled(SIGTERM))
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

    @Test("a mapped file that shrinks ends it with one line")
    func shrunk() async throws {
        let path = folder.appending("in\n.safetensors")
        let size = 1 << 31
        let header = #"{"x":{"dtype":"F32","shape":[\#(size / 4)],"data_offsets":[0,\#(size)]}}"#
        let length = (0..<8).map { UInt8(truncatingIfNeeded: header.utf8.count >> (8 * $0)) }
        try PendingFile.write(length + Array(header.utf8), to: path, overwrite: false)
        try #require(truncate(path.string, off_t(8 + header.utf8.count + size)) == 0)
        let output = folder.appending("out.safetensors")
        let child = try await start(["convert", path.string, output.string, "--dtype", "bf16"])
        let process = try #require(child.process)
        // Behind the header, once the file is mapped.
        try #require(
            try await wait {
                guard let file = fopen("/proc/\(process)/maps", "r") else { return false }
                defer { fclose(file) }
                var line = [CChar](repeating: 0, count: 4096)
                while fgets(&line, 4096, file) != nil {
                    if String(cString: line).contains(".safetensors") { return true }
                }
                return false
            })
        truncate(path.string, 4096)
        let remains = await child.remains
        #expect(remains.ending == .exited(1))
        #expect(remains.words.summary.contains("was made shorter while it was in use"))
        #expect(remains.words.summary.contains("in"))
        #expect(try names() == ["in\n.safetensors"])
    }
}
