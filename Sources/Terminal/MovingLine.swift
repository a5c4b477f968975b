/// One line that changes while work goes on, on terminals only.

import Synchronization

public final class MovingLine: Sendable {
    private let stream: TextStream
    private let isShown: Bool
    private let pause: Duration
    private let lastShown = Mutex<ContinuousClock.Instant?>(nil)

    private static let erased = "\r\u{1B}[K"

    /// - Parameters:
    ///   - isShown: nil: where `stream` is a terminal.
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
            stream.write(Self.erased + text())
        }
    }

    /// Writes a line that stays, whether lines move or not.
    public func note(_ text: String) {
        end()
        stream.write(text + "\n")
    }

    /// Removes the line.
    public func end() {
        lastShown.withLock { last in
            if last != nil { stream.write(Self.erased) }
            last = nil
        }
    }
}
