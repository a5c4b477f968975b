/// `turbodiffusion inspect`: what a checkpoint holds, read from its header.

import ArgumentParser
import Checkpoints
import Ground
import Tensors
import Terminal

struct InspectCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Show what checkpoints hold, how two differ, and how a video was made.",
        discussion: """
            Reads safetensors, PyTorch files and GGUF, single or in shards (an index or a folder), and \
            folders of torch.distributed.checkpoint. Of a video of this program the request is shown.
            Of a folder that holds a model, its files are listed.
            Blocks with equal tensors are shown once. The exit status is 1 where a checkpoint \
            lacks tensors of its model, or where two compared ones differ.

            Example:
              turbodiffusion inspect Models/nano video.mp4 model.safetensors
            """)

    @Argument(help: "Checkpoints or videos to show.", completion: .file())
    var files: [String]

    @Flag(help: "Compare two checkpoints instead of showing them.")
    var diff = false

    @Flag(help: "With --diff: compare names, shapes and types only.")
    var headerOnly = false

    @Flag(help: "List every tensor, one per line.")
    var all = false

    @Flag(help: "Print JSON, one object per line.")
    var json = false

    @Option(help: "Number of attention heads, for a transformer whose head width is not 128.")
    var numHeads: Int?

    func validate() throws {
        if diff, files.count != 2 {
            throw ValidationError("--diff compares exactly two checkpoints; \(files.count) given.")
        }
    }

    func run() async throws {
        if diff { return try compare() }
        var isWhole = true
        for (index, file) in files.enumerated() {
            if VideoSummary.isVideo(file) {
                let summary = try await VideoSummary(path: file)
                if json { Output.json(summary.stored) } else { summary.show() }
                continue
            }
            if let folder = try FolderSummary(file) {
                try show(folder)
                isWhole = isWhole && folder.isWhole
                continue
            }
            let summary = CheckpointSummary(try openCheckpoint(file), heads: numHeads)
            if json {
                Output.json(SummaryReport(summary))
            } else {
                if index > 0 { Output.line("") }
                show(summary)
            }
            isWhole = isWhole && (summary.model == nil || summary.isComplete)
        }
        if !isWhole { throw ExitCode.failure }
    }

    // MARK: Showing

    private func show(_ folder: FolderSummary) throws {
        guard json else { return folder.show() }
        for file in folder.files { Output.json(SummaryReport(try file.result.get())) }
    }

    private func show(_ summary: CheckpointSummary) {
        let format = summary.format.map { "\($0.rawValue), " } ?? ""
        Output.line(
            "\(summary.path.printable): \(format)\(describe(bytes: summary.byteCount)) of tensors")
        if let model = summary.model {
            let sizes = model.properties.map { "\($0.name) \($0.value)" }
            let kind = model.title == model.kind.rawValue ? "" : " (\(model.kind.rawValue))"
            Output.line("model      \(model.title)\(kind): \(sizes.joined(separator: ", "))")
        } else {
            Output.line("model      not recognised")
        }
        if summary.layout == .diffusers { Output.line("names      Hugging Face's") }
        let types = summary.types.map { type in
            "\(type.tensors) \(type.dtype) (\(describe(bytes: type.byteCount)))"
        }
        Output.line(
            "tensors    \(summary.tensors.count) with \(grouped(summary.parameters)) elements: "
                + types.joined(separator: ", "))
        for (key, value) in summary.metadata.sorted(by: { $0.key < $1.key }) {
            Output.line("metadata   \(key.printable): \(shortened(value.printable, to: 120))")
        }
        list("note", summary.notes)
        list("missing", summary.missing.map { "\($0.name) \($0.shape)" })
        list(
            "mismatched",
            summary.mismatched.map {
                "\($0.name): \($0.found) \($0.dtype), expected \($0.expected)"
            })
        list("surplus", summary.surplus)
        if let refusal = summary.refusal
            ?? summary.model?.refusal.map({
                .incompatible(path: summary.path, reason: $0)
            })
        {
            Output.line("not run    \(refusal)")
        }
        if summary.isComplete { Output.line("complete   every tensor of the model is present") }
        Output.line("")
        Output.line(Output.table(rows(summary.tensors)))
    }

    private func list(_ title: String, _ lines: [String]) {
        let limit = all ? lines.count : 10
        for (index, line) in lines.prefix(limit).enumerated() {
            let head = index == 0 ? title : ""
            Output.line(head.padding(to: 11) + line.printable)
        }
        if lines.count > limit {
            Output.line("".padding(to: 11) + "… and \(lines.count - limit) more")
        }
    }

    /// Name, shape and type. Tensors that differ only in the number of their block share a line.
    private func rows(_ tensors: [TensorInfo]) -> [[String]] {
        struct Line: Hashable {
            var start, end: String
            var shape: [Int]
            var dtype: DType
        }
        var order: [Line] = []
        var blocks: [Line: [Int]] = [:]
        for tensor in tensors {
            var line = Line(start: tensor.name, end: "", shape: tensor.shape, dtype: tensor.dtype)
            var block = 0
            let parts = tensor.name.split(separator: ".", omittingEmptySubsequences: false)
            if !all, let index = parts.dropLast().firstIndex(where: { Int($0) != nil }),
                index > 0, ["blocks", "block", "layers"].contains(parts[index - 1])
            {
                line.start = parts[..<index].joined(separator: ".") + "."
                line.end = "." + parts[(index + 1)...].joined(separator: ".")
                block = Int(parts[index]) ?? 0
            }
            if blocks[line] == nil { order.append(line) }
            blocks[line, default: []].append(block)
        }
        // Nothing is cut with `--all`, and where no terminal is.
        let width = all ? .max : max((TextStream.output.columns ?? 1000) - 36, 24)
        return order.map { line in
            let name =
                line.end.isEmpty ? line.start : line.start + ranges(blocks[line] ?? []) + line.end
            return [shortened(name.printable, to: width), "\(line.shape)", "\(line.dtype)"]
        }
    }

    /// 0, 1, 2, 5 → "{0-2,5}"
    private func ranges(_ numbers: [Int]) -> String {
        var parts: [ClosedRange<Int>] = []
        for number in numbers.sorted() {
            if let last = parts.last, number <= last.upperBound + 1 {
                parts[parts.count - 1] = last.lowerBound...max(last.upperBound, number)
            } else {
                parts.append(number...number)
            }
        }
        let texts = parts.map { part in
            part.count == 1 ? "\(part.lowerBound)" : "\(part.lowerBound)-\(part.upperBound)"
        }
        return texts.count == 1 && parts[0].count == 1
            ? texts[0] : "{" + texts.joined(separator: ",") + "}"
    }

    // MARK: Comparing

    private func compare() throws {
        let first = try openCheckpoint(files[0])
        let second = try openCheckpoint(files[1])
        let progress = FileProgress("comparing", quiet: json)
        let difference = try CheckpointDifference(
            first, second, values: !headerOnly, progress: progress.show)
        progress.end()
        if json {
            Output.json(DifferenceReport(difference))
        } else {
            list("only in 1", difference.onlyInFirst.map { "\($0.name) \($0.shape) \($0.dtype)" })
            list("only in 2", difference.onlyInSecond.map { "\($0.name) \($0.shape) \($0.dtype)" })
            list("different", difference.changes.map(tell))
            list("not read", difference.notCompared)
            let what = headerOnly ? "equal in shape and type" : "equal"
            Output.line("\(difference.equal) tensors are \(what)")
        }
        if !difference.isEmpty { throw ExitCode.failure }
    }

    private func tell(_ change: CheckpointDifference.Comparison) -> String {
        let (a, b) = (change.first, change.second)
        var text = change.name + ":"
        if a.shape != b.shape { text += " \(a.shape) and \(b.shape)" }
        if a.dtype != b.dtype { text += " \(a.dtype) and \(b.dtype)" }
        if let distance = change.distance {
            text +=
                " values differ by at most \(Self.short(distance.largest)), "
                + "relative \(Self.short(distance.relative))"
            if distance.nonFinite > 0 {
                text += ", \(distance.nonFinite) finite in only one of the two"
            }
        }
        return text
    }

    // MARK: Text

    /// A number with the digits of a Float, where it is one.
    private static func short(_ value: Double) -> String {
        let short = Float(value)
        return short.isInfinite || short == 0 ? "\(value)" : "\(short)"
    }

    /// Cuts out the middle of a long text.
    private func shortened(_ text: String, to width: Int) -> String {
        guard text.count > width else { return text }
        return text.prefix(width / 2) + "…" + text.suffix(width - width / 2 - 1)
    }

    /// 14288491584 → 14 288 491 584
    private func grouped(_ number: Int) -> String {
        var digits = Array(String(number))
        var index = digits.count - 3
        while index > 0 {
            digits.insert(" ", at: index)
            index -= 3
        }
        return String(digits)
    }
}

extension String {
    fileprivate func padding(to width: Int) -> String {
        self + String(repeating: " ", count: max(0, width - count))
    }
}

// MARK: - JSON

private struct TensorReport: Encodable {
    var name: String
    var shape: [Int]
    var dtype: String?
}

extension TensorReport {
    init(_ info: TensorInfo) {
        self.init(name: info.name, shape: info.shape, dtype: "\(info.dtype)")
    }
}

private struct SummaryReport: Encodable {
    struct Model: Encodable {
        var kind, title: String
        var sizes: [String: String]
    }
    struct Mismatch: Encodable {
        var name: String
        var expected, found: [Int]
        var dtype: String
    }
    var path: String
    var format: String?
    var model: Model?
    var names: String?
    var complete: Bool
    var parameters, bytes: Int
    var types: [String: Int]
    var metadata: [String: String]
    var tensors: [TensorReport]
    var missing: [TensorReport]
    var mismatched: [Mismatch]
    var surplus: [String]

    init(_ summary: CheckpointSummary) {
        path = summary.path
        format = summary.format?.rawValue
        model = summary.model.map { model in
            Model(
                kind: model.kind.rawValue, title: model.title,
                sizes: Dictionary(
                    uniqueKeysWithValues: model.properties.map { ($0.name, $0.value) }))
        }
        names = summary.layout?.rawValue
        complete = summary.isComplete
        parameters = summary.parameters
        bytes = summary.byteCount
        types = Dictionary(
            uniqueKeysWithValues: summary.types.map { ("\($0.dtype)", $0.byteCount) })
        metadata = summary.metadata
        tensors = summary.tensors.map { TensorReport($0) }
        missing = summary.missing.map { TensorReport(name: $0.name, shape: $0.shape) }
        mismatched = summary.mismatched.map {
            Mismatch(name: $0.name, expected: $0.expected, found: $0.found, dtype: $0.dtype)
        }
        surplus = summary.surplus
    }
}

private struct DifferenceReport: Encodable {
    struct Change: Encodable {
        var name: String
        var first, second: TensorReport
        /// JSON has no infinities: figures are left out where only one of two values is a finite number.
        var largest, relative: Double?
        var nonFinite: Int?
    }
    var equal: Int
    var onlyInFirst, onlyInSecond: [TensorReport]
    var changes: [Change]
    /// Tensors whose element types are not supported.
    var notCompared: [String]

    init(_ difference: CheckpointDifference) {
        equal = difference.equal
        onlyInFirst = difference.onlyInFirst.map { TensorReport($0) }
        onlyInSecond = difference.onlyInSecond.map { TensorReport($0) }
        changes = difference.changes.map {
            Change(
                name: $0.name, first: TensorReport($0.first), second: TensorReport($0.second),
                largest: $0.distance.flatMap { $0.largest.isFinite ? $0.largest : nil },
                relative: $0.distance.flatMap { $0.relative.isFinite ? $0.relative : nil },
                nonFinite: $0.distance?.nonFinite)
        }
        notCompared = difference.notCompared
    }
}
