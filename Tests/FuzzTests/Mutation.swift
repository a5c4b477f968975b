// Damaged files: pieces of a corpus, changed as accidents and attackers change them, the same in every run.

import FoundationEssentials
import Glibc
import Ground
import Testing

/// Makes inputs from a corpus.
struct Mutation {
    private let corpus: [[UInt8]]
    private var random: SplitMix64

    init(_ corpus: [[UInt8]], seed: UInt64) {
        self.corpus = corpus
        random = SplitMix64(seed: seed)
    }

    private mutating func below(_ limit: Int) -> Int {
        limit > 0 ? Int.random(in: 0..<limit, using: &random) : 0
    }

    mutating func next() -> [UInt8] {
        var bytes = corpus[below(corpus.count)]
        for _ in 0...below(4) { change(&bytes) }
        return bytes
    }

    private static let numbers: [UInt64] = [
        0, 1, 2, 7, 8, 12, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 24, 1 << 31 - 1, 1 << 31,
        1 << 32 - 1, 1 << 62,
        1 << 63 - 1, 1 << 63, .max,
    ]

    private mutating func change(_ bytes: inout [UInt8]) {
        let at = below(bytes.count)
        switch below(9) {
        case 0 where !bytes.isEmpty: bytes[at] ^= 1 << below(8)
        case 1 where !bytes.isEmpty: bytes[at] = UInt8(below(256))
        case 2: bytes.removeSubrange(at..<min(bytes.count, at + below(32)))
        case 3: bytes.removeLast(below(bytes.count))
        case 4:
            // A number that is at some limit, of any width, in either order.
            let number = Self.numbers[below(Self.numbers.count)]
            var digits = (0..<[1, 2, 4, 8][below(4)]).map {
                UInt8(truncatingIfNeeded: number >> (8 * UInt64($0)))
            }
            if below(2) == 0 { digits.reverse() }
            for (index, digit) in digits.enumerated() where at + index < bytes.count {
                bytes[at + index] = digit
            }
        case 5:
            bytes.insert(
                contentsOf: bytes[at..<min(bytes.count, at + below(64))], at: below(bytes.count))
        case 6:
            let other = corpus[below(corpus.count)]
            bytes = Array(bytes.prefix(at) + other.dropFirst(below(other.count)))
        case 7:
            let end = min(bytes.count, at + below(16))
            for index in at..<end { bytes[index] = UInt8(below(256)) }
        default:
            // Texts: a digit becomes another, and a bracket too many.
            let signs = Array("0123456789-+eE.\"{}[],:\\u ".utf8)
            bytes.insert(signs[below(signs.count)], at: at)
        }
    }
}

/// Inputs for each reader in the normal run; `TURBODIFFUSION_FUZZ=1000000` makes it a million, and
/// `TURBODIFFUSION_FUZZ_KEEP=FILE` keeps the input at hand for the moment when a reader traps.
func fuzz(_ corpus: [[UInt8]], seed: UInt64 = 1, runs: Int = 3000, _ body: ([UInt8]) -> Void) {
    let environment = ProcessInfo.processInfo.environment
    let runs = environment["TURBODIFFUSION_FUZZ"].flatMap { Int($0) } ?? runs
    var mutation = Mutation(
        corpus, seed: environment["TURBODIFFUSION_FUZZ_SEED"].flatMap { UInt64($0) } ?? seed)
    let memory = mostMemory()
    var slowest = Duration.zero
    for _ in 0..<runs {
        let input = mutation.next()
        if let path = environment["TURBODIFFUSION_FUZZ_KEEP"] {
            _ = FileManager.default.createFile(atPath: path, contents: Data(input))
        }
        slowest = max(slowest, ContinuousClock().measure { body(input) })
    }
    #expect(slowest < .seconds(5))
    // Other tests of this process take memory too, where they run beside.
    if environment["TURBODIFFUSION_FUZZ"] != nil { #expect(mostMemory() - memory < 500 << 20) }
}

/// Bytes that the process has held at most.
private func mostMemory() -> Int {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return usage.ru_maxrss * 1024
}

/// The folder of the included model.
let nano =
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/") + "/Models/nano"

/// A new name for a file or a folder.
func temporaryPath() -> String {
    FileManager.default.temporaryDirectory.path + "/fuzz-\(UInt64.random(in: 0 ... .max))"
}

/// The files of the corpus.
func corpus(_ isWanted: (String) -> Bool) -> [[UInt8]] {
    let folder = "/" + #filePath.split(separator: "/").dropLast().joined(separator: "/") + "/Corpus"
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    return names.sorted().filter(isWanted).compactMap {
        FileManager.default.contents(atPath: "\(folder)/\($0)").map { [UInt8]($0) }
    }
}
