/// One line that changes while work goes on, on terminals only.

import Ground
import Synchronization

/// A line at the bottom of the terminal that is overwritten in place.
public final class MovingLine: Sendable {
    private let stream: TextStream
    private let isShown: Bool
    private let pause: Duration
    private let lastShown = Mutex<ContinuousClock.Instant?>(nil)

    private static let erased = "\r\u{1B}[K"

    /// - Parameters:
    ///   - isShown: nil: where `stream` is a terminal that can replace a line.
    ///   - pause: the least time between two changes.
    public init(
        on stream: TextStream = .errors, isShown: Bool? = nil, pause: Duration = .milliseconds(100)
    ) {
        self.stream = stream
        self.isShown = isShown ?? stream.movesLines
        self.pause = pause
    }

    /// Replaces the line, unless it was replaced a moment ago.
    /// - Parameter text: given the columns that there are now. What is longer is cut: a line that went on in the next row
    ///   could not be replaced.
    public func show(_ text: (_ columns: Int) -> String) {
        guard isShown else { return }
        lastShown.withLock { last in
            let now = ContinuousClock.now
            if let last, now - last < pause { return }
            last = now
            // Some terminals begin the next row when the last column is filled.
            let columns = max(1, (stream.columns ?? 80) - 1)
            stream.write(Self.erased + text(columns).printable.prefix(columns))
        }
    }

    /// Removes the line and writes one that stays, on terminals and elsewhere.
    public func note(_ text: String) {
        end()
        stream.write(Output.visible(text) + "\n")
    }

    /// Removes the line.
    public func end() {
        lastShown.withLock { last in
            if last != nil { stream.write(Self.erased) }
            last = nil
        }
    }
}
