/// What `bench` prints and writes: tables for people, JSON lines, CSV.

import Ground
import Pipelines
import SystemPackage
import Tensors

/// Collects figures and prints them as they come.
final class BenchReport {
    enum Style { case text, json, silent }

    /// One line of JSON and one row of CSV.
    struct Record: Encodable {
        var record: String
        var stage: String?
        var operation, shapes, arithmetic: String?
        var calls: Int?
        /// Medians of warm runs; of an operation: all its calls in one run.
        var milliseconds, bestMilliseconds, coldMilliseconds: Double?
        /// Of the time of its stage.
        var shareOfStage: Double?
        var teraflops, gigabytesPerSecond: Double?
        var shareOfCeiling: Double?
        var peakBytes: Int?
    }

    private struct Header: Encodable {
        var record = "machine"
        var program = "turbodiffusion \(TurboDiffusion.programVersion)"
        var machine: Machine
        var model: String
        var width, height, frames, steps: Int
        var attention, linears, precision: String
        var topK: Double?
        var openingMilliseconds: Double
    }

    private let header: Header
    private let style: Style
    private(set) var records: [Record] = []
    private var rows = [stageTitles]
    private static let stageTitles = [
        "stage", "cold", "median", "best", "TFLOP/s", "of ceiling", "peak memory",
    ]
    private static let operationTitles = [
        "operation", "calls", "ms", "share", "TFLOP/s", "GB/s", "of ceiling",
    ]
    /// Rows of a table of operations; the rest is summed up.
    private static let mostRows = 24

    init(
        _ machine: Machine, _ model: String, _ request: VideoRequest, openingSeconds: Double,
        style: Style
    ) {
        self.style = style
        let isSparse = request.attention != .original
        header = Header(
            machine: machine, model: model, width: request.width, height: request.height,
            frames: request.frames, steps: request.steps, attention: request.attention.rawValue,
            linears: request.linears == .stored ? "stored" : request.linears.rawValue,
            precision: request.precision.rawValue, topK: isSparse ? request.topK : nil,
            openingMilliseconds: openingSeconds * 1000)
    }

    func showHeader() {
        if style == .json { Output.json(header) }
        guard style == .text else { return }
        for line in header.machine.lines { Output.line(line) }
        let top = header.topK.map { " top-k \($0)" } ?? ""
        Output.line(
            "model      \(header.model), \(header.width)x\(header.height), \(header.frames) frames"
                + ", \(header.attention)\(top), linears \(header.linears), \(header.precision)")
        Output.line(
            "opened in  \(Output.seconds(header.openingMilliseconds / 1000)), kernels included")
    }

    func show(_ ceilings: Ceilings) {
        var parts = ["copy \(Output.fixed(ceilings.copy / 1e9, 1)) GB/s"]
        add(
            Record(
                record: "ceiling", operation: "copy", gigabytesPerSecond: ceilings.copy / 1e9))
        for kind in Arithmetic.allCases {
            guard let rate = ceilings.arithmetic[kind] else { continue }
            parts.append("\(kind.rawValue) \(Self.rate(rate / 1e12)) TFLOP/s")
            add(Record(record: "ceiling", operation: kind.rawValue, teraflops: rate / 1e12))
        }
        if style == .text {
            Output.line(
                "ceilings   \(parts.joined(separator: ", ")) (\(ceilings.method))")
        }
    }

    func show(_ figures: StageFigures) {
        let rate = figures.cost.map { Double($0.flops) / figures.seconds / 1e12 }
        let share = figures.floor.map { $0 / figures.seconds }
        add(
            Record(
                record: "stage", stage: figures.name, milliseconds: figures.seconds * 1000,
                bestMilliseconds: figures.warm.min().map { $0 * 1000 },
                coldMilliseconds: figures.cold.map { $0 * 1000 }, teraflops: rate,
                gigabytesPerSecond: figures.cost.map {
                    Double($0.bytes) / figures.seconds / 1e9
                }, shareOfCeiling: share, peakBytes: figures.peakBytes))
        rows.append([
            figures.name, figures.cold.map(Output.seconds) ?? "",
            figures.warm.isEmpty ? "" : Output.seconds(figures.seconds),
            figures.warm.min().map(Output.seconds) ?? "", rate.map(Self.rate) ?? "",
            share.map(Self.percent) ?? "", Output.bytes(figures.peakBytes),
        ])
        if style == .text { Output.note("\(figures.name): \(Output.seconds(figures.seconds))") }
    }

    /// The operations of one run of a stage.
    func show(_ operations: [TimedOperation], of stage: String, _ ceilings: Ceilings) {
        let total = operations.reduce(0) { $0 + $1.seconds }
        var table = [Self.operationTitles]
        for (index, entry) in operations.enumerated() {
            let rate = Double(entry.cost.flops) / entry.seconds / 1e12
            let traffic = Double(entry.cost.bytes) / entry.seconds / 1e9
            let share = ceilings.floor(entry.cost, entry.key.arithmetic).map {
                $0 / entry.seconds
            }
            add(
                Record(
                    record: "operation", stage: stage, operation: entry.key.operation,
                    shapes: entry.key.shapes, arithmetic: entry.key.arithmetic.rawValue,
                    calls: entry.calls, milliseconds: entry.seconds * 1000,
                    shareOfStage: entry.seconds / total,
                    teraflops: entry.cost.flops > 0 ? rate : nil, gigabytesPerSecond: traffic,
                    shareOfCeiling: share))
            guard index < Self.mostRows else { continue }
            table.append([
                "\(entry.key.operation) \(entry.key.shapes)", "\(entry.calls)",
                Output.fixed(entry.seconds * 1000, 3), Self.percent(entry.seconds / total),
                entry.cost.flops > 0 ? Self.rate(rate) : "", Output.fixed(traffic, 1),
                share.map(Self.percent) ?? "",
            ])
        }
        guard style == .text else { return }
        let rest = operations.dropFirst(Self.mostRows)
        if !rest.isEmpty {
            let seconds = rest.reduce(0) { $0 + $1.seconds }
            table.append([
                "\(rest.count) others", "\(rest.reduce(0) { $0 + $1.calls })",
                Output.fixed(seconds * 1000, 3), Self.percent(seconds / total),
            ])
        }
        Output.line("\n\(stage): \(Output.seconds(total)) in operations")
        Output.line(Output.table(table))
    }

    /// The table of stages, after all of them.
    func finish() {
        guard style == .text else { return }
        Output.line("\n" + Output.table(rows))
    }

    private func add(_ record: Record) {
        records.append(record)
        if style == .json { Output.json(record) }
    }

    // MARK: Numbers

    /// TFLOP/s with three digits or so.
    static func rate(_ tera: Double) -> String {
        Output.fixed(tera, tera < 10 ? 3 : tera < 100 ? 1 : 0)
    }

    static func percent(_ share: Double) -> String { Output.fixed(share * 100, 1) + " %" }

    // MARK: CSV

    /// Every figure in one row, with the run's settings.
    func writeCSV(_ path: String) throws {
        let settings = [
            header.machine.device, header.model, "\(header.width)x\(header.height)",
            "\(header.frames)", header.attention, header.linears, header.precision,
        ]
        var lines = [
            "device,model,size,frames,attention,linears,precision,record,stage,operation,shapes,"
                + "arithmetic,calls,milliseconds,best_ms,cold_ms,share_of_stage,tflops,gb_per_s,"
                + "share_of_ceiling,peak_bytes"
        ]
        for record in records {
            func number(_ value: Double?, _ digits: Int) -> String {
                value.map { Output.fixed($0, digits) } ?? ""
            }
            let fields =
                settings + [
                    record.record, record.stage ?? "", record.operation ?? "", record.shapes ?? "",
                    record.arithmetic ?? "", record.calls.map(String.init) ?? "",
                    number(record.milliseconds, 4), number(record.bestMilliseconds, 4),
                    number(record.coldMilliseconds, 4), number(record.shareOfStage, 4),
                    number(record.teraflops, 4), number(record.gigabytesPerSecond, 2),
                    number(record.shareOfCeiling, 4), record.peakBytes.map(String.init) ?? "",
                ]
            lines.append(fields.map(csvField).joined(separator: ","))
        }
        let text = lines.joined(separator: "\n") + "\n"
        do {
            try PendingFile.write(Array(text.utf8), to: FilePath(path), overwrite: true)
        } catch {
            throw Self.unwritable(error)
        }
    }

    /// Refuses a file that could not be written, before anything is measured.
    static func checkWritable(_ path: String) throws {
        do { _ = try PendingFile(FilePath(path), overwrite: true) } catch {
            throw unwritable(error)
        }
    }

    private static func unwritable(_ error: FileError) -> RequestError {
        RequestError("cannot write \(error)")
    }
}
