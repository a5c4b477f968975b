/// The report on the measured rows: a page of Markdown and its charts.

import Families
import Ground
import SystemPackage

/// What the rows say about the model: where its score falls, and how certain that is.
struct Report: Sendable {
    let rows: [Row]
    let command: String

    /// A loss of more points than this is large.
    static let largeLoss = 3.0
    /// In standard errors: one difference in twenty is larger than two by chance.
    private static let sureness = 2.0

    /// - Parameter command: the command that makes the rows, for repeating the study.
    init(_ table: Table, command: String) {
        rows = table.rows.sorted { $0.configuration.isBefore($1.configuration) }
        self.command = command
    }

    /// Writes `README.md` and the charts beside the table; each file appears only when it is complete.
    func write(to folder: String) throws {
        for (name, text) in files {
            let path = "\(folder)/\(name)"
            do {
                try PendingFile.write(Array(text.utf8), to: FilePath(path), overwrite: true)
            } catch {
                throw StudyError("cannot write \(error)")
            }
        }
    }

    var files: [(name: String, text: String)] {
        let charts = charts
        return [("README.md", page(charts))] + charts.map { ("\($0.name).svg", $0.chart.svg) }
    }

    // MARK: Looking up

    var teacher: Row? { rows.first { $0.configuration.model == .teacher } }
    var students: [Row] { rows.filter { $0.configuration.model == .student } }

    func row(
        steps: Int, _ attention: AttentionChoice, _ linears: Linears, topK: Double
    ) -> Row? {
        let top = attention == .original ? nil : topK
        return students.first {
            let item = $0.configuration
            return item.steps == steps && item.attention == attention && item.linears == linears
                && item.topK == top
        }
    }

    /// The pairs of attention and linears that have rows, in the order of the report.
    func kinds(_ attentions: [AttentionChoice] = AttentionChoice.allCases) -> [(
        attention: AttentionChoice, linears: Linears
    )] {
        attentions.flatMap { attention in
            Linears.allCases.filter { linears in
                students.contains {
                    $0.configuration.attention == attention && $0.configuration.linears == linears
                }
            }.map { (attention, $0) }
        }
    }

    // MARK: Falling

    /// Points below the teacher.
    func loss(_ row: Row) -> Double { (teacher?.score ?? row.score) - row.score }

    /// The loss that chance alone can cause. For rows that do not say how each caption did it is an upper bound: both use
    /// the same captions and noise, which makes their difference more certain.
    func noise(_ row: Row) -> Double {
        let error = teacher?.scoreError ?? 0
        return Self.sureness
            * (lossError(row) ?? (row.scoreError * row.scoreError + error * error).squareRoot())
    }

    /// The standard error of the loss, from the differences between each caption's two videos; nil if they are not known.
    func lossError(_ row: Row) -> Double? { teacher.flatMap { row.differenceError($0) } }

    enum Verdict: Sendable, Equatable { case kept, measurable, large }

    func verdict(_ row: Row) -> Verdict {
        let loss = loss(row)
        if loss > max(Self.largeLoss, noise(row)) { return .large }
        return loss > noise(row) ? .measurable : .kept
    }

    /// The first row in the given order with a measurable loss, and the first with a large one.
    func firstFalls(_ ordered: [Row]) -> (measurable: Row?, large: Row?) {
        (ordered.first { verdict($0) != .kept }, ordered.first { verdict($0) == .large })
    }

    /// The rows from the top-k that the student was trained with downwards, or upwards, including that one.
    func byTopK(
        steps: Int, _ attention: AttentionChoice, _ linears: Linears, down: Bool
    ) -> [Row] {
        let usual = Configuration.usualTopK
        return students.filter {
            let item = $0.configuration
            guard item.steps == steps, item.attention == attention, item.linears == linears,
                let topK = item.topK
            else { return false }
            return down ? topK <= usual : topK >= usual
        }.sorted {
            let (a, b) = ($0.configuration.topK ?? 1, $1.configuration.topK ?? 1)
            return down ? a > b : a < b
        }
    }

    /// The rows from four steps downwards, at the top-k that the student was trained with.
    func bySteps(_ attention: AttentionChoice, _ linears: Linears) -> [Row] {
        (1...Configuration.mostSteps).reversed().compactMap {
            row(steps: $0, attention, linears, topK: Configuration.usualTopK)
        }
    }
}

extension Configuration {
    /// The order of the tables: the teacher first, then by steps, attention, linears and top-k.
    func isBefore(_ other: Configuration) -> Bool {
        func key(_ item: Configuration) -> [Double] {
            [
                item.model == .teacher ? 0 : 1, -Double(item.steps),
                Double(AttentionChoice.allCases.firstIndex(of: item.attention) ?? 0),
                Double(Linears.allCases.firstIndex(of: item.linears) ?? 0), -(item.topK ?? 0),
            ]
        }
        return key(self).lexicographicallyPrecedes(key(other))
    }
}
