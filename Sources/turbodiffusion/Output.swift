/// What the commands print: stdout for results, stderr for progress.

import FoundationEssentials
import Glibc
import Ground
import Pipelines
import Synchronization

enum Output {
    static func line(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }
    static func note(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress, $0.count)
            }
            if count < 0 { if errno == EINTR { continue } else { return } }
            bytes = bytes.dropFirst(count)
        }
    }

    /// One line of JSON.
    static func json(_ value: some Encodable) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(value) else { return }
        line(String(decoding: data, as: UTF8.self))
    }

    static func seconds(_ value: Double) -> String {
        value < 0.0995 ? "\(fixed(value * 1000, 1)) ms" : "\(fixed(value, 2)) s"
    }

    static func bytes(_ count: Int) -> String {
        let value = Double(count)
        if value >= 0x1p30 { return "\(fixed(value / 0x1p30, 2)) GiB" }
        if value >= 0x1p20 { return "\(fixed(value / 0x1p20, 1)) MiB" }
        return "\(fixed(value / 0x1p10, 1)) KiB"
    }

    /// Decimal digits without a locale.
    static func fixed(_ value: Double, _ digits: Int) -> String { Ground.fixed(value, digits) }

    /// Columns padded to their widest cell; the first left-aligned, the others right-aligned.
    static func table(_ rows: [[String]]) -> String {
        guard let columns = rows.map(\.count).max() else { return "" }
        let widths = (0..<columns).map { column in
            rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        return rows.map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                line += column == 0 ? cell + padding : "  " + padding + cell
            }
            return line
        }.joined(separator: "\n")
    }
}

/// Shows the events of a run: a moving line on a terminal, plain lines elsewhere, or JSON lines.
final class ProgressPrinter: Sendable {
    enum Style: Sendable { case terminal, plain, json, quiet }

    private struct State {
        var stage: Stage?
        var started = ContinuousClock.now
        var lastShown: ContinuousClock.Instant?
        var stepSeconds: [Double] = []
    }

    private let style: Style
    private let state = Mutex(State())

    init(json: Bool, quiet: Bool) {
        style = json ? .json : quiet ? .quiet : isatty(STDERR_FILENO) == 1 ? .terminal : .plain
    }

    /// Machine-readable form of an event.
    private struct Line: Encodable {
        var event: String
        var stage: String?
        var fraction: Double?
        var seconds: Double?
        var peakBytes: Int?
        var message: String?
    }

    func show(_ event: PipelineEvent) {
        if style == .json { return showJSON(event) }
        switch event {
        case .started(let stage):
            state.withLock {
                $0.stage = stage
                $0.started = .now
                $0.lastShown = nil
            }
            if style == .terminal { redraw("\(stage.name) …") }
        case .progress(let stage, let fraction):
            showProgress(stage, fraction)
        case .finished(let report):
            if case .denoise = report.stage {
                state.withLock { $0.stepSeconds.append(report.seconds) }
            }
            let left = remaining(after: report.stage)
            let text = "\(report.stage.name): \(Output.seconds(report.seconds))\(left)"
            if style == .terminal { redraw(text + "\n") }
            if style == .plain { Output.note(text) }
        case .promptCut(let kept, let dropped):
            warn(
                "the prompt is too long: the first \(kept) tokens are used, \(dropped) are dropped")
        case .note(let text):
            warn(text)
        }
    }

    private func showProgress(_ stage: Stage, _ fraction: Double) {
        let text = state.withLock { state -> String? in
            let now = ContinuousClock.now
            let pause: Duration = style == .terminal ? .milliseconds(100) : .seconds(10)
            if let last = state.lastShown ?? (style == .plain ? state.started : nil),
                now - last < pause
            {
                return nil
            }
            state.lastShown = now
            let elapsed = (now - state.started) / .seconds(1)
            let left = fraction > 0 ? elapsed / fraction - elapsed : 0
            return "\(stage.name): \(Output.fixed(fraction * 100, 0)) %, "
                + "\(Output.seconds(elapsed)), \(Output.seconds(left)) left"
        }
        guard let text else { return }
        if style == .terminal { redraw(text) }
        if style == .plain { Output.note(text) }
    }

    /// Time left for the steps still to come, at the rate of the slowest so far.
    private func remaining(after stage: Stage) -> String {
        guard case .denoise(let step, let count, _) = stage, step < count else { return "" }
        let slowest = state.withLock { $0.stepSeconds.max() ?? 0 }
        return " (\(Output.seconds(slowest * Double(count - step))) left for the other steps)"
    }

    private func warn(_ text: String) {
        guard style != .quiet else { return }
        if style == .terminal { redraw("note: \(text)\n") } else { Output.note("note: \(text)") }
    }

    private func redraw(_ text: String) { Output.write("\r\u{1B}[K" + text, to: STDERR_FILENO) }

    private func showJSON(_ event: PipelineEvent) {
        switch event {
        case .started(let stage): Output.json(Line(event: "started", stage: stage.name))
        case .progress(let stage, let fraction):
            Output.json(Line(event: "progress", stage: stage.name, fraction: fraction))
        case .finished(let report):
            Output.json(
                Line(
                    event: "finished", stage: report.stage.name, seconds: report.seconds,
                    peakBytes: report.peakBytes))
        case .promptCut(let kept, let dropped):
            Output.json(
                Line(event: "note", message: "prompt cut: \(kept) tokens kept, \(dropped) dropped"))
        case .note(let text): Output.json(Line(event: "note", message: text))
        }
    }
}
