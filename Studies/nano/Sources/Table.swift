/// The measured rows as CSV, appended one by one so that a run that was stopped can go on where it was.

import Families
import Glibc
import Ground
import Quality
import SystemPackage

/// The results of one configuration.
struct Row: Sendable, Equatable {
    var configuration: Configuration
    /// How many captions were used, from the start of the list.
    var captions: Int
    /// Per cent of the captions whose video shows what was asked for, in the order of `Attribute.allCases`.
    var accuracy: [Double]
    /// Standard error of the score, from the differences between captions.
    var scoreError: Double
    /// In dB, from the mean squared error of all videos; nil for the reference itself and if nothing differs.
    var psnr: Double?
    /// SSIM, the mean over the videos; nil for the reference itself.
    var similarity: Double?
    /// The median over a few videos that were made alone, from noise to 8-bit frames in host memory.
    var seconds: Double
    var device: String
    /// How many attributes of each caption's video are right, for the differences between rows; empty if not known.
    var right: [Int]

    init(
        _ configuration: Configuration, captions: Int, accuracy: [Double],
        scoreError: Double, psnr: Double?, similarity: Double?, seconds: Double, device: String,
        right: [Int] = []
    ) {
        self.configuration = configuration
        self.captions = captions
        self.accuracy = accuracy
        self.scoreError = scoreError
        self.psnr = psnr
        self.similarity = similarity
        self.seconds = seconds
        self.device = device
        self.right = right
    }

    /// The mean over the attributes.
    var score: Double { accuracy.reduce(0, +) / Double(accuracy.count) }

    /// The standard error of the difference of two scores, from the differences between the videos of each caption; nil
    /// if they are not known. It is smaller than what the errors of the two scores give, as hard captions are hard for both.
    func differenceError(_ other: Row) -> Double? {
        guard !right.isEmpty, right.count == other.right.count else { return nil }
        return standardError(
            zip(right, other.right).map { 100 * Double($0 - $1) / Double(accuracy.count) })
    }
}

extension Row {
    static let columns =
        ["model", "steps", "attention", "linears", "top_k", "captions"]
        + Attribute.allCases.map(\.rawValue)
        + ["score", "score_error", "psnr_db", "ssim", "seconds", "device", "right"]
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
            String(device.map { $0 == "," ? ";" : $0 }), right.map { "\($0)" }.joined(),
        ]
        return cells.joined(separator: ",")
    }

    /// nil if the line is not a complete row.
    init?(line: Substring) {
        let cells = line.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        let attributes = Attribute.allCases.count
        guard cells.count == Self.columns.count,
            let model = Configuration.Model(rawValue: cells[0]), let steps = Int(cells[1]),
            let attention = AttentionChoice(rawValue: cells[2]),
            let linears = Linears(rawValue: cells[3]), let captions = Int(cells[5]), captions > 0
        else { return nil }
        let topK = Double(cells[4])
        let accuracy = cells[6..<6 + attributes].compactMap(Double.init)
        let rest = Array(cells[(6 + attributes)...])
        guard topK != nil || cells[4].isEmpty, accuracy.count == attributes,
            let scoreError = Double(rest[1]), let seconds = Double(rest[4])
        else { return nil }
        let right = rest[6].compactMap(\.wholeNumberValue)
        guard right.count == rest[6].count, right.isEmpty || right.count == captions,
            right.allSatisfy({ $0 <= attributes })
        else { return nil }
        self.init(
            Configuration(
                model, steps: steps, attention: attention, linears: linears, topK: topK),
            captions: captions, accuracy: accuracy, scoreError: scoreError,
            psnr: Double(rest[2]), similarity: Double(rest[3]), seconds: seconds,
            device: rest[5], right: right)
    }
}

/// The file of rows.
struct Table: Sendable {
    let path: String
    /// In the order of measuring.
    private(set) var rows: [Row]

    /// Opens the file. An incomplete row at its end is dropped and will be measured again.
    /// - Throws: ``StudyError`` if the file is something else.
    init(path: String) throws {
        self.path = path
        guard FilePath(path).exists else {
            rows = []
            return
        }
        let text: String
        do { text = String(decoding: try FilePath(path).contents(), as: UTF8.self) } catch {
            throw StudyError("cannot read \(error)")
        }
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        // What follows the last end of line is empty or an incomplete row.
        let tail = lines.popLast() ?? ""
        guard lines.first.map({ $0 == Row.header }) ?? Row.header.hasPrefix(tail)
        else {
            throw StudyError("\(path) is not a table of this study: its first line is different")
        }
        var rows: [Row] = []
        for (index, line) in lines.enumerated().dropFirst() {
            guard let row = Row(line: line) else {
                throw StudyError("\(path): line \(index + 1) is not a row of this study's table")
            }
            guard !rows.contains(where: { $0.configuration == row.configuration }) else {
                throw StudyError(
                    "\(path): line \(index + 1) repeats '\(row.configuration.title)'")
            }
            rows.append(row)
        }
        self.rows = rows
        if !tail.isEmpty { try write(lines.map { $0 + "\n" }.joined()) }
    }

    /// A table in memory; its file is created with the first row that is appended.
    init(path: String, _ rows: [Row]) {
        self.path = path
        self.rows = rows
    }

    subscript(configuration: Configuration) -> Row? {
        rows.first { $0.configuration == configuration }
    }

    /// Throws if existing rows were measured with another number of captions.
    func check(captions: Int) throws {
        guard let other = rows.first(where: { $0.captions != captions }) else { return }
        throw StudyError(
            "\(path) has rows of \(other.captions) captions, not \(captions): go on with "
                + "--captions \(other.captions), or write to another folder")
    }

    /// Adds a row, also to the file.
    mutating func append(_ row: Row) throws {
        rows.append(row)
        let isNew = rows.count == 1
        try write((isNew ? Row.header + "\n" : "") + row.line + "\n", appending: !isNew)
    }

    private func write(_ text: String, appending: Bool = false) throws {
        let flags = O_WRONLY | O_CREAT | O_CLOEXEC | (appending ? O_APPEND : O_TRUNC)
        let file = open(path, flags, 0o644)
        guard file >= 0 else { throw cannotWrite }
        defer { close(file) }
        let bytes = Array(text.utf8)
        guard Self.write(bytes, to: file) == bytes.count else { throw cannotWrite }
    }

    private static func write(_ bytes: [UInt8], to file: Int32) -> Int {
        Glibc.write(file, bytes, bytes.count)
    }

    private var cannotWrite: StudyError {
        StudyError("cannot write \(path): \(String(cString: strerror(errno)))")
    }
}
