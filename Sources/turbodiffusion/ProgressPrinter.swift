/// The events of a run as they come: a moving line on a terminal, plain lines elsewhere, or JSON lines.

import Delivery
import Glibc
import Runs
import Synchronization

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

    func show(_ event: RunEvent) {
        switch event {
        case .stageStarted(let stage):
            state.withLock {
                $0.stage = stage
                $0.started = .now
                $0.lastShown = nil
            }
            if style == .terminal { redraw("\(stage.title) …") }
        case .stageProgress(let stage, let fraction):
            showProgress(stage, fraction)
        case .stageFinished(let report):
            if case .step = report.stage {
                state.withLock { $0.stepSeconds.append(report.seconds) }
            }
            let left = remaining(after: report.stage)
            let text = "\(report.stage.title): \(Output.seconds(report.seconds))\(left)"
            if style == .terminal { redraw(text + "\n") }
            if style == .plain { Output.note(text) }
        case .notice(let notice):
            warn(notice.message)
        }
        if style == .json { showJSON(event) }
    }

    private func showProgress(_ stage: Stage, _ fraction: Double) {
        guard style == .terminal || style == .plain else { return }
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
            return "\(stage.title): \(Output.fixed(fraction * 100, 0)) %, "
                + "\(Output.seconds(elapsed)), \(Output.seconds(left)) left"
        }
        guard let text else { return }
        if style == .terminal { redraw(text) } else { Output.note(text) }
    }

    /// Time left for the steps still to come, at the rate of the slowest so far.
    private func remaining(after stage: Stage) -> String {
        guard case .step(let number, let count, _) = stage, number < count else { return "" }
        let slowest = state.withLock { $0.stepSeconds.max() ?? 0 }
        return " (\(Output.seconds(slowest * Double(count - number))) left for the other steps)"
    }

    private func warn(_ text: String) {
        if style == .terminal { redraw("note: \(text)\n") }
        if style == .plain { Output.note("note: \(text)") }
    }

    private func redraw(_ text: String) { Output.write("\r\u{1B}[K" + text, to: STDERR_FILENO) }

    // MARK: Before and after

    /// What the command line itself has to say.
    func note(_ text: String) {
        warn(text)
        if style == .json { Output.json(Line(event: "notice", message: text)) }
    }

    /// The request as it was resolved.
    func showStart(_ stored: StoredRun, _ files: [String]) {
        if style == .json { Output.json(Start(run: stored, files: files)) }
    }

    func showEnd(_ report: RunReport, files: [String], seed: UInt64) {
        if style == .json { return Output.json(End(files: files, report: report)) }
        if style == .quiet { return }
        var rows = [["stage", "time", "peak memory"]]
        for stage in report.stages {
            rows.append([
                stage.stage.title, Output.seconds(stage.seconds),
                stage.peakBytes > 0 ? Output.bytes(stage.peakBytes) : "",
            ])
        }
        rows.append([
            "total", Output.seconds(report.totalSeconds), Output.bytes(report.peakBytes),
        ])
        Output.line(Output.table(rows))
        Output.line(
            "on \(report.device); host memory \(Output.bytes(report.hostPeakBytes)) at most; seed \(seed)"
        )
        for path in files { Output.line("wrote \(path)") }
    }

    /// The error itself is printed by whoever ends the process.
    func showFailure(_ error: UserError) {
        if style == .json {
            Output.json(Line(event: "run.failed", code: error.code, message: error.description))
        }
    }

    // MARK: JSON

    private struct Line: Encodable {
        var event: String
        var code: String?
        var message: String
    }
    private struct Start: Encodable {
        var event = "run.started"
        var run: StoredRun
        var files: [String]
    }
    private struct End: Encodable {
        var event = "run.finished"
        var files: [String]
        var report: RunReport
    }

    /// At most ten lines of progress a second.
    private func showJSON(_ event: RunEvent) {
        if case .stageProgress = event {
            let isDue = state.withLock { state in
                let now = ContinuousClock.now
                if let last = state.lastShown, now - last < .milliseconds(100) { return false }
                state.lastShown = now
                return true
            }
            if !isDue { return }
        }
        Output.json(event)
    }
}
