/// What the study prints while it measures.

import Ground
import Synchronization
import Terminal

/// A moving line on a terminal, and a line for every row that is measured.
final class ProgressLine: Sendable {
    private let total: Int
    private let captions: Int
    private let quiet: Bool
    private let line: MovingLine
    private let started = ContinuousClock.now
    private let rows = Atomic(0)

    init(of total: Int, captions: Int, quiet: Bool) {
        self.total = total
        self.captions = captions
        self.quiet = quiet
        line = MovingLine(isShown: quiet ? false : nil)
    }

    func show(_ event: StudyEvent) {
        switch event {
        case .opened(let device, let unsupported):
            note("on \(device)")
            if !unsupported.isEmpty {
                note(
                    "\(unsupported.count) rows are left out: this device does not support their arithmetic"
                )
                rows.add(unsupported.count, ordering: .relaxed)
            }
        case .progress(let configuration, let made):
            line.show { _ in
                "\(rows.load(ordering: .relaxed) + 1)/\(total) \(configuration.title): "
                    + "video \(made)/\(captions), \(passed)"
            }
        case .measured(let row):
            let number = rows.add(1, ordering: .relaxed).newValue
            let distance = row.psnr.map { ", \(fixed($0, 2)) dB" } ?? ""
            note(
                "\(number)/\(total) \(row.configuration.title): \(fixed(row.score, 2)) % "
                    + "± \(fixed(row.scoreError, 2))\(distance), "
                    + "\(describe(seconds: row.seconds)) a video; \(passed)")
        }
    }

    func note(_ text: String) {
        if !quiet { line.note(text) }
    }

    func end() { line.end() }

    private var passed: String {
        describe(seconds: (ContinuousClock.now - started) / .seconds(1)) + " in all"
    }
}
