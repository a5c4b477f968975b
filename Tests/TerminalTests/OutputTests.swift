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
        line.show("one")
        line.show("two")
        line.note("stays")
        line.end()
        #expect(capture.text() == "\r\u{1B}[Kone\r\u{1B}[Ktwo\r\u{1B}[Kstays\n")
    }

    @Test func changesThatComeTooSoonAreLeftOut() {
        let capture = Capture()
        let line = MovingLine(on: capture.stream, isShown: true, pause: .seconds(60))
        line.show("one")
        line.show("two")
        #expect(capture.text() == "\r\u{1B}[Kone")
    }

    @Test func elsewhereOnlyNotesAreWritten() {
        let capture = Capture()
        let line = MovingLine(on: capture.stream)
        line.show("moves")
        line.note("stays")
        #expect(capture.text() == "stays\n")
    }
}
