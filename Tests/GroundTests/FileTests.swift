// Files appear whole or not at all, and are read back within their bounds.

import Glibc
import Ground
import Synchronization
import SystemPackage
import Testing

/// A folder that is removed when the test is over.
private final class Folder {
    let path: FilePath

    init() throws {
        var template = Array("/tmp/ground-XXXXXX".utf8CString)
        path = FilePath(try #require(mkdtemp(&template).map { String(cString: $0) }))
    }

    deinit {
        for name in names { unlink(path.appending(name).string) }
        rmdir(path.string)
    }

    var names: [String] { (try? path.fileNames()) ?? [] }

    func content(_ name: String) throws -> [UInt8] {
        let file = try MappedFile(path.appending(name))
        return Array(file.bytes)
    }
}

@Suite struct PendingFileTests {
    @Test func aFileAppearsOnlyWhenItIsWhole() throws {
        let folder = try Folder()
        let target = folder.path.appending("x.bin")
        let large = [UInt8](repeating: 7, count: 3 << 20)
        do {
            let file = try PendingFile(target, overwrite: false)
            try file.write([1, 2, 3, 4])
            try file.write(large)
            try file.write([5])
            try file.patch([9, 9], at: 1)
            #expect(file.position == large.count + 5)
            #expect(target.fileSize == nil)
            try file.commit()
        }
        #expect(folder.names == ["x.bin"])
        #expect(try folder.content("x.bin") == [1, 9, 9, 4] + large + [5])
    }

    @Test func nothingIsLeftOfWhatIsNotCommitted() throws {
        let folder = try Folder()
        do {
            let file = try PendingFile(folder.path.appending("x"), overwrite: false)
            try file.write([UInt8](repeating: 0, count: 2 << 20))
        }
        #expect(folder.names == [])
    }

    @Test func aFileIsReplacedOnlyWhenAsked() throws {
        let folder = try Folder()
        let target = folder.path.appending("x")
        try PendingFile.write([1], to: target, overwrite: false)
        #expect(throws: FileError.exists(target)) {
            try PendingFile.write([2], to: target, overwrite: false)
        }
        #expect(try folder.content("x") == [1])
        try PendingFile.write([3], to: target, overwrite: true)
        #expect(try folder.content("x") == [3])
        #expect(folder.names == ["x"])
    }

    @Test func aFileThatAppearedMeanwhileStays() throws {
        let folder = try Folder()
        let target = folder.path.appending("x")
        let file = try PendingFile(target, overwrite: false)
        try PendingFile.write([1], to: target, overwrite: false)
        #expect(throws: FileError.exists(target)) { try file.commit() }
        #expect(try folder.content("x") == [1])
    }

    @Test func symbolicLinksAreWrittenThrough() throws {
        let folder = try Folder()
        let (link, end) = (folder.path.appending("link"), folder.path.appending("end"))
        #expect(symlink("end", link.string) == 0)
        for byte: UInt8 in [1, 2] {
            try PendingFile.write([byte], to: link, overwrite: true)
            #expect(try folder.content("end") == [byte])
        }
        #expect(link.followingLinks == end)
        #expect(folder.names == ["end", "link"])
    }

    @Test func whatCannotBeWrittenIsRefusedBefore() throws {
        let folder = try Folder()
        #expect(throws: FileError.notRegular(folder.path)) {
            try PendingFile(folder.path, overwrite: true)
        }
        #expect(throws: FileError.notRegular("/dev/null")) {
            try PendingFile("/dev/null", overwrite: true)
        }
        let missing = folder.path.appending("none/x")
        #expect(throws: FileError.noFolder(missing)) {
            try PendingFile(missing, overwrite: false)
        }
        let target = folder.path.appending("x")
        let free = try #require(folder.path.freeBytes)
        #expect {
            try PendingFile(target, overwrite: false, byteCount: .max)
        } throws: { error in
            guard case .noRoom(target, needed: .max, free: let found) = error as? FileError else {
                return false
            }
            return abs(found - free) < 1 << 32
        }
        #expect(folder.names == [])
    }
}

@Suite struct TemporaryPathTests {
    private func create(_ path: FilePath) {
        close(open(path.string, O_WRONLY | O_CREAT | O_EXCL, 0o600))
    }

    @Test func itIsRemovedUnlessItGetsItsName() throws {
        let folder = try Folder()
        let target = folder.path.appending("video.mp4")
        do {
            let temporary = TemporaryPath(beside: target)
            #expect(temporary.path.folder == folder.path)
            create(temporary.path)
            #expect(folder.names.count == 1)
        }
        #expect(folder.names == [])
        do {
            let temporary = TemporaryPath(beside: target)
            create(temporary.path)
            try temporary.move(to: target, replacing: false)
            let second = TemporaryPath(beside: target)
            create(second.path)
            #expect(throws: FileError.exists(target)) {
                try second.move(to: target, replacing: false)
            }
            try second.move(to: target, replacing: true)
        }
        #expect(folder.names == ["video.mp4"])
    }

    @Test func foldersAreRemovedWithTheirFiles() throws {
        let folder = try Folder()
        let temporary = TemporaryPath(beside: folder.path.appending("frames"))
        mkdir(temporary.path.string, 0o700)
        create(temporary.path.appending("0001.png"))
        temporary.remove()
        #expect(folder.names == [])
    }

    @Test func whatKilledProcessesLeftIsRemovedAndNothingElse() throws {
        let folder = try Folder()
        let target = folder.path.appending("video.mp4")
        let (file, frames) = (TemporaryPath(beside: target), TemporaryPath(beside: target))
        let descriptor = try file.makeFile()
        defer { close(descriptor) }
        try frames.makeFolder()
        create(frames.path.appending("0001.png"))
        let inUse = Set(folder.names)
        // As a killed process leaves them: nobody holds a lock.
        create(folder.path.appending(".video.mp4.turbodiffusion-1a2b.part"))
        mkdir(folder.path.appending(".frames.turbodiffusion-3c.part").string, 0o700)
        create(folder.path.appending(".frames.turbodiffusion-3c.part/0001.png"))
        create(folder.path.appending(".other.part"))
        #expect(folder.names.count == 5)
        // Another name of the folder: each is looked into once.
        _ = TemporaryPath(
            beside: FilePath(folder.path.string + "/../\(folder.path.lastComponent!)/x"))
        #expect(Set(folder.names) == inUse.union([".other.part"]))
        #expect(try frames.path.fileNames() == ["0001.png"])
    }

    @Test func longNamesLeaveRoom() throws {
        let folder = try Folder()
        let name = String(repeating: "👩‍👩‍👧‍👦", count: 10)
        try PendingFile.write([1], to: folder.path.appending(name), overwrite: false)
        try PendingFile.write([2], to: folder.path.appending(name), overwrite: true)
        #expect(folder.names == [name])
    }
}

@Suite struct MappedFileTests {
    @Test func onlyRegularFilesAreMapped() throws {
        let folder = try Folder()
        let missing = folder.path.appending("none")
        #expect(throws: FileError.system(missing, .noSuchFileOrDirectory)) {
            try MappedFile(missing)
        }
        #expect(throws: FileError.notRegular(folder.path)) { try MappedFile(folder.path) }
        let pipe = folder.path.appending("pipe")
        mkfifo(pipe.string, 0o600)
        #expect(throws: FileError.notRegular(pipe)) { try MappedFile(pipe) }
    }

    @Test("that a file has shrunk is told on threads, too, that leave other signals to others")
    func faultsReachTheirHandler() throws {
        let blocked = Mutex<[Int32]>([])
        let thread = HostThread(blocksSignals: true) {
            var mask = sigset_t()
            pthread_sigmask(SIG_BLOCK, nil, &mask)
            let found = [SIGBUS, SIGSEGV, SIGINT, SIGTERM].filter { sigismember(&mask, $0) == 1 }
            blocked.withLock { $0 = found }
        }
        try #require(thread).join()
        let found = blocked.withLock { $0 }
        #expect(found == [SIGINT, SIGTERM])
    }

    @Test func forgottenPagesAreReadAgain() throws {
        let folder = try Folder()
        let bytes = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        try PendingFile.write(bytes, to: folder.path.appending("x"), overwrite: false)
        let file = try MappedFile(folder.path.appending("x"))
        file.forget(0..<bytes.count)
        #expect(file.bytes.elementsEqual(bytes))
        try PendingFile.write([], to: folder.path.appending("empty"), overwrite: false)
        let empty = try MappedFile(folder.path.appending("empty"))
        empty.forget(0..<0)
        #expect(empty.bytes.isEmpty)
    }
}

@Suite struct ContentsTests {
    @Test func filesAreReadUpToTheirLimit() throws {
        let folder = try Folder()
        let path = folder.path.appending("x")
        #expect(throws: FileError.system(path, .noSuchFileOrDirectory)) { try path.contents() }
        let bytes = (0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        try PendingFile.write(bytes, to: path, overwrite: false)
        #expect(try path.contents() == bytes && path.exists)
        #expect(throws: FileError.tooLarge(path, limit: 2_999_999)) {
            try path.contents(limit: 2_999_999)
        }
        #expect(throws: FileError.notRegular(folder.path)) { try folder.path.contents() }
        // Its size is said to be 0.
        #expect(try FilePath("/proc/self/status").contents().count > 100)
    }
}

@Suite struct FolderTests {
    @Test func foldersAreMadeWithThoseAbove() throws {
        let folder = try Folder()
        let inner = folder.path.appending("a/b/c")
        try inner.makeFolders()
        try inner.makeFolders()
        #expect(inner.isFolder && !inner.isRegularFile)
        let file = folder.path.appending("file")
        try PendingFile.write([1], to: file, overwrite: false)
        #expect(throws: FileError.self) { try file.appending("x").makeFolders() }
        for path in ["a/b/c", "a/b", "a"] { rmdir(folder.path.appending(path).string) }
    }

    @Test func theFolderOfABareNameIsTheCurrentOne() {
        #expect(FilePath("x.mp4").folder == ".")
        #expect(FilePath("/x.mp4").folder == "/")
        #expect(FilePath("a/b/x.mp4").folder == "a/b")
    }
}

@Suite struct ByteReaderTests {
    @Test func nothingIsReadPastTheEnd() {
        let bytes: [UInt8] = [1, 2, 3, 4, 0xC3, 0xA9, 0xFF]
        bytes.withUnsafeBytes { bytes in
            var reader = ByteReader(bytes)
            #expect(reader.integer(UInt16.self) == 0x0201)
            #expect(reader.integer(UInt64.self) == nil)
            #expect(reader.count(UInt16.self) == 0x0403)
            #expect(reader.take(-1) == nil && reader.take(4) == nil && reader.take(.max) == nil)
            #expect(reader.take(2).flatMap { reader.text($0) } == "é")
            #expect(reader.take(1).flatMap { reader.text($0) } == nil)
            #expect(reader.remaining == 0 && reader.integer(UInt8.self) == nil)
        }
        [UInt8](repeating: 0xFF, count: 8).withUnsafeBytes { bytes in
            var reader = ByteReader(bytes)
            #expect(reader.count(UInt64.self) == nil)
        }
    }

    @Test func numbersAtAnyPlace() {
        let bytes: [UInt8] = [0, 1, 2, 3]
        #expect(bytes.bigEndian(1, 3) == 0x01_0203 && bytes.littleEndian(1, 3) == 0x03_0201)
        #expect(bytes[2...].bigEndian(0, 2) == 0x0203)
        #expect(bytes.bigEndian(2, 3) == nil && bytes.littleEndian(-1, 2) == nil)
        #expect(bytes.bigEndian(.max, 1) == nil)
    }
}

@Suite struct ScratchFileTests {
    @Test func itHasNoNameAndKeepsItsBytes() throws {
        let folder = try Folder()
        let file = try ScratchFile(in: folder.path)
        #expect(folder.names == [])
        try file.append([1, 2, 3])
        try file.append([4, 5])
        #expect(file.size == 5)
        #expect(try file.read(from: 1, count: 3) == [2, 3, 4])
        #expect(try file.read(from: 4, count: 9) == [5])
    }

    @Test func namesWithANumber() {
        #expect(FilePath("a/video.mp4").numbered(2) == "a/video-2.mp4")
        #expect(FilePath("video.tar.gz").numbered(3) == "video.tar-3.gz")
        #expect(FilePath("/x.y/frames").numbered(2) == "/x.y/frames-2")
    }
}
