// What a card was measured to prefer where kernels of equal results compete.

internal import Glibc
internal import Ground
internal import SystemPackage

/// The result of `kernels tune`. It is an input of the pure functions that choose kernels, and only of those whose
/// candidates give the same bits: results never depend on it.
public struct Tuning: Hashable, Sendable {
    /// How many times as fast linear_mma.cu computes a row of a tile of 256 rows as one of 128, by the operands' element.
    private(set) var tallTiles: [LinearProblem.Element: Double] = [:]

    /// What is assumed of cards that were not measured: those tiles read a quarter less per product.
    static let assumed = 1.2
    /// Whoever measures more than this was disturbed.
    static let believed = 0.5...3.0

    public init() {}

    func advantageOfTallTiles(_ element: LinearProblem.Element) -> Double {
        tallTiles[element] ?? Self.assumed
    }

    /// Takes a measurement, unless it cannot be believed.
    mutating func setAdvantageOfTallTiles(_ element: LinearProblem.Element, _ value: Double) {
        if Self.believed.contains(value) { tallTiles[element] = value }
    }

    /// One line for each measurement.
    public var lines: [String] {
        tallTiles.sorted { $0.key.rawValue < $1.key.rawValue }.map { element, value in
            "products of \(element.rawValue): a tile of 256 rows is \(fixed(value, 2)) times as fast per row as one of "
                + "128 (\(fixed(Self.assumed, 2)) where nothing was measured)"
        }
    }

    // MARK: Measuring

    /// Measures candidates in turn, so that a clock that changes slows all of them.
    /// - Parameters:
    ///   - limit: seconds after which nothing more is begun.
    ///   - now: seconds on any clock.
    ///   - measure: seconds that a candidate takes once.
    /// - Returns: the median of each; nil if there was no time for three of each.
    static func medians<Failure: Error>(
        of candidates: Int, rounds: Int, limit: Double, now: () -> Double,
        measure: (Int) throws(Failure) -> Double
    ) throws(Failure) -> [Double]? {
        let start = now()
        var times = [[Double]](repeating: [], count: candidates)
        rounds: for _ in 0..<rounds {
            for candidate in 0..<candidates {
                if now() - start >= limit { break rounds }
                times[candidate].append(try measure(candidate))
            }
        }
        guard times.allSatisfy({ $0.count >= 3 }) else { return nil }
        return times.map { $0.sorted()[$0.count / 2] }
    }

    // MARK: Keeping

    /// What the measurements belong to: the card with its driver, and the kernels.
    struct Subject: Hashable {
        var card, driver, kernels: String

        /// The name of the file, in the folder of compiled kernels.
        var fileName: String {
            String(card.map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "-" }) + ".tuning"
        }
    }

    func text(of subject: Subject) -> String {
        let measured = tallTiles.map { "\($0.key.rawValue) \($0.value)" }.sorted()
        return ([subject.card, subject.driver, subject.kernels] + measured)
            .map { $0 + "\n" }.joined()
    }

    /// nil if the text is not of this card, driver and kernels.
    init?(text: String, of subject: Subject) {
        let lines = text.split(separator: "\n").map(String.init)
        guard lines.starts(with: [subject.card, subject.driver, subject.kernels]) else {
            return nil
        }
        for line in lines.dropFirst(3) {
            let words = line.split(separator: " ")
            guard words.count == 2, let element = LinearProblem.Element(rawValue: String(words[0])),
                let value = Double(words[1])
            else { return nil }
            setAdvantageOfTallTiles(element, value)
        }
    }
}

extension KernelCache {
    private func file(_ subject: Tuning.Subject) -> FilePath {
        FilePath(folder).appending(subject.fileName)
    }

    /// What was measured of a subject; nothing if nothing was.
    func tuning(of subject: Tuning.Subject) -> Tuning {
        guard let bytes = try? file(subject).contents(limit: 4096) else { return Tuning() }
        return Tuning(text: String(decoding: bytes, as: UTF8.self), of: subject) ?? Tuning()
    }

    func store(_ tuning: Tuning, of subject: Tuning.Subject) throws(FileError) {
        try? FilePath(folder).makeFolders(mode: 0o700)
        try PendingFile.write(
            Array(tuning.text(of: subject).utf8), to: file(subject), overwrite: true,
            durable: false)
    }

    /// - Returns: whether there was something to forget.
    func forgetTuning(of subject: Tuning.Subject) -> Bool {
        unlink(file(subject).string) == 0
    }
}
