/// Prints the events of a run as they come: a moving line on a terminal, plain lines elsewhere, or JSON lines.

import Delivery
import Ground
import Runs
import Synchronization
import Terminal

final class ProgressPrinter: Sendable {
    enum Style: Sendable { case terminal, plain, json, quiet }

    private struct State {
        var stage: Stage?
        var started = ContinuousClock.now
        var lastShown: ContinuousClock.Instant?
        var stepSeconds: [Double] = []
    }

    private let style: Style
    private let line = MovingLine()
    private let state = Mutex(State())

    init(json: Bool, quiet: Bool) {
        style = json ? .json : quiet ? .quiet : TextStream.errors.isTerminal ? .terminal : .plain
    }

    func show(_ event: RunEvent) {
        switch event {
        case .stageStarted(let stage):
            state.withLock {
                $0.stage = stage
                $0.started = .now
                $0.lastShown = nil
            }
            if style == .terminal { line.show("\(stage.title) …") }
        case .stageProgress(let stage, let fraction): showProgress(stage, fraction)
        case .stageFinished(let report):
            if case .step = report.stage {
                state.withLock { $0.stepSeconds.append(report.seconds) }
            }
            let left = remaining(after: report.stage)
            say("\(report.stage.title): \(describe(seconds: report.seconds))\(left)")
        case .notice(let notice): warn(notice.message)
        }
        if style == .json { showJSON(event) }
    }

    private func showProgress(_ stage: Stage, _ fraction: Double) {
        var text: String {
            let elapsed = (.now - state.withLock { $0.started }) / .seconds(1)
            let left = fraction > 0 ? elapsed / fraction - elapsed : 0
            return "\(stage.title): \(fixed(fraction * 100, 0)) %, "
                + "\(describe(seconds: elapsed)), \(describe(seconds: left)) left"
        }
        if style == .terminal { line.show(text) }
        if style == .plain, isDue(every: .seconds(10), atOnce: false) { say(text) }
    }

    /// Whether `pause` has passed since progress was last shown or, without `atOnce`, since the stage began.
    private func isDue(every pause: Duration, atOnce: Bool) -> Bool {
        state.withLock { state in
            let now = ContinuousClock.now
            let last = state.lastShown ?? (atOnce ? nil : state.started)
            if let last, now - last < pause { return false }
            state.lastShown = now
            return true
        }
    }

    /// Time left for the remaining steps, at the rate of the slowest so far.
    private func remaining(after stage: Stage) -> String {
        guard case .step(let number, let count, _) = stage, number < count else { return "" }
        let slowest = state.withLock { $0.stepSeconds.max() ?? 0 }
        return
            " (\(describe(seconds: slowest * Double(count - number))) left for the remaining steps)"
    }

    private func warn(_ text: String) { say("note: \(text)") }

    /// A line for people.
    private func say(_ text: String) {
        if style == .terminal || style == .plain { line.note(text) }
    }

    // MARK: Before and after

    /// Shows a note from the command line itself.
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
                stage.stage.title, describe(seconds: stage.seconds),
                stage.peakBytes > 0 ? describe(bytes: stage.peakBytes) : "",
            ])
        }
        rows.append([
            "total", describe(seconds: report.totalSeconds), describe(bytes: report.peakBytes),
        ])
        Output.line(Output.table(rows))
        Output.line(
            "on \(report.device); host memory \(describe(bytes: report.hostPeakBytes)) at most; seed \(seed)"
        )
        for path in files { Output.line("wrote \(path)") }
    }

    /// Adds an event for programs; the message for people is printed when the process ends.
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

    /// Prints the event; of progress at most ten lines a second.
    private func showJSON(_ event: RunEvent) {
        if case .stageProgress = event, !isDue(every: .milliseconds(100), atOnce: true) { return }
        Output.json(event)
    }
}
