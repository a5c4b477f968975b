// What reaches a descriptor, and what happens when it cannot.

import Glibc
import SystemPackage
import Testing

@testable import Terminal

/// A pipe that keeps what is written to it.
private final class Capture {
    private var ends: [Int32] = [0, 0]
    let stream: TextStream

    init() {
        pipe(&ends)
        stream = TextStream(ends[1])
    }

    deinit { close(ends[0]) }

    /// All that was written; ends the stream.
    func text() -> String {
        close(ends[1])
        var text: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while case let count = read(ends[0], &piece, piece.count), count > 0 {
            text += piece.prefix(count)
        }
        return String(decoding: text, as: UTF8.self)
    }
}

/// A terminal of a given width, seen from its other end.
private final class PseudoTerminal {
    private let inside: Int32
    private let outside: Int32
    let stream: TextStream

    init(columns: Int) throws {
        outside = open("/dev/ptmx", O_RDWR | O_NOCTTY)
        // TIOCSPTLCK and TIOCGPTN, whose macros Swift does not read.
        var (lock, number): (Int32, Int32) = (0, 0)
        try #require(ioctl(outside, 0x4004_5431, &lock) == 0)
        try #require(ioctl(outside, 0x8004_5430, &number) == 0)
        inside = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY)
        try #require(inside >= 0)
        stream = TextStream(inside)
        resize(columns: columns)
    }

    deinit {
        close(inside)
        close(outside)
    }

    func resize(columns: Int) {
        var size = winsize(ws_row: 24, ws_col: UInt16(columns), ws_xpixel: 0, ws_ypixel: 0)
        _ = ioctl(outside, UInt(TIOCSWINSZ), &size)
    }

    /// What was written since the last time.
    func text() -> String {
        var piece = [UInt8](repeating: 0, count: 4096)
        let count = read(outside, &piece, piece.count)
        return String(decoding: piece.prefix(max(0, count)), as: UTF8.self)
    }
}

@Suite struct TextStreamTests {
    @Test func allOfATextArrives() {
        let capture = Capture()
        capture.stream.write("a line\n")
        capture.stream.write("é 漢\n")
        #expect(capture.stream.failure == nil && !capture.stream.isTerminal)
        #expect(capture.text() == "a line\né 漢\n")
    }

    @Test func theFirstFailureIsKeptAndEndsTheWriting() {
        let full = open("/dev/full", O_WRONLY | O_CLOEXEC)
        defer { close(full) }
        let stream = TextStream(full)
        stream.write("")
        #expect(stream.failure == nil)
        stream.write("x")
        #expect(stream.failure == .noSpace)
        #expect(TextStream(-1).failure == nil)
        let closed = TextStream(-1)
        closed.write("x")
        #expect(closed.failure == .badFileDescriptor)
    }

    @Test func aPipeThatDoesNotBlockIsWaitedFor() async {
        var ends: [Int32] = [0, 0]
        pipe(&ends)
        #expect(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0)
        let (reading, stream) = (ends[0], TextStream(ends[1]))
        let text = String(repeating: "0123456789", count: 50_000)
        async let received = Task.detached {
            var count = 0
            var piece = [UInt8](repeating: 0, count: 1 << 16)
            while count < text.utf8.count {
                count += max(0, read(reading, &piece, piece.count))
            }
            return count
        }.value
        stream.write(text)
        #expect(await received == text.utf8.count && stream.failure == nil)
        for end in ends { close(end) }
    }
}

@Suite struct OutputTests {
    private struct Value: Encodable {
        var path = "a/b"
        var error = Double.infinity
    }

    @Test func valuesBecomeOneLineOfJSON() throws {
        #expect(try Output.jsonText(Value()) == #"{"error":"inf","path":"a/b"}"#)
    }

    @Test func whatComesFromFilesCannotSteerTheTerminal() {
        #expect(Output.visible("a\nb\u{1B}[2J\u{202E}") == "a\nb\\u{1B}[2J\\u{202E}")
    }

    @Test func columnsAreAligned() {
        #expect(
            Output.table([["stage", "time"], ["decode", "1.25 s", "x"], ["é"]])
                == "stage     time\ndecode  1.25 s  x\né     ")
        #expect(Output.table([]) == "")
    }
}

@Suite struct MovingLineTests {
    @Test func aLineIsReplacedAndRemoved() {
        let capture = Capture()
        let line = MovingLine(on: capture.stream, isShown: true, pause: .zero)
        line.show { _ in "one" }
        line.show { _ in "two" }
        line.note("stays")
        line.end()
        #expect(capture.text() == "\r\u{1B}[Kone\r\u{1B}[Ktwo\r\u{1B}[Kstays\n")
    }

    @Test func changesThatComeTooSoonAreLeftOut() {
        let capture = Capture()
        let line = MovingLine(on: capture.stream, isShown: true, pause: .seconds(60))
        line.show { _ in "one" }
        line.show { _ in "two" }
        #expect(capture.text() == "\r\u{1B}[Kone")
    }

    @Test func elsewhereOnlyNotesAreWritten() {
        let capture = Capture()
        let line = MovingLine(on: capture.stream)
        line.show { _ in "moves" }
        line.note("stays")
        #expect(capture.text() == "stays\n")
    }

    @Test func barsShowTheShareAndTheTimeLeft() {
        func bar(_ fraction: Double, _ left: Double? = 30, _ columns: Int = 79) -> String {
            progressBar("step 2/4", fraction, secondsLeft: left, columns: columns)
        }
        #expect(bar(0.25) == "step 2/4 ███████░░░░░░░░░░░░░░░░░░░░░░░ 25 %, 30 s left")
        #expect(bar(0, nil) == "step 2/4 ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 0 %")
        #expect(bar(2, 0).hasSuffix("█ 100 %, 0 s left"))
        #expect(bar(0.9999).contains(" 99 %") && bar(.nan).contains(" 0 %"))
        #expect(bar(0.5, 30, 40) == "step 2/4 ███████░░░░░░░░ 50 %, 30 s left")
        #expect(bar(0.5, 30, 26) == "step 2/4 50 %, 30 s left")
        #expect(bar(0.5, 30, 20) == "50 %, 30 s left" && bar(0.5, 30, 8) == "50 %")
        for columns in 5...100 { #expect(bar(0.5, 1e5, columns).count <= columns) }
    }

    @Test func aLineFitsTheTerminalAsItIsNow() throws {
        let terminal = try PseudoTerminal(columns: 22)
        let line = MovingLine(on: terminal.stream, isShown: true, pause: .zero)
        let long = String(repeating: "x", count: 100)
        line.show { _ in long }
        #expect(terminal.text() == "\r\u{1B}[K" + String(repeating: "x", count: 21))
        terminal.resize(columns: 10)
        line.show { columns in "\(columns)" + long }
        #expect(terminal.text() == "\r\u{1B}[K9" + String(repeating: "x", count: 8))
        terminal.resize(columns: 0)
        line.show { columns in "\(columns)" }
        #expect(terminal.text() == "\r\u{1B}[K79")
    }

    /// Whether a terminal moves lines is said by its name. The only test that changes the environment.
    @Test func editorsAndLogsGetPlainLines() throws {
        let terminal = try PseudoTerminal(columns: 80)
        let before = getenv("TERM").map { String(cString: $0) }
        defer { if let before { setenv("TERM", before, 1) } else { unsetenv("TERM") } }
        setenv("TERM", "xterm", 1)
        #expect(terminal.stream.isTerminal && terminal.stream.movesLines)
        for name in ["dumb", ""] {
            setenv("TERM", name, 1)
            #expect(!terminal.stream.movesLines)
        }
        unsetenv("TERM")
        #expect(!terminal.stream.movesLines)
        let line = MovingLine(on: terminal.stream)
        line.show { _ in "moves" }
        line.note("stays")
        #expect(terminal.text() == "stays\r\n")
    }
}
