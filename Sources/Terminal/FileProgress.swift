/// A bar for work that goes through a file.

import Ground

/// Shows the share of the work that is done and the time left, on terminals only.
public final class FileProgress {
    private let title: String
    private let line: MovingLine
    private let started = ContinuousClock.now

    public init(_ title: String, quiet: Bool = false) {
        self.title = title
        line = MovingLine(isShown: quiet ? false : nil)
    }

    /// - Parameter fraction: share of the work that is done, 0 ... 1.
    public func show(_ fraction: Double) {
        line.show(
            Self.text(title, fraction, elapsed: (ContinuousClock.now - started) / .seconds(1)))
    }

    public func end() { line.end() }

    static func text(_ title: String, _ fraction: Double, elapsed: Double) -> String {
        let left = fraction > 0 ? elapsed / fraction - elapsed : 0
        let filled = Int(min(max(fraction, 0), 1) * 30)
        let bar =
            String(repeating: "█", count: filled) + String(repeating: "░", count: 30 - filled)
        return "\(title) \(bar) \(fixed(fraction * 100, 0)) %, \(describe(seconds: left)) left"
    }
}
