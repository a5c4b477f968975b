/// Option values that need more parsing than a number or a name.

import ArgumentParser
import Benchmarks

/// An amount of memory in bytes, written as "16GiB", "512M" or "8e9".
struct ByteCount: Sendable, Equatable {
    let bytes: Int

    private static let scales: [String: Double] = [
        "": 1, "b": 1, "k": 0x1p10, "kib": 0x1p10, "kb": 1e3, "m": 0x1p20, "mib": 0x1p20,
        "mb": 1e6, "g": 0x1p30, "gib": 0x1p30, "gb": 1e9, "t": 0x1p40, "tib": 0x1p40, "tb": 1e12,
    ]

    init(_ text: String) throws {
        let unit = String(text.reversed().prefix { $0.isLetter }.reversed()).lowercased()
        let digits = text.dropLast(unit.count)
        guard let number = Double(digits.filter { $0 != " " }), let scale = Self.scales[unit],
            number > 0, number * scale < 1e15
        else {
            throw ValidationError(
                "'\(text)' is not an amount of memory: expected one such as 16GiB")
        }
        bytes = Int(number * scale)
        guard bytes >= 1 << 20 else {
            throw ValidationError("\(text) is \(bytes) bytes: did you mean \(digits)GiB?")
        }
    }
}

/// `832x480`: two numbers; nil for anything else.
func pair(_ text: String) -> (Int, Int)? {
    let numbers = text.lowercased().split(separator: "x", omittingEmptySubsequences: false)
        .map { Int($0) }
    guard numbers.count == 2, let first = numbers[0], let second = numbers[1] else { return nil }
    return (first, second)
}

/// `--seed`: a number, or a random one that is drawn when the request is made.
enum Seed: ExpressibleByArgument, Equatable {
    case number(UInt64)
    case random

    init?(argument: String) {
        if argument == "random" || argument == "-1" {
            self = .random
        } else if let number = UInt64(argument) {
            self = .number(number)
        } else {
            return nil
        }
    }
}

extension SeedList: ExpressibleByArgument {
    init?(argument: String) { self.init(argument) }
}

/// `--card`: a known one by a part of its name, or all.
struct CardArgument: ExpressibleByArgument, Equatable {
    var cards: [Card]

    init?(argument: String) {
        cards =
            argument.lowercased() == "all" ? Card.known : Card.named(argument).map { [$0] } ?? []
        if cards.isEmpty { return nil }
    }

    static var allValueStrings: [String] { ["all"] + Card.known.map(\.shortName) }
}

/// A file and the strength after its last colon: `style.safetensors:0.8`.
struct LoRAArgument: ExpressibleByArgument, Equatable {
    var path: String
    var strength: Float

    init?(argument: String) {
        path = argument
        strength = 1
        if let colon = argument.lastIndex(of: ":"),
            let value = Float(argument[argument.index(after: colon)...])
        {
            guard value.isFinite else { return nil }
            path = String(argument[..<colon])
            strength = value
        }
        if path.isEmpty { return nil }
    }
}

/// What `--threads` may say: each takes memory, and nothing has more processors.
func checkThreads(_ threads: Int?) throws {
    if let threads, !(1...4096).contains(threads) {
        throw ValidationError("--threads must be 1 to 4096, not \(threads)")
    }
}
