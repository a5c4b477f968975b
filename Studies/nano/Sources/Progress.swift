/// What the study says while it measures.

import Glibc
import Ground
import Synchronization

/// A moving line on a terminal, and a line for every row that is measured.
final class ProgressLine: Sendable {
    private struct State {
        var rows = 0
        var lastShown: ContinuousClock.Instant?
    }

    private let total: Int
    private let captions: Int
    private let quiet: Bool
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private let started = ContinuousClock.now
    private let state = Mutex(State())

    init(of total: Int, captions: Int, quiet: Bool) {
        self.total = total
        self.captions = captions
        self.quiet = quiet
    }

    func show(_ event: StudyEvent) {
        switch event {
        case .opened(let device, let unsupported):
            note("on \(device)")
            if !unsupported.isEmpty {
                note("left out, for this device lacks the arithmetic: \(unsupported.count) rows")
                state.withLock { $0.rows += unsupported.count }
            }
        case .progress(let configuration, let made): move(configuration.title, made)
        case .measured(let row):
            let number = state.withLock { state in
                state.rows += 1
                return state.rows
            }
            let distance = row.psnr.map { ", \(fixed($0, 2)) dB" } ?? ""
            note(
                "\(number)/\(total) \(row.configuration.title): \(fixed(row.score, 2)) % "
                    + "± \(fixed(row.scoreError, 2))\(distance), "
                    + "\(shortSeconds(row.seconds)) a video; \(passed)")
        }
    }

    func note(_ text: String) {
        if quiet { return }
        end()
        writeError(text + "\n")
    }

    func end() {
        if isTerminal, !quiet { writeError("\r\u{1B}[K") }
    }

    private var passed: String {
        shortSeconds((ContinuousClock.now - started) / .seconds(1)) + " in all"
    }

    private func move(_ title: String, _ made: Int) {
        guard !quiet, isTerminal else { return }
        let rows = state.withLock { state -> Int? in
            let now = ContinuousClock.now
            if let last = state.lastShown, now - last < .milliseconds(100) { return nil }
            state.lastShown = now
            return state.rows
        }
        guard let rows else { return }
        writeError(
            "\r\u{1B}[K\(rows + 1)/\(total) \(title): video \(made)/\(captions), \(passed)")
    }
}

private func writeError(_ text: String) {
    let bytes = Array(text.utf8)
    _ = write(STDERR_FILENO, bytes, bytes.count)
}

/// "85.0 ms", "1.25 s"
private func shortSeconds(_ value: Double) -> String {
    value < 0.0995 ? "\(fixed(value * 1000, 1)) ms" : "\(fixed(value, 2)) s"
}
