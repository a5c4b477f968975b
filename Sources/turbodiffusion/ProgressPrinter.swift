/// The events of one run or of several as they come: one bar for the whole job on a terminal, plain lines elsewhere, or
/// JSON lines.

import Delivery
import Glibc
import Ground
import Runs
import Synchronization
import Terminal

final class ProgressPrinter: Sendable {
    enum Style: Sendable { case terminal, plain, json, quiet }

    private struct State {
        var progress: Progress?
        var stage: Stage?
        var stageStarted = ContinuousClock.now
        var lastShown: ContinuousClock.Instant?
        /// Runs of the job that are finished, and all of them.
        var (finished, count) = (0, 1)
        var secondsOfFinished = 0.0
        var runStarted = ContinuousClock.now
        /// Notes that wait until the request has been told; nil: it has.
        var waiting: [String]? = []
        /// Events of devices that wait with them.
        var waitingEvents: [RunEvent] = []
        var hasFailed = false
        var told: Set<String> = []
        /// What came before the run, with its seconds.
        var before: [(title: String, seconds: Double)] = []
        var marked = ContinuousClock.now
        /// From the run's start until its first stage.
        var opening: Double?
    }

    private let style: Style
    private let isVerbose: Bool
    private let tellsResultsAsNotes: Bool
    private let line = MovingLine()
    private let began = ContinuousClock.now
    private let state = Mutex(State())

    /// - Parameter tellsResultsAsNotes: whether standard output is taken by something else.
    init(
        json: Bool, quiet: Bool, verbose: Bool = false, tellsResultsAsNotes: Bool = false
    ) {
        self.tellsResultsAsNotes = tellsResultsAsNotes
        style = json ? .json : quiet ? .quiet : TextStream.errors.movesLines ? .terminal : .plain
        isVerbose = verbose
    }

    // MARK: What comes before a run

    /// Notes the time since the last mark, or since the process began; `--verbose` tells it.
    func mark(_ title: String) {
        state.withLock { state in
            let now = ContinuousClock.now
            let isFirst = state.before.isEmpty
            let seconds = (now - state.marked) / .seconds(1)
            state.before.append((title, isFirst ? ProcessAge.seconds ?? seconds : seconds))
            state.marked = now
        }
    }

    // MARK: Events of a run

    func show(_ event: RunEvent) {
        if case .notice(let notice) = event, !isNew(notice.message) { return }
        state.withLock { state in
            state.progress?.take(event)
            if case .stageStarted(let stage) = event {
                (state.stage, state.stageStarted) = (stage, .now)
                if state.opening == nil {
                    state.opening = (state.stageStarted - state.runStarted) / .seconds(1)
                }
            }
        }
        switch style {
        case .json: showJSON(event)
        case .terminal: showBar()
        case .plain: if isDue(every: .seconds(10), atOnce: false) { say(statusLine()) }
        case .quiet: break
        }
        switch event {
        case .stageFinished(let report) where isVerbose:
            say("\(report.stage.title): \(describe(seconds: report.seconds))")
        case .notice(let notice): say("note: \(notice.message)")
        default: break
        }
    }

    /// Shows an event of a device that is being opened. It waits until the request has been told.
    func showOpening(_ event: RunEvent) {
        let isShown = state.withLock { state in
            if state.waiting != nil, !state.hasFailed { state.waitingEvents.append(event) }
            return state.waiting == nil && !state.hasFailed
        }
        if isShown { show(event) }
    }

    private func isNew(_ message: String) -> Bool {
        state.withLock { $0.told.insert(message).inserted }
    }

    private func showBar() {
        line.show { columns in
            let (title, done, left) = status
            return progressBar(title, done, secondsLeft: left, columns: columns)
        }
    }

    private func statusLine() -> String {
        let (title, done, left) = status
        let time = left.map { ", \(about(seconds: $0)) left" } ?? ""
        return "\(fixed(done * 100, 0)) %, \(title)\(time)"
    }

    /// What is done now, share of the job that is done, seconds left.
    private var status: (title: String, done: Double, left: Double?) {
        state.withLock { state in
            let now = ContinuousClock.now
            let inStage = (now - state.stageStarted) / .seconds(1)
            var title = state.stage?.title ?? "begin"
            if state.count > 1 {
                title = "\(min(state.finished + 1, state.count))/\(state.count) \(title)"
            }
            let done =
                (Double(state.finished) + (state.progress?.done ?? 0)) / Double(state.count)
            guard var left = state.progress?.secondsLeft(secondsInStage: inStage) else {
                return (title, done, nil)
            }
            let others = max(0, state.count - state.finished - 1)
            let one =
                state.finished > 0
                ? state.secondsOfFinished / Double(state.finished)
                : (now - state.runStarted) / .seconds(1) + left
            left += Double(others) * one
            return (title, done, left)
        }
    }

    /// Whether so much time has gone by since the last progress, or since the job began.
    private func isDue(every pause: Duration, atOnce: Bool) -> Bool {
        state.withLock { state in
            let now = ContinuousClock.now
            let last = state.lastShown ?? (atOnce ? nil : began)
            if let last, now - last < pause { return false }
            state.lastShown = now
            return true
        }
    }

    /// A line of the result.
    private func result(_ text: String) {
        if tellsResultsAsNotes { Output.note(text) } else { Output.line(text) }
    }

    /// A line for people.
    private func say(_ text: String) {
        if style == .terminal || style == .plain { line.note(text) }
    }

    // MARK: Before and after a run

    /// What the command line itself has to say. It waits until the request has been told.
    func note(_ text: String) {
        let waits = state.withLock { state in
            guard state.told.insert(text).inserted else { return true }
            state.waiting?.append(text)
            return state.waiting != nil
        }
        if !waits { tellNote(text) }
    }

    private func tellNote(_ text: String) {
        say("note: \(text)")
        if style == .json { put(Line(event: "notice", message: text)) }
    }

    /// Tells the notes that have waited.
    func tellNotes() {
        let (waiting, events) = state.withLock { state in
            defer { (state.waiting, state.waitingEvents) = (nil, []) }
            return (state.waiting ?? [], state.waitingEvents)
        }
        for text in waiting { tellNote(text) }
        events.forEach(show)
    }

    /// The request as it was resolved.
    /// - Parameters:
    ///   - index: of the run among `count` runs of the job, from 0.
    ///   - isOnGPU: what the stages are expected to stand to each other as.
    func showStart(
        _ stored: StoredRun, _ files: [String], _ plan: Plan, isOnGPU: Bool, index: Int = 0,
        of count: Int = 1
    ) {
        state.withLock { state in
            state.progress = Progress(plan, isOnGPU ? .gpu : .cpu)
            (state.stage, state.stageStarted, state.runStarted) = (nil, .now, .now)
            state.opening = nil
            (state.finished, state.count) = (index, count)
        }
        if style == .json {
            put(
                Start(
                    run: stored, files: files.map(absolutePath), index: index + 1, count: count))
        }
        tellNotes()
    }

    func showEnd(_ report: RunReport, files: [String], stored: StoredRun) {
        let (index, count) = state.withLock { state in
            state.secondsOfFinished += report.totalSeconds
            state.finished += 1
            return (state.finished, state.count)
        }
        switch style {
        case .quiet: return
        case .json:
            return put(
                End(
                    files: files.map(absolutePath), seed: stored.request.seed, report: report,
                    index: index, count: count))
        case .terminal, .plain: break
        }
        if index == count { line.end() }
        if isVerbose { result(table(report)) }
        if count > 1, !isVerbose {
            let text =
                "\(index)/\(count) wrote \(files.map(\.printable).joined(separator: ", ")) in \(about(seconds: report.totalSeconds))"
            return style == .terminal ? line.note(text) : result(text)
        }
        for text in summary(report, files: files, stored.request) { result(text) }
    }

    /// At most five lines.
    private func summary(_ report: RunReport, files: [String], _ request: Request) -> [String] {
        let size = "\(request.width)x\(request.height)"
        let frames = "\(request.frames) frame\(request.frames == 1 ? "" : "s")"
        let files = files.map(\.printable)
        let wrote =
            files.count <= 2
            ? files.joined(separator: " and ")
            : "\(files[0]) … \(files[files.count - 2]) and \(files[files.count - 1])"
        return [
            "\(describe(seconds: report.totalSeconds)) on \(report.device): \(times(report))",
            "at most \(memory(report)); \(size), \(frames), seed \(request.seed)",
        ] + (files.isEmpty ? [] : ["wrote \(wrote)"])
    }

    private func memory(_ report: RunReport) -> String {
        let host = "\(describe(bytes: report.hostPeakBytes)) of host memory"
        let device = "\(describe(bytes: report.peakBytes)) of device memory"
        // The CPU's weights are mapped from their files and counted with the host's.
        return report.device.hasPrefix("CPU") ? host : "\(device), \(host)"
    }

    /// `load 0.21 s, text 0.10 s, 4 steps 0.52 s, VAE decode 0.43 s`
    private func times(_ report: RunReport) -> String {
        var sums: [(title: String, seconds: Double)] = []
        var steps = 0
        for stage in report.stages {
            let title: String
            switch stage.stage {
            case .load: title = "load"
            case .encodeText, .projectText: title = "text"
            case .step(_, let count, _):
                title = "steps"
                steps = count
            default: title = stage.stage.title
            }
            if let index = sums.firstIndex(where: { $0.title == title }) {
                sums[index].seconds += stage.seconds
            } else {
                sums.append((title, stage.seconds))
            }
        }
        return sums.map { title, seconds in
            let name = title == "steps" ? "\(steps) step\(steps == 1 ? "" : "s")" : title
            return "\(name) \(describe(seconds: seconds))"
        }.joined(separator: ", ")
    }

    private func table(_ report: RunReport) -> String {
        let (before, opening) = state.withLock { state in
            defer { state.before = [] }
            return (state.before, state.opening)
        }
        var rows = [["stage", "time", "peak memory"]]
        rows += before.map { ["before: \($0.title)", describe(seconds: $0.seconds), ""] }
        if let opening { rows.append(["device and files", describe(seconds: opening), ""]) }
        for stage in report.stages {
            rows.append([
                stage.stage.title, describe(seconds: stage.seconds),
                stage.peakBytes > 0 ? describe(bytes: stage.peakBytes) : "",
            ])
        }
        rows.append([
            "total", describe(seconds: report.totalSeconds), describe(bytes: report.peakBytes),
        ])
        if !before.isEmpty, let age = ProcessAge.seconds {
            rows.append(["since the process began", describe(seconds: age), ""])
        }
        return Output.table(rows)
            + "\nweights that a CPU reads in their mapped files are not counted"
    }

    /// The end of a job of several runs.
    func showJob(made: Int, skipped: [String]) {
        line.end()
        let time = (.now - began) / .seconds(1)
        switch style {
        case .quiet: break
        case .json: put(Job(made: made, skipped: skipped.map(absolutePath)))
        case .terminal, .plain:
            let videos = "\(made) video\(made == 1 ? "" : "s") made in \(about(seconds: time))"
            result(videos + (skipped.isEmpty ? "" : ", \(skipped.count) skipped"))
        }
    }

    /// Adds an event for programs; the message for people is printed when the process ends.
    func showFailure(_ error: UserError) {
        // What was to be known of the device is not any more.
        state.withLock { ($0.hasFailed, $0.waitingEvents) = (true, []) }
        tellNotes()
        line.end()
        if style == .json {
            put(Line(event: "run.failed", code: error.code, message: error.description))
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
        var index, count: Int
    }
    private struct End: Encodable {
        var event = "run.finished"
        var files: [String]
        var seed: UInt64
        var report: RunReport
        var index, count: Int
    }
    private struct Job: Encodable {
        var event = "job.finished"
        var made: Int
        var skipped: [String]
    }
    /// Adds to an event when it happened; to events of stages, how far the job is.
    private struct Stamped<Event: Encodable>: Encodable {
        var event: Event
        var time: Double
        var done, secondsLeft: Double?

        private enum Key: CodingKey { case time, done, secondsLeft }

        func encode(to encoder: any Encoder) throws {
            try event.encode(to: encoder)
            var values = encoder.container(keyedBy: Key.self)
            try values.encode(time, forKey: .time)
            try values.encodeIfPresent(done, forKey: .done)
            try values.encodeIfPresent(secondsLeft, forKey: .secondsLeft)
        }
    }

    private func put(
        _ event: some Encodable, done: Double? = nil, secondsLeft: Double? = nil
    ) {
        /// As many digits as mean something.
        func rounded(_ value: Double) -> Double { (value * 1e4).rounded() / 1e4 }
        Output.json(
            Stamped(
                event: event, time: rounded((.now - began) / .seconds(1)), done: done.map(rounded),
                secondsLeft: secondsLeft.map(rounded)))
    }

    /// Prints the event; of progress at most ten lines a second.
    private func showJSON(_ event: RunEvent) {
        if case .notice = event { return put(event) }
        if case .stageProgress = event, !isDue(every: .milliseconds(100), atOnce: true) { return }
        let (_, done, left) = status
        put(event, done: done, secondsLeft: left)
    }
}

/// For programs that run elsewhere.
func absolutePath(_ path: String) -> String {
    guard !path.hasPrefix("/"), let folder = getcwd(nil, 0) else { return path }
    defer { free(folder) }
    return String(cString: folder) + "/" + path
}

extension Output {
    /// A usage error as an event: the run did not begin.
    static func jsonFailure(code: String, _ message: String) {
        struct Failure: Encodable {
            var event = "run.failed"
            var code, message: String
            var time = 0.0
        }
        json(Failure(code: code, message: message))
    }
}
