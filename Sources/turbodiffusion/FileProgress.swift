/// One moving line for work that goes through a file.

import Glibc

/// Shows a share of the work and the time left, on a terminal only.
final class FileProgress {
    private let title: String
    private let isShown: Bool
    private let started = ContinuousClock.now
    private var last: ContinuousClock.Instant?

    init(_ title: String, quiet: Bool = false) {
        self.title = title
        isShown = !quiet && isatty(STDERR_FILENO) == 1
    }

    /// - Parameter fraction: share of the work that is done, 0 ... 1.
    func show(_ fraction: Double) {
        let now = ContinuousClock.now
        if !isShown || last.map({ now - $0 < .milliseconds(100) }) == true { return }
        last = now
        let elapsed = (now - started) / .seconds(1)
        let left = fraction > 0 ? elapsed / fraction - elapsed : 0
        let filled = Int(fraction * 30)
        let bar =
            String(repeating: "█", count: filled) + String(repeating: "░", count: 30 - filled)
        Output.write(
            "\r\u{1B}[K\(title) \(bar) \(Output.fixed(fraction * 100, 0)) %, "
                + "\(Output.seconds(left)) left", to: STDERR_FILENO)
    }

    func end() {
        if isShown, last != nil { Output.write("\r\u{1B}[K", to: STDERR_FILENO) }
    }
}
