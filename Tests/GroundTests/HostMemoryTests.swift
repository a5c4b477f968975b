// What a process may have of the host's memory, as proc(5) and cgroups(7) tell it.

import Glibc
import SystemPackage
import Testing

@testable import Ground

@Suite("Host memory")
final class HostMemoryTests {
    private let folder: FilePath

    init() throws {
        var template = Array("/tmp/turbodiffusion-memory-XXXXXX".utf8CString)
        folder = FilePath(platformString: try #require(mkdtemp(&template)))
        try write(
            "proc/meminfo",
            "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 3000 kB\nSwapTotal: 500 kB\nSwapFree: 1 kB\n"
        )
    }

    deinit { _ = system("rm -rf '\(folder.string)'") }

    private func write(_ name: String, _ text: String) throws {
        let path = folder.appending(name)
        _ = system("mkdir -p '\(path.folder.string)'")
        try PendingFile.write(Array(text.utf8), to: path, overwrite: true)
    }

    private var memory: HostMemory {
        HostMemory(processes: folder.appending("proc"), groups: folder.appending("groups"))
    }

    @Test("the peak is that of this program, not of the one that became it")
    func peak() throws {
        let before = HostMemory.peak
        #expect(before > 1 << 20)
        let bytes = [UInt8](repeating: 1, count: 1 << 28)
        #expect(HostMemory.peak >= bytes.count && bytes[bytes.count / 2] == 1)
    }

    @Test func machine() {
        #expect(memory.available == 3000 << 10)
        #expect(memory.most == 8500 << 10)
    }

    @Test("a control group inside another has what both leave it; cached files can be given back")
    func groups() throws {
        try write("proc/self/cgroup", "0::/outer/inner\n")
        try write("groups/outer/memory.max", "4194304\n")
        try write("groups/outer/memory.swap.max", "0\n")
        try write("groups/outer/memory.current", "2097152\n")
        try write("groups/outer/memory.stat", "anon 1\ninactive_file 1048576\n")
        try write("groups/outer/inner/memory.max", "max\n")
        #expect(memory.most == 4 << 20)
        #expect(memory.available == 3000 << 10)
        try write("groups/outer/memory.current", "4194304\n")
        #expect(memory.available == 1 << 20)
        // Swap that the group may use comes on top, as far as there is any.
        try write("groups/outer/memory.swap.max", "max\n")
        #expect(memory.most == (4 << 20) + (500 << 10))
    }

    @Test func groupsOfTheFirstVersion() throws {
        try write("proc/self/cgroup", "9:cpu,memory:/job\n8:pids:/\n")
        try write("groups/memory/memory.limit_in_bytes", "9223372036854771712\n")
        try write("groups/memory/job/memory.limit_in_bytes", "1048576\n")
        try write("groups/memory/job/memory.usage_in_bytes", "1000\n")
        #expect(memory.most == (1 << 20) + (500 << 10))
        #expect(memory.available == (1 << 20) - 1000)
    }

    @Test("what cannot be read is no limit")
    func unknown() {
        let memory = HostMemory(processes: "/nowhere", groups: "/nowhere")
        #expect(memory.available == .max && memory.most == .max)
    }

    @Test func threads() {
        #expect(canStartThreads(12))
    }
}
