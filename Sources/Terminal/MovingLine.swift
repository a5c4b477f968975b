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
    ///   - isShown: whether the line is shown; nil: if `stream` is a terminal.
    ///   - pause: the least time between two changes.
    public init(
        on stream: TextStream = .errors, isShown: Bool? = nil, pause: Duration = .milliseconds(100)
    ) {
        self.stream = stream
        self.isShown = isShown ?? stream.isTerminal
        self.pause = pause
    }

    /// Replaces the line, unless it was replaced a moment ago.
    public func show(_ text: @autoclosure () -> String) {
        guard isShown else { return }
        lastShown.withLock { last in
            let now = ContinuousClock.now
            if let last, now - last < pause { return }
            last = now
            stream.write(Self.erased + text().printable)
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
