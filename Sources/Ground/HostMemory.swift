/// How much of the host's memory this process may have: by the machine, its control groups and its limits.

import Glibc
import Synchronization
import SystemPackage

public struct HostMemory: Sendable, Hashable {
    /// Bytes that can be had now without taking them from other programs or swapping.
    public var available: Int
    /// Bytes that are never exceeded, however long one waits: memory and swap of the machine, or of a control group.
    public var most: Int
    /// Bytes of addresses that the process may still take, those of mapped files among them; nil for no limit.
    public var addresses: Int?

    public init(available: Int, most: Int, addresses: Int? = nil) {
        self.available = available
        self.most = most
        self.addresses = addresses
    }

    public static var current: HostMemory {
        HostMemory(processes: "/proc", groups: "/sys/fs/cgroup")
    }

    /// - Parameters:
    ///   - processes: where proc(5) is.
    ///   - groups: where control groups are, see cgroups(7).
    init(processes: FilePath, groups: FilePath) {
        let machine = Table(processes.appending("meminfo"))
        func kilobytes(_ name: String) -> Int { (machine[name] ?? 0).shifted(by: 10) }
        let swap = kilobytes("SwapTotal:")
        available = kilobytes("MemAvailable:")
        most = kilobytes("MemTotal:") + swap
        // Where the system does not tell, nothing is known to be missing.
        if most == 0 { (available, most) = (.max, .max) }
        for group in Self.groups(processes, groups) {
            guard let limit = group.limit else { continue }
            most = min(most, limit.adding(min(swap, group.swap ?? .max)))
            available = min(available, max(0, limit - group.held))
        }
        let pages = Self.numbers(processes.appending("self/statm"))
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let sizes = [0, 5].map { $0 < pages.count ? pages[$0] * page : 0 }
        let left = zip([RLIMIT_AS, RLIMIT_DATA], sizes).compactMap { resource, used in
            var limit = rlimit()
            guard getrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0 else {
                return Int?.none
            }
            return Int(exactly: limit.rlim_cur).map { max(0, $0 - used) }
        }
        addresses = left.min()
    }

    /// The most bytes of memory that this program has had at once. What getrusage(2) tells begins with the memory of
    /// the program that became this one.
    public static var peak: Int { (Table("/proc/self/status")["VmHWM:"] ?? 0).shifted(by: 10) }

    /// One control group that the process is in.
    private struct Group {
        var limit, swap: Int?
        /// What cannot be given back: files that are cached are not counted.
        var held = 0
    }

    /// All groups from the outermost to that of the process, of both versions.
    private static func groups(_ processes: FilePath, _ root: FilePath) -> [Group] {
        var found: [Group] = []
        for line in text(processes.appending("self/cgroup")).split(separator: "\n") {
            let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard fields.count == 3 else { continue }
            let isFirstVersion = fields[1].split(separator: ",").contains("memory")
            guard isFirstVersion || fields[1].isEmpty else { continue }
            var folder = isFirstVersion ? root.appending("memory") : root
            func value(_ name: String) -> Int? { numbers(folder.appending(name)).first }
            for step in [""] + fields[2].split(separator: "/").map(String.init) where step != ".." {
                folder.append(step)
                let statistics = Table(folder.appending("memory.stat"))
                let cached =
                    statistics[isFirstVersion ? "total_inactive_file" : "inactive_file"] ?? 0
                let used = value(isFirstVersion ? "memory.usage_in_bytes" : "memory.current") ?? 0
                found.append(
                    Group(
                        limit: value(isFirstVersion ? "memory.limit_in_bytes" : "memory.max"),
                        swap: isFirstVersion ? nil : value("memory.swap.max"),
                        held: max(0, used - cached)))
            }
        }
        return found
    }

    private static func text(_ path: FilePath) -> String {
        String(decoding: (try? path.contents()) ?? [], as: UTF8.self)
    }

    /// "max" is no number.
    private static func numbers(_ path: FilePath) -> [Int] {
        text(path).split(whereSeparator: \.isWhitespace).compactMap { Int($0) }
    }

    /// Lines of a name and a number.
    private struct Table {
        private var values: [String: Int] = [:]

        init(_ path: FilePath) {
            for line in text(path).split(separator: "\n") {
                let fields = line.split { $0 == " " || $0 == "\t" }
                if fields.count >= 2, let value = Int(fields[1]) {
                    values[String(fields[0])] = value
                }
            }
        }

        subscript(name: String) -> Int? { values[name] }
    }
}

extension Int {
    /// Without overflow, for numbers that are not ours.
    fileprivate func adding(_ other: Int) -> Int {
        let (sum, overflows) = addingReportingOverflow(other)
        return overflows ? .max : sum
    }

    fileprivate func shifted(by bits: Int) -> Int { self > .max >> bits ? .max : self << bits }
}

// MARK: - Blocks

/// Uninitialised memory, aligned to 64 bytes, to be released with `free`. Where the system gives no more, the process ends
/// in one line and leaves no unfinished files: there is nothing that could be computed with less.
public func hostBlock(byteCount: Int) -> UnsafeMutableRawPointer {
    var block: UnsafeMutableRawPointer?
    if posix_memalign(&block, 64, max(byteCount, 64)) == 0, let block { return block }
    TemporaryPath.removeAll()
    let line =
        "\nError: out of memory: the system gives no further \(describe(bytes: byteCount)); choose fewer frames or a "
        + "smaller size, or raise the limit (ulimit -v)\n"
    _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
    _exit(EXIT_FAILURE)
}

/// Whether so many threads can be started beside those that run.
public func canStartThreads(_ count: Int) -> Bool {
    // They wait for each other, so that all are there at once.
    let gate = Mutex(())
    let threads = gate.withLock { _ in
        var threads: [HostThread] = []
        while threads.count < count, let thread = HostThread({ gate.withLock { _ in } }) {
            threads.append(thread)
        }
        return threads
    }
    for thread in threads { thread.join() }
    return threads.count == count
}
