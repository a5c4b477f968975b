/// What `bench` prints: tables for people, or lines of JSON.

import Benchmarks
import Ground
import Terminal

/// Shows figures as they come.
final class BenchPrinter {
    private(set) var table: BenchTable
    private let json: Bool
    private var stages = [
        [
            "stage", "cold", "median", "best", "TFLOP/s", "of ceiling", "peak memory",
        ]
    ]
    private static let operationTitles = [
        "operation", "calls", "ms", "share", "TFLOP/s", "GB/s", "of ceiling",
    ]
    /// A table of operations has at most this many rows; one more sums up the rest.
    private static let rowLimit = 24

    init(_ settings: BenchTable.Settings, json: Bool) {
        table = BenchTable(settings)
        self.json = json
        if json { Output.json(settings) } else { settings.lines.forEach(Output.line) }
    }

    func show(_ ceilings: Ceilings) {
        let added = add { $0.add(ceilings) }
        if json { return }
        let parts = added.map { record in
            let name = record.operation ?? ""
            if let rate = record.teraflops { return "\(name) \(Self.rate(rate)) TFLOP/s" }
            return "\(name) \(fixed(record.gigabytesPerSecond ?? 0, 1)) GB/s"
        }
        Output.line("ceilings   \(parts.joined(separator: ", ")) (\(ceilings.method))")
    }

    func show(_ event: BenchEvent, against ceilings: Ceilings?) {
        let added = add { $0.add(event, against: ceilings) }
        if json { return }
        switch event {
        case .stage(let figures):
            for record in added {
                stages.append([
                    figures.name, figures.cold.map { describe(seconds: $0) } ?? "",
                    figures.warm.isEmpty ? "" : describe(seconds: figures.seconds),
                    figures.warm.min().map { describe(seconds: $0) } ?? "",
                    record.teraflops.map(Self.rate) ?? "",
                    record.shareOfCeiling.map(Self.percent) ?? "",
                    describe(bytes: figures.peakBytes),
                ])
            }
            Output.note("\(figures.name): \(describe(seconds: figures.seconds))")
        case .operations(_, let stage): show(added, of: stage)
        }
    }

    /// Prints the table of stages, when all have been measured.
    func finish() {
        if !json { Output.line("\n" + Output.table(stages)) }
    }

    /// - Returns: the records that `body` adds.
    private func add(_ body: (inout BenchTable) -> Void) -> ArraySlice<BenchTable.Record> {
        let count = table.records.count
        body(&table)
        let added = table.records[count...]
        if json { added.forEach { Output.json($0) } }
        return added
    }

    private func show(_ operations: ArraySlice<BenchTable.Record>, of stage: String) {
        func milliseconds(_ records: ArraySlice<BenchTable.Record>) -> Double {
            records.reduce(0) { $0 + ($1.milliseconds ?? 0) }
        }
        let total = milliseconds(operations)
        var rows = [Self.operationTitles]
        for record in operations.prefix(Self.rowLimit) {
            rows.append([
                "\(record.operation ?? "") \(record.shapes ?? "")", "\(record.calls ?? 0)",
                fixed(record.milliseconds ?? 0, 3),
                record.shareOfStage.map(Self.percent) ?? "",
                record.teraflops.map(Self.rate) ?? "",
                fixed(record.gigabytesPerSecond ?? 0, 1),
                record.shareOfCeiling.map(Self.percent) ?? "",
            ])
        }
        let rest = operations.dropFirst(Self.rowLimit)
        if !rest.isEmpty {
            rows.append([
                "\(rest.count) others", "\(rest.reduce(0) { $0 + ($1.calls ?? 0) })",
                fixed(milliseconds(rest), 3), Self.percent(milliseconds(rest) / total),
            ])
        }
        Output.line("\n\(stage): \(describe(seconds: total / 1000)) in operations")
        Output.line(Output.table(rows))
    }

    /// TFLOP/s with about three significant digits.
    private static func rate(_ tera: Double) -> String {
        fixed(tera, tera < 10 ? 3 : tera < 100 ? 1 : 0)
    }

    private static func percent(_ share: Double) -> String { fixed(share * 100, 1) + " %" }
}

extension BenchTable.Settings {
    fileprivate var lines: [String] {
        let group = devices > 1 ? " × \(devices)" : ""
        var lines = ["device     \(machine.device)\(group)"]
        if let driver = machine.driver, let count = machine.multiprocessors,
            let memory = machine.memoryBytes
        {
            lines.append(
                "driver     \(driver); \(count) multiprocessors, \(describe(bytes: memory))")
        }
        let top = topK.map { " top-k \($0)" } ?? ""
        return lines + [
            "processor  \(machine.processor), \(machine.cores) logical cores",
            "model      \(model), \(width)x\(height), \(frames) frames, \(attention)\(top), "
                + "linears \(linears), \(precision)",
            "opened in  \(describe(seconds: openingMilliseconds / 1000)), kernels included",
        ]
    }
}
