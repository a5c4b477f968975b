/// A bar for work whose share that is done is known.

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
        let elapsed = (ContinuousClock.now - started) / .seconds(1)
        line.show { columns in
            progressBar(
                title, fraction, secondsLeft: fraction > 0 ? elapsed / fraction - elapsed : nil,
                columns: columns)
        }
    }

    /// Removes the bar.
    public func end() { line.end() }
}

/// `step 2/4 ███████░░░░░ 45 %, 12 s left`, in as many columns as there are: the bar gives way first, then the title.
/// - Parameters:
///   - fraction: share of the work that is done, 0 ... 1.
///   - secondsLeft: nil where nothing is known yet.
public func progressBar(
    _ title: String, _ fraction: Double, secondsLeft: Double?, columns: Int
) -> String {
    let fraction = fraction.isFinite ? min(max(fraction, 0), 1) : 0
    // Not before all is done.
    let percent = "\(min(Int(fraction * 100), fraction < 1 ? 99 : 100)) %"
    let left = secondsLeft.map { ", \(about(seconds: $0)) left" } ?? ""
    let words = title.count + 1 + percent.count + left.count
    let width = min(30, columns - words - 1)
    if width >= 5 {
        let filled = Int(fraction * Double(width))
        let bar =
            String(repeating: "█", count: filled)
            + String(repeating: "░", count: width - filled)
        return "\(title) \(bar) \(percent)\(left)"
    }
    if words <= columns { return "\(title) \(percent)\(left)" }
    return percent.count + left.count <= columns ? percent + left : percent
}
