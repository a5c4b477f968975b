// Hashes, numbers and text of the ground floor, against published values.

import Ground
import Testing

@Suite struct HashTests {
    private func sha(_ text: String) -> String {
        Array(text.utf8).withUnsafeBytes { SHA256.hexadecimal($0) }
    }

    @Test("SHA-256 of FIPS 180-4's examples")
    func sha256() {
        #expect(sha("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        #expect(sha("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        #expect(
            sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")
                == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
        #expect(
            sha(String(repeating: "a", count: 1_000_000))
                == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    }

    @Test("SHA-256 in pieces of any size")
    func pieces() {
        let text = String(repeating: "0123456789", count: 30)
        for size in [1, 63, 64, 65, 200] {
            var hash = SHA256()
            var rest = Array(text.utf8)[...]
            while !rest.isEmpty {
                rest.prefix(size).withUnsafeBytes { hash.update($0) }
                rest = rest.dropFirst(size)
            }
            #expect(hash.finish() == sha(text), "\(size)")
        }
    }

    @Test("texts are hashed with their lengths, so that they do not run together")
    func framed() {
        func hash(_ texts: String...) -> String {
            var hash = SHA256()
            for text in texts { hash.update(framed: text) }
            return hash.finish()
        }
        #expect(hash("ab", "c") != hash("a", "bc"))
    }

    @Test("CRC-32's check value, in one piece and in several")
    func crc() {
        let digits = Array("123456789".utf8)
        #expect(digits.withUnsafeBytes { CRC32.checksum($0) } == 0xCBF4_3926)
        let text = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * $0) }
        var crc = CRC32()
        for start in stride(from: 0, to: 1000, by: 13) {
            text[start..<min(start + 13, 1000)].withUnsafeBytes { crc.update($0) }
        }
        #expect(crc.value == text.withUnsafeBytes { CRC32.checksum($0) })
    }

    @Test("FNV-1a's published values")
    func fnv() {
        #expect(FNV1a.hash("") == 0xcbf2_9ce4_8422_2325)
        #expect(FNV1a.hash("a") == 0xaf63_dc4c_8601_ec8c)
        #expect(FNV1a.hash("foobar") == 0x85944171f73967e8)
        // Fewer than eight bytes have no words.
        #expect(
            Array("foobar".utf8).withUnsafeBytes { FNV1a.hash(words: $0) } == 0x85944171f73967e8)
        var bytes = [UInt8](repeating: 1, count: 100)
        let before = bytes.withUnsafeBytes { FNV1a.hash(words: $0) }
        for index in bytes.indices {
            bytes[index] ^= 0x80
            #expect(bytes.withUnsafeBytes { FNV1a.hash(words: $0) } != before)
            bytes[index] ^= 0x80
        }
    }

    @Test("SplitMix64's published values")
    func splitMix() {
        var random = SplitMix64(seed: 1_234_567)
        #expect(
            (0..<3).map { _ in random.next() } == [
                6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423,
            ])
    }
}

@Suite struct NumberTests {
    @Test func divisionRoundsUp() {
        #expect([0, 1, 127, 128, 129].map { ceilDivide($0, 128) } == [0, 1, 1, 1, 2])
        #expect(ceilDivide(Int.max, 2) == 1 << 62)
        #expect([0, 1, 16, 17].map { roundUp($0, to: 16) } == [0, 16, 16, 32])
    }

    @Test(arguments: [([3], 3), ([4, 1, 3], 3), ([4, 1, 2, 3], 2.5)] as [([Double], Double)])
    func medians(values: [Double], expected: Double) {
        #expect(median(values) == expected)
        #expect(median([]).isNaN)
    }

    @Test func distances() {
        var distance = Distance()
        #expect(distance.relative == 0 && distance.maximum == 0)
        distance.add([3, 4], [0, 4])
        #expect(distance.relative == 0.75 && distance.maximum == 3)
        distance.add(Double.infinity, Double.infinity)
        distance.add(Double.nan, Double.nan)
        #expect(distance.relative == 0.75 && distance.maximum == 3)
        var zero = Distance()
        zero.add(-2, 0)
        #expect(zero.relative == 2 && zero.maximum == 2)
        let pairs: [(Double, Double)] = [
            (.nan, 1), (1, .nan), (.infinity, 1), (.infinity, -.infinity),
        ]
        for pair in pairs {
            var broken = Distance()
            broken.add(pair.0, pair.1)
            #expect(!(broken.relative <= 1e300) && broken.maximum == .infinity, "\(pair)")
        }
    }
}

@Suite struct TextTests {
    @Test(
        arguments: [
            (0, 2, "0.00"), (-0.001, 2, "0.00"), (-1.005, 1, "-1.0"), (2.5, 0, "3"),
            (0.995, 2, "1.00"), (12.0625, 3, "12.063"), (1e18, 0, "1000000000000000000"),
            (.infinity, 1, "inf"), (.nan, 1, "nan"), (1e300, 2, "1e+300"),
        ] as [(Double, Int, String)])
    func fixedDigits(value: Double, digits: Int, expected: String) {
        #expect(fixed(value, digits) == expected)
    }

    @Test("a NaN is nan, whatever its sign and its other bits")
    func numerals() {
        let strange = Double(bitPattern: 0xFFF8_3E00_0000_0001)
        #expect(numeral(strange) == "nan" && fixed(strange, 2) == "nan")
        #expect(numeral(0.1) == "0.1" && numeral(-.infinity) == "-inf")
    }

    @Test func timesAndSizes() {
        #expect(describe(seconds: 0.0432) == "43.2 ms" && describe(seconds: 0.0996) == "0.10 s")
        #expect(describe(seconds: 75.123) == "75.12 s")
        let said = [
            (0, "0 s"), (0.42, "0.4 s"), (4.4, "4 s"), (61, "61 s"), (100, "1 min 40 s"),
            (540, "9 min"), (1500, "25 min"), (33_048, "9.2 h"), (90_000, "25 h"),
            (1e6, "12 days"), (.infinity, "for ever"), (-1, "0 s"),
        ]
        for (seconds, text) in said { #expect(about(seconds: seconds) == text) }
        #expect(describe(bytes: 0) == "0.0 KiB" && describe(bytes: 3 << 19) == "1.5 MiB")
        #expect(describe(bytes: 5 << 30) == "5.00 GiB")
    }

    @Test func csvFields() {
        #expect(csvField("plain") == "plain")
        #expect(csvField("a, b") == "\"a, b\"")
        #expect(csvField("say \"x\"") == "\"say \"\"x\"\"\"")
        #expect(csvField("two\r\nlines") == "\"two\r\nlines\"")
    }

    @Test func controlCharactersBecomeVisible() {
        #expect("plain é 漢 \\".printable == "plain é 漢 \\")
        #expect("a\nb\r\n\tc".printable == "a\\nb\\r\\n\\tc")
        #expect("\u{1B}[2J\u{7F}\u{9B}\0".printable == "\\u{1B}[2J\\u{7F}\\u{9B}\\u{0}")
        #expect("x\u{202E}gpj\u{2066}\u{2028}".printable == "x\\u{202E}gpj\\u{2066}\\u{2028}")
        #expect("👩‍👧".printable == "👩‍👧")
    }
}
