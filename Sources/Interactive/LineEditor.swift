/// Lines that are edited, with history and completion: libedit, where it is installed.

import CLineEditor
import Glibc
import Ground
import SystemPackage
import Terminal

/// A terminal's lines. Text that is printed meanwhile appears above the line that is being typed.
final class LineEditor: LineSource {
    let readsMeanwhile = true

    private var editor: OpaquePointer!
    private let waits: (Int32) -> Bool
    private let complete: (String) -> (words: [String], begun: String)
    private let historyFile: FilePath?
    private var prompt: () -> String = { "" }
    private var wake: () -> Bool = { false }
    private var isReading = false
    private var isInterrupted = false
    private var columns = 80
    private var shownPrompt: UnsafeMutablePointer<CChar>
    private var promptWidth = 0

    /// nil where there is no libedit, or standard input and output are no terminal that lines can be edited on.
    /// - Parameters:
    ///   - waits: until there are messages or input; says whether there is input.
    ///   - complete: the words that may stand for the end of a text, and that end.
    init?(
        historyFile: FilePath?, waits: @escaping (Int32) -> Bool,
        complete: @escaping (String) -> (words: [String], begun: String)
    ) {
        self.historyFile = historyFile
        self.waits = waits
        self.complete = complete
        shownPrompt = strdup("")
        guard isatty(STDIN_FILENO) == 1, TextStream.output.movesLines,
            let library = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL)
                ?? dlopen("libedit.so.0", RTLD_NOW | RTLD_LOCAL)
        else { return nil }
        // libedit takes wide characters apart as the locale says; text here is UTF-8.
        if setlocale(LC_CTYPE, "C.UTF-8") == nil { setlocale(LC_CTYPE, "") }
        let owner = line_editor_owner(
            context: Unmanaged.passUnretained(self).toOpaque(),
            prompt: { UnsafePointer(LineEditor.of($0).freshPrompt()) },
            read: { LineEditor.of($0).readCharacter($1) },
            complete: { LineEditor.of($0).completed(String(cString: $1)) })
        guard let editor = line_editor_new(library, owner) else { return nil }
        self.editor = editor
        loadHistory()
    }

    deinit {
        if let editor { line_editor_free(editor) }
        free(shownPrompt)
    }

    private static func of(_ context: UnsafeMutableRawPointer) -> LineEditor {
        Unmanaged.fromOpaque(context).takeUnretainedValue()
    }

    // MARK: Reading

    func read(_ prompt: () -> String, waking wake: () -> Bool) -> Line {
        withoutActuallyEscaping(prompt) { prompt in
            withoutActuallyEscaping(wake) { wake in
                self.prompt = prompt
                self.wake = wake
                isReading = true
                isInterrupted = false
                defer {
                    isReading = false
                    self.prompt = { "" }
                    self.wake = { false }
                }
                guard let text = line_editor_read(editor) else {
                    TextStream.output.write("\n")
                    return isInterrupted ? .interrupted : .end
                }
                defer { free(text) }
                return .text(String(cString: text))
            }
        }
    }

    private func freshPrompt() -> UnsafeMutablePointer<CChar> {
        let text = prompt()
        promptWidth = text.count
        free(shownPrompt)
        shownPrompt = strdup(text)
        return shownPrompt
    }

    /// One character, UTF-8 put together. Between characters messages are taken.
    private func readCharacter(_ character: UnsafeMutablePointer<Int32>) -> Int32 {
        while !waits(STDIN_FILENO) {
            let before = prompt()
            let width = TextStream.output.columns ?? 80
            if width != columns {
                columns = width
                line_editor_resize(editor)
            }
            hasPrinted = false
            if wake() {
                isInterrupted = true
                return 0
            }
            // Drawn again where something has come between, and where the progress before it has moved.
            if hasPrinted {
                line_editor_redraw(editor)
            } else if prompt() != before {
                erase()
                line_editor_redraw(editor)
            }
            hasPrinted = false
        }
        var byte: UInt8 = 0
        guard readByte(&byte) else { return 0 }
        let count = byte < 0x80 ? 0 : byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1
        var value = count == 0 ? Int32(byte) : Int32(byte & (0x3F >> UInt8(count)))
        for _ in 0..<count {
            guard readByte(&byte) else { return 0 }
            value = value << 6 | Int32(byte & 0x3F)
        }
        // What is no character would end the process in some versions of the library.
        let isCharacter = UnicodeScalar(UInt32(bitPattern: value)) != nil
        character.pointee = isCharacter ? value : 0xFFFD
        return 1
    }

    private func readByte(_ byte: inout UInt8) -> Bool {
        while true {
            let count = Glibc.read(STDIN_FILENO, &byte, 1)
            if count == 1 { return true }
            if count < 0, errno == EINTR || errno == EAGAIN {
                _ = waits(STDIN_FILENO)
                continue
            }
            return false
        }
    }

    // MARK: Printing meanwhile

    private var hasPrinted = false

    func print(_ text: String) {
        if isReading, !hasPrinted {
            erase()
            hasPrinted = true
        }
        TextStream.output.write(text)
    }

    /// Removes prompt and line from the screen; the cursor is where they began.
    private func erase() {
        let before = String(cString: line_editor_before_cursor(editor))
        let rows = (promptWidth + before.count) / max(1, TextStream.output.columns ?? 80)
        TextStream.output.write((rows > 0 ? "\u{1B}[\(rows)A" : "") + "\r\u{1B}[J")
    }

    // MARK: Completion

    private func completed(_ before: String) -> UnsafeMutablePointer<CChar>? {
        let (words, begun) = complete(before)
        guard var common = words.first else { return nil }
        for word in words { common = String(common.commonPrefix(with: word)) }
        if common.count > begun.count { return strdup(String(common.dropFirst(begun.count))) }
        if words.count > 1 {
            hasPrinted = false
            print(words.map(\.trimmed.printable).joined(separator: "  ") + "\r\n")
            line_editor_redraw(editor)
            hasPrinted = false
        }
        return nil
    }

    // MARK: History

    private func loadHistory() {
        guard let historyFile, let bytes = try? historyFile.contents(limit: 1 << 20) else { return }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n").suffix(1000) {
            line_editor_remember(editor, String(line))
        }
    }

    func remember(_ line: String) {
        guard !line.trimmed.isEmpty else { return }
        line_editor_remember(editor, line)
        guard let historyFile else { return }
        let text = line.replacing("\n", with: " ") + "\n"
        let file = open(historyFile.string, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600)
        guard file >= 0 else { return }
        defer { close(file) }
        _ = text.withCString { write(file, $0, strlen($0)) }
    }

    /// `$XDG_STATE_HOME/turbodiffusion/history`, or under `~/.local/state`; nil where there is no home.
    static var userHistory: FilePath? {
        guard let base = userFolder("XDG_STATE_HOME", ".local/state") else { return nil }
        let folder = FilePath("\(base)/turbodiffusion")
        do { try folder.makeFolders(mode: 0o700) } catch { return nil }
        return folder.appending("history")
    }
}

extension String {
    fileprivate func commonPrefix(with other: String) -> Substring {
        var end = startIndex
        for (a, b) in zip(self, other) {
            if a != b { break }
            end = index(after: end)
        }
        return self[..<end]
    }
}
