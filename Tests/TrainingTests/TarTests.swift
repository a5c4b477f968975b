/// Damaged archives are refused in words and never trapped on.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import Training

@Suite struct TarTests {
    /// - Parameter digits: what stands in the place of the size.
    private func header(
        _ name: String, size: Int, digits: String? = nil, kind: Character = "0"
    ) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 512)
        func put(_ text: String, at start: Int) {
            for (index, byte) in text.utf8.enumerated() { bytes[start + index] = byte }
        }
        put(name, at: 0)
        put("0000644", at: 100)
        let octal = String(size, radix: 8)
        put(digits ?? String(repeating: "0", count: 11 - octal.count) + octal, at: 124)
        bytes[156] = kind.asciiValue!
        put("ustar", at: 257)
        let sum = bytes.reduce(0) { $0 + Int($1) } + 8 * 0x20
        let checksum = String(sum, radix: 8)
        put(String(repeating: "0", count: 6 - checksum.count) + checksum, at: 148)
        bytes[155] = 0x20
        return bytes
    }

    private func archive() -> [UInt8] {
        let content = [UInt8](repeating: 7, count: 600)
        return header("a/1.latent.pt", size: 600) + content
            + [UInt8](repeating: 0, count: 1024 - 600) + header("a/1.prompt.txt", size: 0)
            + [UInt8](repeating: 0, count: 1024)
    }

    @Test func members() throws {
        let bytes = archive()
        let found = try bytes.withUnsafeBytes { try readTar($0) }
        #expect(found.map(\.name) == ["a/1.latent.pt", "a/1.prompt.txt"])
        #expect(found[0].range == 512..<1112 && found[1].range.isEmpty)
    }

    @Test("records of an extended header are as long as they say, whatever is in them")
    func extendedHeader() throws {
        let records = "20 comment=a\npath=b\n19 path=long/c.txt\n"
        let bytes =
            header("x", size: records.utf8.count, kind: "x") + Array(records.utf8)
            + [UInt8](repeating: 0, count: 512 - records.utf8.count) + header("short", size: 0)
        #expect(try bytes.withUnsafeBytes { try readTar($0) }.map(\.name) == ["long/c.txt"])
        // A length that is none ends the records.
        for damaged in ["99 path=c\n", "0 path=c\n", "-3 path=c\n", "path=c\n", "x path=c\n"] {
            let bytes =
                header("x", size: damaged.utf8.count, kind: "x") + Array(damaged.utf8)
                + [UInt8](repeating: 0, count: 512 - damaged.utf8.count) + header("short", size: 0)
            #expect(try bytes.withUnsafeBytes { try readTar($0) }.map(\.name) == ["short"])
        }
    }

    @Test("a cut or changed header is an error")
    func damage() {
        var cut = archive()
        cut.removeLast(2100)
        #expect(throws: TarError.self) { try cut.withUnsafeBytes { try readTar($0) } }
        var changed = archive()
        changed[3] ^= 1
        #expect(throws: TarError.self) { try changed.withUnsafeBytes { try readTar($0) } }
        let negative = header("a", size: 0, digits: "-0000000007")
        #expect(throws: TarError.self) { try negative.withUnsafeBytes { try readTar($0) } }
    }

    @Test("a sample that cannot be read is named")
    func damagedSample() throws {
        let path = "/tmp/training-tests-\(UInt64.random(in: 0 ... .max)).tar"
        defer { unlink(path) }
        var shard: [UInt8] = []
        for name in ["latent.pt", "embed.pt", "prompt.txt"] {
            shard += tarMember("a/0001.\(name)", Array("PK\u{3}\u{4} no tensor".utf8))
        }
        try PendingFile.write(shard + tarEnd, to: FilePath(path), overwrite: false)
        let shards = try TarShards([path])
        do {
            _ = try shards.read(0)
            Issue.record("it was read")
        } catch {
            let words = error.description
            #expect(words.hasPrefix("\(path): the sample 'a/0001', latent.pt: "), "\(words)")
            #expect(!words.contains("checkpoint"))
        }
    }

    @Test("any bytes end in members or an error")
    func noise() {
        var random = SplitMix64(seed: 3)
        for _ in 0..<3000 {
            var bytes = archive()
            for _ in 0..<(1 + Int(random.next() % 4)) {
                bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(
                    truncatingIfNeeded: random.next())
            }
            if random.next() % 2 == 0 { bytes.removeLast(Int(random.next() % UInt64(bytes.count))) }
            let count = bytes.count
            let members = (try? bytes.withUnsafeBytes { try readTar($0) }) ?? []
            #expect(members.allSatisfy { $0.range.upperBound <= count })
        }
    }
}
