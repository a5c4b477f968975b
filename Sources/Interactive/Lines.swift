/// Where lines come from: a terminal with an editor, a terminal without, or a pipe.

import Glibc
import Ground
import Terminal

enum Line: Sendable, Hashable {
    case text(String)
    /// Given up by Ctrl-C.
    case interrupted
    case end
}

protocol LineSource: AnyObject {
    /// Whether lines are read while videos are made.
    var readsMeanwhile: Bool { get }
    /// Waits for a line.
    /// - Parameters:
    ///   - prompt: what stands before it, asked again when it may have changed.
    ///   - wake: called when there are messages; says whether the line is given up.
    func read(_ prompt: () -> String, waking wake: () -> Bool) -> Line
    /// Adds a line to the history.
    func remember(_ line: String)
    /// Writes something that stays, above the line that is being edited.
    func print(_ text: String)
}

/// Lines of a descriptor as they come.
final class PlainLines: LineSource {
    private let input: Int32
    private let waits: (Int32) -> Bool
    private let isTerminal: Bool
    private var bytes: [UInt8] = []
    private var isAtEnd = false

    let readsMeanwhile = false

    /// - Parameter waits: until there are messages or input; says whether there is input.
    init(_ input: Int32 = STDIN_FILENO, waits: @escaping (Int32) -> Bool) {
        self.input = input
        self.waits = waits
        isTerminal = isatty(input) == 1
    }

    func read(_ prompt: () -> String, waking wake: () -> Bool) -> Line {
        if isTerminal { TextStream.output.write(prompt()) }
        while true {
            if let end = bytes.firstIndex(of: 0x0A) {
                defer { bytes.removeFirst(end + 1) }
                return .text(String(decoding: bytes[..<end], as: UTF8.self))
            }
            if isAtEnd {
                defer { bytes = [] }
                return bytes.isEmpty ? .end : .text(String(decoding: bytes, as: UTF8.self))
            }
            if waits(input) {
                var buffer = [UInt8](repeating: 0, count: 4096)
                let count = Glibc.read(input, &buffer, buffer.count)
                if count > 0 { bytes += buffer[..<count] }
                if count == 0 || count < 0 && errno != EINTR && errno != EAGAIN { isAtEnd = true }
            } else if wake() {
                TextStream.output.write("\n")
                return .interrupted
            }
        }
    }

    func remember(_ line: String) {}

    func print(_ text: String) { TextStream.output.write(text) }
}
