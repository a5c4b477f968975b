/// Names, addresses, headers, ranges, patience and journals: what decides about a download without a network.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Downloads

@Suite struct NameTests {
    @Test("files of repositories")
    func files() throws {
        let file = try HubFile("Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth")
        let hub = try Hub(endpoint: "https://mirror.example/hf/")
        #expect(
            hub.address(file)
                == "https://mirror.example/hf/Wan-AI/Wan2.1-T2V-1.3B/resolve/main/Wan2.1_VAE.pth")
        let other = try HubFile("a/b", revision: "refs/pr/1", "x y/ä#?.bin")
        #expect(
            try Hub().address(other)
                == "https://huggingface.co/a/b/resolve/refs%2Fpr%2F1/x%20y/%C3%A4%23%3F.bin")
        #expect("\(file)" == "Wan-AI/Wan2.1-T2V-1.3B:Wan2.1_VAE.pth")
    }

    @Test(
        "names that lead elsewhere, or are none",
        arguments: [
            ("a", "f"), ("a/b/c", "f"), ("../b", "f"), ("a/..", "f"), ("a/b c", "f"),
            ("/b", "f"), ("a/", "f"), ("a/b", ""), ("a/b", "/f"), ("a/b", "f/"),
            ("a/b", "../f"), ("a/b", "x/../f"), ("a/b", ".hidden"), ("a/b", "x\ny"),
            ("a/b", "f.part"), ("a/b", "x\\y"), ("a/b", "x//y"),
        ])
    func bad(repository: String, path: String) {
        let error = #expect(throws: DownloadError.self) { try HubFile(repository, path) }
        #expect(error?.kind == .name)
    }

    @Test("the token goes to the hub's own origin alone")
    func token() throws {
        let hub = try Hub(endpoint: "https://hub.example", token: "hf_x")
        for own in [
            "https://hub.example/a", "HTTPS://HUB.example:443/b?c", "https://u@hub.example/",
        ] {
            #expect(hub.isOwn(own), "\(own)")
            #expect(hub.headers(for: own).contains("Authorization: Bearer hf_x"))
        }
        for other in [
            "http://hub.example/a", "https://hub.example.evil/", "https://evil/hub.example",
            "https://hub.example:444/", "https://hub.example@evil/", "https://evil#hub.example",
            "https://evil\\@hub.example/", "ftp://hub.example", "hub.example", "https://",
        ] {
            #expect(!hub.isOwn(other), "\(other)")
            #expect(hub.headers(for: other) == ["Accept-Encoding: identity"])
        }
        #expect(Origin("http://[::1]:8080/x")?.port == "8080")
        #expect(Origin("http://[::1]/x")?.host == "[::1]")
    }

    @Test("addresses and tokens that are none")
    func refused() {
        for endpoint in ["", "hub.example", "file:///etc", "https://a?b", "https://u:p@a"] {
            #expect(throws: DownloadError.self, "\(endpoint)") { try Hub(endpoint: endpoint) }
        }
        for token in ["", "a b", "a\nX: y", "ä"] {
            #expect(throws: DownloadError.self, "\(token)") { try Hub(token: token) }
        }
    }
}

@Suite struct AnswerTests {
    @Test("heads: the last answer counts, names in any case")
    func head() {
        var head = Head()
        for line in [
            "HTTP/1.1 200 Connection established\r\n", "X-Proxy: yes\r\n", "\r\n",
            "HTTP/1.1 206 Partial Content\r\n", "Content-LENGTH: 5 \r\n",
            "content-range: bytes 5-9/100\r\n", "no colon\r\n", "\r\n",
        ] { head.take(line) }
        #expect(head.status == 206 && head.byteCount == 5 && head["x-proxy"] == nil)
        #expect(head.range?.bytes == 5..<10 && head.range?.size == 100)
    }

    @Test(
        "ranges that are none",
        arguments: [
            "bytes 9-5/100", "bytes */100", "items 0-1/2", "bytes 0-1", "bytes a-b/c",
            "bytes -1-5/9", "bytes 0-9223372036854775807/1", "bytes 0-99999999999999999999/1",
        ])
    func ranges(text: String) {
        var head = Head()
        head.take("Content-Range: \(text)")
        #expect(head.range == nil)
    }

    @Test("a size that is not told is no reason to refuse a part")
    func unknownSize() {
        var head = Head()
        head.take("Content-Range: bytes 0-1/*")
        #expect(head.range?.bytes == 0..<2 && head.range?.size == nil)
        head.take("Content-Range: bytes */7")
        #expect(head.range == nil && head.sizeWithoutRange == 7)
    }

    @Test("Retry-After in seconds, or as a date")
    func retryAfter() {
        func seconds(_ text: String) -> Double? {
            var head = Head()
            head.take("Retry-After: \(text)")
            return head.retryAfter
        }
        #expect(seconds("3") == 3 && seconds("-3") == 0 && seconds("inf") == nil)
        #expect(seconds("Wed, 21 Oct 2026 07:28:00 GMT") == 60)
        #expect(Head().retryAfter == nil)
    }

    @Test("size and hash: the hub's own for large files, the answer's for small ones")
    func identity() throws {
        let file = try HubFile("a/b", "c")
        let hash = String(repeating: "aB", count: 32)
        var head = Head()
        for line in [
            "HTTP/1.1 302 Found", "Content-Length: 1000", "ETag: \"other\"",
            "X-Linked-Size: 12345", "X-Linked-ETag: \"\(hash)\"",
        ] { head.take(line) }
        let large = try HubClient.identity(head, file)
        #expect(large.size == 12345 && large.sha256 == hash.lowercased())
        head = Head()
        for line in ["HTTP/1.1 200 OK", "Content-Length: 7", "ETag: W/\"abc\""] { head.take(line) }
        let small = try HubClient.identity(head, file)
        #expect(small.size == 7 && small.sha256 == nil && small.etag == "W/\"abc\"")
        head = Head()
        head.take("HTTP/1.1 200 OK")
        #expect(throws: DownloadError.self) { try HubClient.identity(head, file) }
    }

    @Test("what the hub refuses for good, and what it may give later")
    func refusals() throws {
        let file = try HubFile("a/b", "c")
        let (nobody, known) = (try Hub(), try Hub(token: "hf_x"))
        func kind(_ status: Int, _ hub: Hub) -> DownloadError.Kind? {
            var head = Head()
            head.status = status
            return hub.refusal(head, file)?.kind
        }
        for hub in [nobody, known] {
            #expect(kind(401, hub) == .unauthorized && kind(403, hub) == .forbidden)
            #expect(kind(404, hub) == .missing && kind(418, hub) == .server)
            for status in [200, 206, 302, 408, 416, 429, 500, 502, 503, 504] {
                #expect(kind(status, hub) == nil)
            }
        }
        var head = Head()
        (head.status, head.fields) = (401, ["x-error-message": "a\u{1B}[31m"])
        let line = nobody.refusal(head, file)?.description ?? ""
        #expect(line.contains("\\u{1B}") && line.contains("HF_TOKEN"))
    }
}

@Suite struct RangeTests {
    @Test("ranges are merged; gaps are found from the beginning on")
    func merging() {
        var ranges = ByteRanges()
        #expect(ranges.firstGap(in: 10, limit: 4) == 0..<4 && ranges.prefix == 0)
        for range in [5..<7, 0..<2, 2..<3, 6..<9, 4..<4] { ranges.insert(range) }
        #expect(ranges.ranges == [0..<3, 5..<9] && ranges.count == 7 && ranges.prefix == 3)
        #expect(ranges.firstGap(in: 10, limit: 100) == 3..<5)
        ranges.insert(3..<5)
        #expect(ranges.firstGap(in: 10, limit: 100) == 9..<10)
        #expect(ranges.firstGap(in: 9, limit: 100) == nil)
    }

    @Test("the same as a set of numbers, for random ranges")
    func againstSet() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<200 {
            var (ranges, set) = (ByteRanges(), Set<Int>())
            for _ in 0..<12 {
                let start = Int(random.next() % 40)
                let range = start..<start + Int(random.next() % 8)
                ranges.insert(range)
                set.formUnion(range)
            }
            #expect(ranges.count == set.count)
            #expect(ranges.prefix == (0...48).first { !set.contains($0) })
            let gap = ranges.firstGap(in: 48, limit: 5)
            #expect(gap?.lowerBound == (0..<48).first { !set.contains($0) })
            #expect(gap.map { $0.allSatisfy { !set.contains($0) } } ?? true)
            for (a, b) in zip(ranges.ranges, ranges.ranges.dropFirst()) {
                #expect(a.upperBound < b.lowerBound)
            }
        }
    }
}

@Suite struct PatienceTests {
    @Test("waits grow to a limit, and end")
    func growth() {
        var patience = Patience(tries: 12)
        var waits: [Double] = []
        while let wait = patience.fail(random: 1) { waits.append(wait) }
        #expect(waits.count == 11 && waits[0] == 0.5 && waits[1] == 1 && waits.max() == 30)
        patience.succeed()
        #expect(patience.fail(asked: 7, random: 1) == 7)
        #expect(patience.fail(asked: 1e9, random: 1) == 600)
    }
}

/// A folder that vanishes with the test.
private final class Folder {
    let path: FilePath

    init() {
        var template = Array("/tmp/downloads-XXXXXX".utf8CString)
        path = FilePath(String(cString: mkdtemp(&template)))
    }

    deinit { remove(path) }

    private func remove(_ path: FilePath) {
        for name in (try? path.fileNames()) ?? [] {
            let entry = path.appending(name)
            if entry.isFolder { remove(entry) } else { unlink(entry.string) }
        }
        rmdir(path.string)
    }
}

@Suite struct JournalTests {
    private let identity = HubIdentity(size: 100, sha256: nil, etag: "\"e\"")
    private let head = "turbodiffusion part 1\nsize 100\nsha256 -\netag \"e\"\n"

    private func kept(_ lines: String, size: Int = 100, boot: String = "now") -> [Range<Int>] {
        PartFile.kept(journal: lines, of: identity, partSize: size, boot: boot).ranges
    }

    @Test(
        "what was noted since the machine started counts; after a crash what was brought to the disk"
    )
    func boots() {
        let text = head + "0 10\nboot now\n20 30\nsync\n40 50\n"
        #expect(kept(text) == [0..<10, 20..<30, 40..<50])
        #expect(kept(text, boot: "later") == [0..<10, 20..<30])
    }

    @Test("lines that are torn or impossible end it; another file's journal counts for nothing")
    func damaged() {
        #expect(kept(head + "boot now\n0 10\n20 3") == [0..<10])
        for line in ["x y", "5", "7 7", "-1 5", "9 5", "90 101", "1 2 3", ""] {
            #expect(kept(head + "boot now\n0 10\n\(line)\n20 30\n") == [0..<10], "'\(line)'")
        }
        #expect(kept(head + "boot now\n0 10\n", size: 5) == [])
        #expect(kept(head.replacing("100", with: "101") + "boot now\n0 10\n") == [])
        #expect(kept("") == [] && kept("\n") == [] && kept("garbage\n") == [])
    }

    @Test("a part is resumed by another object, locked meanwhile, and whole under its name")
    func resumed() throws {
        let folder = Folder()
        let place = folder.path.appending("a.bin")
        let bytes = (0..<100).map(UInt8.init)
        do {
            let part = try PartFile(for: place)
            #expect(try part.begin(identity, afresh: false).ranges == [])
            try bytes[0..<40].withUnsafeBytes { try part.write($0, at: 0) }
            part.note(0..<40)
            let error = #expect(throws: DownloadError.self) {
                try PartFile(for: place, isStopped: { true })
            }
            #expect(error?.kind == .stopped)
        }
        let part = try PartFile(for: place)
        #expect(try part.begin(identity, afresh: false).ranges == [0..<40])
        try bytes[40...].withUnsafeBytes { try part.write($0, at: 40) }
        part.note(40..<100)
        var changed = 0
        try part.finish(size: 100) { changed = $0 }
        #expect(try place.contents() == bytes && changed > 0)
        #expect(try folder.path.fileNames() == ["a.bin"])
    }

    @Test("another version, or a new beginning, keeps no bytes")
    func afresh() throws {
        let folder = Folder()
        let part = try PartFile(for: folder.path.appending("a.bin"))
        func write() throws {
            try [1, 2, 3].withUnsafeBytes { try part.write($0, at: 0) }
            part.note(0..<3)
        }
        _ = try part.begin(identity, afresh: false)
        try write()
        #expect(try part.begin(identity, afresh: false).count == 3)
        #expect(try part.begin(identity, afresh: true).count == 0)
        try write()
        var other = identity
        other.etag = "\"f\""
        #expect(try part.begin(other, afresh: false).count == 0)
        part.discard()
        #expect(try folder.path.fileNames() == [])
    }
}

@Suite struct ModelFolderTests {
    @Test("what was fetched is removed with its notes; what has changed since is not")
    func removing() throws {
        let folder = Folder()
        let models = ModelFolder(folder.path.appending("models"))
        let files = [try HubFile("a/b", "x/one.bin"), try HubFile("a/b", "two.bin")]
        for file in files {
            let place = models.path(of: file)
            try place.folder.makeFolders()
            let part = try PartFile(for: place)
            let identity = HubIdentity(size: 3, sha256: "00", etag: nil)
            _ = try part.begin(identity, afresh: false)
            try [1, 2, 3].withUnsafeBytes { try part.write($0, at: 0) }
            try part.finish(size: 3) { changed throws(DownloadError) in
                try models.note(
                    FileOrigin(address: "http://x", identity, changed: changed), of: file)
            }
            #expect(models.has(file) && models.origin(of: file)?.sha256 == "00")
        }
        #expect(try models.remove(files[0]) == 3)
        #expect(try models.path.appending("a/b").fileNames() == ["two.bin"])
        try PendingFile.write([9, 9], to: models.path(of: files[1]), overwrite: true)
        #expect(models.origin(of: files[1]) == nil)
        #expect(try models.remove(files[1]) == nil && models.has(files[1]))
    }

    @Test("notes that are none")
    func notes() {
        #expect(FileOrigin("address a\nsize 3\nchanged 5\n") != nil)
        for text in ["", "size 3", "address a\nsize x\nchanged 5", "address\n", "\0"] {
            #expect(FileOrigin(text) == nil)
        }
    }

    @Test("nobody there: one line, and nothing is left")
    func unreachable() throws {
        let folder = Folder()
        let models = ModelFolder(folder.path)
        var options = DownloadOptions()
        options.tries = 1
        let hub = try Hub(endpoint: "http://127.0.0.1:9")
        let file = try HubFile("a/b", "c.bin")
        let error = #expect(throws: DownloadError.self) {
            try models.fetch(file, from: hub, options)
        }
        // Where libcurl is not installed, that is said instead.
        #expect(error?.kind == .unreachable || error?.kind == .library)
        #expect(!models.has(file))
    }
}
