/// Standard output and standard error, which remember a failed write.

import Glibc
import Synchronization
public import SystemPackage

/// A file descriptor that text is written to. Writing does not throw, because a line of progress is no place to handle
/// errors. The first error is kept and nothing is written after it; the program checks for it when it ends.
public final class TextStream: Sendable {
    public static let output = TextStream(STDOUT_FILENO)
    public static let errors = TextStream(STDERR_FILENO)

    private let descriptor: Int32
    private let firstFailure = Mutex<Errno?>(nil)

    public init(_ descriptor: Int32) { self.descriptor = descriptor }

    public var isTerminal: Bool { isatty(descriptor) == 1 }
    /// Whether it is a terminal that can replace a line. Those of editors and of continuous integration cannot, and say so.
    public var movesLines: Bool {
        guard isTerminal, let name = getenv("TERM") else { return false }
        return !["", "dumb"].contains(String(cString: name))
    }
    /// Columns of the terminal as it is now; nil where it is none, or does not know.
    public var columns: Int? {
        var size = winsize()
        guard ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return nil }
        return Int(size.ws_col)
    }
    /// Why text was lost; nil if all of it was written.
    public var failure: Errno? { firstFailure.withLock { $0 } }

    /// Writes all of `text`, unless an earlier write failed.
    public func write(_ text: String) {
        firstFailure.withLock { failure in
            if failure == nil { failure = put(text) }
        }
    }

    private func put(_ text: String) -> Errno? {
        var text = text
        return text.withUTF8 { bytes in
            var rest = UnsafeRawBufferPointer(bytes)
            while !rest.isEmpty {
                let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
                if count >= 0 {
                    rest = UnsafeRawBufferPointer(rebasing: rest[count...])
                    continue
                }
                let error = Errno(rawValue: errno)
                switch error {
                case .interrupted: continue
                case .wouldBlock:
                    // Another program has made the pipe or terminal that we share non-blocking.
                    var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    poll(&wait, 1, -1)
                default: return error
                }
            }
            return nil
        }
    }
}
