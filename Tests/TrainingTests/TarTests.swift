/// Damaged archives are refused in words and never trapped on.

import Ground
import Testing

@testable import Training

@Suite struct TarTests {
    private func header(_ name: String, size: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 512)
        func put(_ text: String, at start: Int) {
            for (index, byte) in text.utf8.enumerated() { bytes[start + index] = byte }
        }
        put(name, at: 0)
        put("0000644", at: 100)
        let octal = String(size, radix: 8)
        put(String(repeating: "0", count: 11 - octal.count) + octal, at: 124)
        bytes[156] = UInt8(ascii: "0")
        put("ustar", at: 257)
        let sum = bytes.reduce(0) { $0 + Int($1) } + 8 * 0x20
        let digits = String(sum, radix: 8)
        put(String(repeating: "0", count: 6 - digits.count) + digits, at: 148)
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

    @Test("a cut or changed header is an error")
    func damage() {
        var cut = archive()
        cut.removeLast(2100)
        #expect(throws: TarError.self) { try cut.withUnsafeBytes { try readTar($0) } }
        var changed = archive()
        changed[3] ^= 1
        #expect(throws: TarError.self) { try changed.withUnsafeBytes { try readTar($0) } }
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
