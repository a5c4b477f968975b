/// Several videos by one call: prompts × seeds, each with a name of its own.

import FoundationEssentials
import Ground
import Media
import SystemPackage

/// What one of the videos is to be.
struct BatchItem: Equatable {
    /// Of the prompt, from 1.
    var number: Int
    /// nil: what else was said.
    var prompt: String?
    var seed: Seed?
    var path: String
}

enum Batch {
    static let defaultPath = "output/{n}-{prompt}-{seed}.mp4"

    /// The prompts of a file, one a line; empty lines and those that begin with `#` are none.
    /// - Parameters:
    ///   - path: "-": standard input.
    ///   - limit: the most bytes.
    static func prompts(from path: String, limit: Int = 16 << 20) throws -> [String] {
        let name = path == "-" ? "standard input" : path
        var bytes: [UInt8]
        if path == "-" {
            bytes = []
            while bytes.count <= limit {
                let piece = try [UInt8](unsafeUninitializedCapacity: 1 << 16) { buffer, count in
                    count = try StandardInput.read(
                        into: UnsafeMutableRawBufferPointer(buffer))
                }
                if piece.isEmpty { break }
                bytes += piece
            }
            if bytes.count > limit {
                throw UserError(
                    "request.unusable", "\(name): more than \(describe(bytes: limit)) of prompts")
            }
        } else {
            do { bytes = try FilePath(path).contents(limit: limit) } catch {
                throw UserError("request.missing", cannotRead(path, error.reason))
            }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw UserError("request.unusable", "\(name): prompts must be UTF-8 text")
        }
        let prompts = text.split(whereSeparator: \.isNewline).map {
            String($0.drop { $0.isWhitespace || $0 == "\u{FEFF}" })
        }.filter { !$0.isEmpty && !$0.hasPrefix("#") }
        guard !prompts.isEmpty else {
            throw UserError(
                "request.unusable", "\(name) holds no prompts: expected one a line")
        }
        return prompts
    }

    /// Every prompt with every seed.
    /// - Parameters:
    ///   - pattern: of the names; see `name`.
    ///   - draw: a random seed.
    static func items(
        _ prompts: [String?], _ seeds: [Seed?], pattern: String, draw: () -> UInt64
    ) throws -> [BatchItem] {
        let digits = String(prompts.count).count
        var items: [BatchItem] = []
        var paths: [String: BatchItem] = [:]
        for (index, prompt) in prompts.enumerated() {
            for seed in seeds {
                let seed = seed == .random ? .number(draw()) : seed
                let item = BatchItem(
                    number: index + 1, prompt: prompt, seed: seed,
                    path: name(
                        pattern,
                        number: padded(index + 1, digits),
                        prompt: prompt ?? "", seed: seed))
                // Raw frames of several videos follow each other.
                if case .raw? = try? VideoFormat(path: item.path) {
                    items.append(item)
                    continue
                }
                if let other = paths.updateValue(item, forKey: item.path) {
                    let missing =
                        other.number != item.number && !pattern.contains("{n}")
                        ? "{n}" : "{seed}"
                    throw UserError(
                        "output",
                        "two of the videos have the name \(item.path): --save_path needs \(missing)"
                    )
                }
                items.append(item)
            }
        }
        return items
    }

    /// `{n}`, `{seed}` and `{prompt}` (its first words) filled in.
    static func name(_ pattern: String, number: String, prompt: String, seed: Seed?) -> String {
        var name = pattern.replacing("{n}", with: number)
        if case .number(let seed)? = seed { name = name.replacing("{seed}", with: "\(seed)") }
        return name.replacing("{prompt}", with: slug(prompt))
    }

    /// "A red ball, at night!" → "a-red-ball-at-night"; at most 40 characters, whole words.
    static func slug(_ prompt: String) -> String {
        let words = prompt.lowercased().split { !$0.isLetter && !$0.isNumber }
        var slug = ""
        for word in words {
            let longer = slug.isEmpty ? String(word.prefix(40)) : slug + "-" + word
            if longer.count > 40 || longer.utf8.count > 120 { break }
            slug = longer
        }
        return slug.isEmpty ? "video" : slug
    }
}

/// `--seeds`: "3", "1,5-8": each once, in order.
struct SeedList: Equatable {
    static let most = 10_000
    var seeds: [UInt64] = []

    init?(_ text: String) {
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false).map {
                UInt64($0.filter { $0 != " " })
            }
            guard let first = ends[0], ends.count <= 2, let last = ends[ends.count - 1],
                last >= first, last - first < UInt64(Self.most)
            else { return nil }
            for seed in first...last where !seeds.contains(seed) { seeds.append(seed) }
            if seeds.count > Self.most { return nil }
        }
    }
}
