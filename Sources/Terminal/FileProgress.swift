/// A progress bar for work that goes through a file.

import Ground

/// Shows how much of the work is done and the time left, on terminals only.
public final class FileProgress {
    private let title: String
    private let line: MovingLine
    private let started = ContinuousClock.now

    /// - Parameters:
    ///   - title: what is being done, such as "writing".
    ///   - quiet: show nothing.
    public init(_ title: String, quiet: Bool = false) {
        self.title = title
        line = MovingLine(isShown: quiet ? false : nil)
    }

    /// - Parameter fraction: how much of the work is done, 0...1.
    public func show(_ fraction: Double) {
        line.show(
            Self.text(title, fraction, elapsed: (ContinuousClock.now - started) / .seconds(1)))
    }

    /// Removes the bar.
    public func end() { line.end() }

    static func text(_ title: String, _ fraction: Double, elapsed: Double) -> String {
        let left = fraction > 0 ? elapsed / fraction - elapsed : 0
        let filled = Int(min(max(fraction, 0), 1) * 30)
        let bar =
            String(repeating: "█", count: filled) + String(repeating: "░", count: 30 - filled)
        return "\(title) \(bar) \(fixed(fraction * 100, 0)) %, \(describe(seconds: left)) left"
    }
}
