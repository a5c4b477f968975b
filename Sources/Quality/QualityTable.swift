/// The measured rows as CSV, appended one by one so that a run that was stopped goes on where it was.

import FoundationEssentials
import Glibc
import Ground
import Pipelines

/// What was measured of one configuration.
public struct QualityRow: Sendable, Equatable {
    public var configuration: QualityConfiguration
    /// The first so many captions of the list.
    public var captions: Int
    /// Per cent of the captions whose video shows what was asked for, in the order of `Attribute.allCases`.
    public var accuracy: [Double]
    /// Standard error of the score, from the differences between captions.
    public var scoreError: Double
    /// Of the mean squared error of all videos, in dB; nil for the reference itself and where nothing differs.
    public var psnr: Double?
    /// Mean over the videos; nil for the reference itself.
    public var similarity: Double?
    /// Median of a few videos that were made alone, from noise to 8-bit frames in host memory.
    public var seconds: Double
    public var device: String

    public init(
        _ configuration: QualityConfiguration, captions: Int, accuracy: [Double],
        scoreError: Double, psnr: Double?, similarity: Double?, seconds: Double, device: String
    ) {
        self.configuration = configuration
        self.captions = captions
        self.accuracy = accuracy
        self.scoreError = scoreError
        self.psnr = psnr
        self.similarity = similarity
        self.seconds = seconds
        self.device = device
    }

    /// Mean of the attributes.
    public var score: Double { accuracy.reduce(0, +) / Double(accuracy.count) }
}

extension QualityRow {
    static let columns =
        ["model", "steps", "attention", "linears", "top_k", "captions"]
        + Attribute.allCases.map(\.rawValue)
        + ["score", "score_error", "psnr_db", "ssim", "seconds", "device"]
    static let header = columns.joined(separator: ",")

    /// One line, without its end.
    var line: String {
        let item = configuration
        var cells = [
            item.model.rawValue, "\(item.steps)", item.attention.rawValue, item.linears.rawValue,
            item.topK.map(shortest) ?? "", "\(captions)",
        ]
        cells += accuracy.map { fixed($0, 2) }
        cells += [
            fixed(score, 3), fixed(scoreError, 3), psnr.map { fixed($0, 3) } ?? "",
            similarity.map { fixed($0, 5) } ?? "", fixed(seconds, 5),
            String(device.map { $0 == "," ? ";" : $0 }),
        ]
        return cells.joined(separator: ",")
    }

    /// nil for what is no whole row.
    init?(line: Substring) {
        let cells = line.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        let attributes = Attribute.allCases.count
        guard cells.count == Self.columns.count,
            let model = QualityConfiguration.Model(rawValue: cells[0]), let steps = Int(cells[1]),
            let attention = AttentionChoice(rawValue: cells[2]),
            let linears = Linears(rawValue: cells[3]), let captions = Int(cells[5]), captions > 0
        else { return nil }
        let topK = Double(cells[4])
        let accuracy = cells[6..<6 + attributes].compactMap(Double.init)
        let rest = Array(cells[(6 + attributes)...])
        guard topK != nil || cells[4].isEmpty, accuracy.count == attributes,
            let scoreError = Double(rest[1]), let seconds = Double(rest[4])
        else { return nil }
        self.init(
            QualityConfiguration(
                model, steps: steps, attention: attention, linears: linears, topK: topK),
            captions: captions, accuracy: accuracy, scoreError: scoreError,
            psnr: Double(rest[2]), similarity: Double(rest[3]), seconds: seconds,
            device: rest[5])
    }
}

/// The file of rows.
public struct QualityTable: Sendable {
    public let path: String
    /// In the order of measuring.
    public private(set) var rows: [QualityRow]

    /// Opens the file; a row that was cut off at the end is dropped, and will be measured again.
    /// - Throws: ``RequestError`` where the file is something else.
    public init(path: String) throws {
        self.path = path
        guard let data = FileManager.default.contents(atPath: path) else {
            rows = []
            return
        }
        let text = String(decoding: data, as: UTF8.self)
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        // What follows the last line's end is empty, or a row that is not whole.
        let tail = lines.popLast() ?? ""
        guard lines.first.map({ $0 == QualityRow.header }) ?? QualityRow.header.hasPrefix(tail)
        else {
            throw RequestError("\(path) is no table of this command: its first line is another")
        }
        var rows: [QualityRow] = []
        for (index, line) in lines.enumerated().dropFirst() {
            guard let row = QualityRow(line: line) else {
                throw RequestError("\(path): line \(index + 1) is no row of this command's table")
            }
            guard !rows.contains(where: { $0.configuration == row.configuration }) else {
                throw RequestError(
                    "\(path): line \(index + 1) repeats '\(row.configuration.title)'")
            }
            rows.append(row)
        }
        self.rows = rows
        if !tail.isEmpty { try write(lines.map { $0 + "\n" }.joined()) }
    }

    /// A table in memory, whose file begins with the first row that is appended.
    init(path: String, _ rows: [QualityRow]) {
        self.path = path
        self.rows = rows
    }

    public subscript(configuration: QualityConfiguration) -> QualityRow? {
        rows.first { $0.configuration == configuration }
    }

    /// Throws where the rows that are there speak of another number of captions.
    public func check(captions: Int) throws {
        guard let other = rows.first(where: { $0.captions != captions }) else { return }
        throw RequestError(
            "\(path) holds rows of \(other.captions) captions, not \(captions): go on with "
                + "--captions \(other.captions), or write to another folder")
    }

    /// Adds a row to the file at once, whole.
    public mutating func append(_ row: QualityRow) throws {
        rows.append(row)
        let isNew = rows.count == 1
        try write((isNew ? QualityRow.header + "\n" : "") + row.line + "\n", appending: !isNew)
    }

    private func write(_ text: String, appending: Bool = false) throws {
        let flags = O_WRONLY | O_CREAT | O_CLOEXEC | (appending ? O_APPEND : O_TRUNC)
        let file = open(path, flags, 0o644)
        guard file >= 0 else { throw cannotWrite }
        defer { close(file) }
        let bytes = Array(text.utf8)
        guard Glibc.write(file, bytes, bytes.count) == bytes.count else { throw cannotWrite }
    }

    private var cannotWrite: RequestError {
        RequestError("cannot write \(path): \(String(cString: strerror(errno)))")
    }
}
