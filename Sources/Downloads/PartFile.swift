/// A file that is being fetched, with a journal of what is there, so that a later process can go on.

import Glibc
import Ground
import Synchronization
import SystemPackage

/// `NAME.part` and `NAME.part.journal` beside the file that it becomes. Locked as long as this object exists.
///
/// The journal is lines of text: what is fetched, then the ranges that are there. A range that is noted has been written,
/// but after a crash of the whole machine only what stands before a line `sync` is on the disk for certain.
final class PartFile: Sendable {
    let path: FilePath
    private let part: FilePath
    private let journal: FilePath
    private let descriptor: Int32
    private let notes = Mutex<Int32>(-1)

    /// Opens or makes the file, and waits where another process has it.
    /// - Parameters:
    ///   - wait: called once where it has to wait.
    ///   - isStopped: asked while it waits.
    init(
        for path: FilePath, wait: () -> Void = {}, isStopped: () -> Bool = { false }
    ) throws(DownloadError) {
        self.path = path
        part = FilePath(path.string + ".part")
        journal = FilePath(path.string + ".part.journal")
        var hasWaited = false
        while true {
            let descriptor = open(part.string, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o666)
            guard descriptor >= 0 else { throw DownloadError(.last(part)) }
            while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
                guard errno == EWOULDBLOCK || errno == EINTR else {
                    close(descriptor)
                    throw DownloadError(.last(part))
                }
                if isStopped() {
                    close(descriptor)
                    throw DownloadError(.stopped, "another process is fetching \(path)")
                }
                if !hasWaited { wait() }
                hasWaited = true
                usleep(100_000)
            }
            // The other process may have renamed or removed what was waited for.
            var (own, named) = (Glibc.stat(), Glibc.stat())
            if fstat(descriptor, &own) == 0, fstatat(AT_FDCWD, part.string, &named, 0) == 0,
                own.st_ino == named.st_ino, own.st_dev == named.st_dev
            {
                self.descriptor = descriptor
                return
            }
            close(descriptor)
        }
    }

    deinit {
        closeNotes()
        close(descriptor)
    }

    // MARK: The journal

    private static let title = "turbodiffusion part 1"

    /// What is there of the file that has this identity; everything else is dropped.
    /// - Parameter afresh: whether nothing counts.
    func begin(_ identity: HubIdentity, afresh: Bool) throws(DownloadError) -> ByteRanges {
        closeNotes()
        let known = afresh ? ByteRanges() : kept(of: identity)
        if known.ranges.isEmpty, ftruncate(descriptor, 0) != 0 { throw DownloadError(.last(part)) }
        var lines = [Self.title] + Self.lines(identity)
        lines += known.ranges.map { "\($0.lowerBound) \($0.upperBound)" }
        if !known.ranges.isEmpty { fdatasync(descriptor) }
        lines += ["boot \(Self.boot)", ""]
        let bytes = Array(lines.joined(separator: "\n").utf8)
        let fresh = FilePath(journal.string + ".new")
        let file = open(fresh.string, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0o666)
        guard file >= 0 else { throw DownloadError(.last(journal)) }
        guard Glibc.write(file, bytes, bytes.count) == bytes.count,
            rename(fresh.string, journal.string) == 0
        else {
            close(file)
            throw DownloadError(.last(journal))
        }
        notes.withLock { $0 = file }
        return known
    }

    private func kept(of identity: HubIdentity) -> ByteRanges {
        guard let bytes = try? journal.contents(), let size = partSize,
            let text = String(validating: bytes, as: UTF8.self)
        else { return ByteRanges() }
        return Self.kept(journal: text, of: identity, partSize: size, boot: Self.boot)
    }

    private var partSize: Int? {
        var status = Glibc.stat()
        return fstat(descriptor, &status) == 0 ? Int(status.st_size) : nil
    }

    private static func lines(_ identity: HubIdentity) -> [String] {
        [
            "size \(identity.size)", "sha256 \(identity.sha256 ?? "-")",
            "etag \(identity.etag?.printable ?? "-")",
        ]
    }

    /// The ranges that a journal notes of a file.
    static func kept(journal: String, of identity: HubIdentity, partSize: Int, boot: String)
        -> ByteRanges
    {
        var lines = journal.split(separator: "\n", omittingEmptySubsequences: false)
        // The last line is empty, or was not written to its end.
        guard lines.popLast() != nil else { return ByteRanges() }
        let head = [title] + Self.lines(identity)
        guard lines.prefix(head.count).map(String.init) == head else { return ByteRanges() }
        var (safe, all) = (ByteRanges(), ByteRanges())
        var isThisBoot = false
        for line in lines.dropFirst(head.count) {
            if line.hasPrefix("boot ") {
                // What was noted before was brought to the disk before this line was written.
                safe = all
                isThisBoot = line.dropFirst(5) == boot
                continue
            }
            if line == "sync" {
                safe = all
                continue
            }
            let ends = line.split(separator: " ").map { Int($0) }
            guard ends.count == 2, let start = ends[0], let end = ends[1], 0 <= start, start < end,
                end <= identity.size, end <= partSize
            else { break }
            all.insert(start..<end)
        }
        return isThisBoot ? all : safe
    }

    /// Differs after every start of the machine.
    static let boot: String = {
        let bytes = (try? FilePath("/proc/sys/kernel/random/boot_id").contents(limit: 256)) ?? []
        let text = String(decoding: bytes, as: UTF8.self).trimmed
        return text.isEmpty ? "-" : text
    }()

    private func closeNotes() {
        notes.withLock {
            if $0 >= 0 { close($0) }
            $0 = -1
        }
    }

    /// Notes bytes that have been written. A note that cannot be written costs bytes, no more.
    func note(_ range: Range<Int>) { append("\(range.lowerBound) \(range.upperBound)\n") }

    /// Brings what was noted to the disk.
    func sync() {
        if fdatasync(descriptor) == 0 { append("sync\n") }
    }

    private func append(_ line: String) {
        let bytes = Array(line.utf8)
        notes.withLock { if $0 >= 0 { _ = Glibc.write($0, bytes, bytes.count) } }
    }

    // MARK: Bytes

    /// Writes bytes to a place in the file.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(DownloadError) {
        var (rest, offset) = (bytes, offset)
        while !rest.isEmpty {
            let count = pwrite(descriptor, rest.baseAddress, rest.count, off_t(offset))
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw DownloadError(.last(part)) }
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            offset += count
        }
    }

    /// Reads bytes from a place in the file.
    /// - Returns: how many; 0 at the end.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(DownloadError) -> Int
    {
        while true {
            let count = pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset))
            if count >= 0 { return count }
            guard errno == EINTR else { throw DownloadError(.last(part)) }
        }
    }

    /// The space that the file takes on the disk already.
    var bytesOnDisk: Int {
        var status = Glibc.stat()
        return fstat(descriptor, &status) == 0 ? Int(status.st_blocks) * 512 : 0
    }

    // MARK: The end

    /// Drops all bytes.
    func discard() {
        closeNotes()
        unlink(journal.string)
        unlink(part.string)
    }

    /// Gives the whole file its name.
    /// - Parameter record: called with the file's time of change before it has its name.
    func finish(size: Int, record: (_ changed: Int) throws(DownloadError) -> Void)
        throws(DownloadError)
    {
        var status = Glibc.stat()
        guard ftruncate(descriptor, off_t(size)) == 0, fsync(descriptor) == 0,
            fstat(descriptor, &status) == 0
        else { throw DownloadError(.last(part)) }
        try record(Stamp(status).changed)
        do { try part.move(to: path, replacing: false) } catch { throw DownloadError(error) }
        unlink(journal.string)
        let folder = open(path.folder.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if folder >= 0 {
            fsync(folder)
            close(folder)
        }
    }
}
