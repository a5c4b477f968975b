/// Lines that begin with a slash.

import Ground

/// What a line asks for.
enum Command: Sendable, Hashable {
    case help(String?)
    case show
    case set(Setting, String)
    case reset(Setting?)
    case quit
    /// A video as it was made before; nil: with the settings as they are.
    case again(Int?)
    /// So many videos with other seeds.
    case vary(Int)
    /// A prompt that waits its turn; nil: what waits is listed.
    case queue(String?)
    /// What is to end.
    case cancel(Cancelled)
    case save(String)
    case load(String)
    case open(Int?)
    case history

    enum Cancelled: Sendable, Hashable {
        case running, all
        case number(Int)
    }

    /// Each with what it takes and does.
    static let table: [(name: String, arguments: String, text: String)] = [
        ("help", "[COMMAND]", "what can be said here"),
        ("show", "", "the settings as they are"),
        ("set", "KEY VALUE", "sets one: /set num_steps 2"),
        ("reset", "[KEY]", "the settings as they were at the start, or one of them"),
        ("again", "[N]", "makes the last prompt again, or video N with the settings it had"),
        ("vary", "[N]", "makes it N times with other seeds (1)"),
        ("queue", "[PROMPT]", "puts a prompt behind what is being made; alone: what waits"),
        ("cancel", "[N|all]", "ends the video that is being made, or one that waits"),
        ("history", "", "the videos of this session"),
        ("open", "[N]", "shows the last video, or video N"),
        ("save", "FILE", "writes the settings to a file"),
        ("load", "FILE", "takes the settings of a file, or of a video that this program made"),
        ("quit", "", "ends the session; so does Ctrl-D"),
    ]

    /// - Parameter line: begins with a slash.
    init(_ line: String) throws(SettingError) {
        let words = line.dropFirst()
        let name = words.prefix { !$0.isWhitespace }.lowercased()
        let rest = words.dropFirst(name.count).trimmed
        func number() throws(SettingError) -> Int? {
            if rest.isEmpty { return nil }
            guard let number = Int(rest), number > 0 else {
                throw SettingError("/\(name) takes a number from 1, not '\(rest)'")
            }
            return number
        }
        func file() throws(SettingError) -> String {
            guard !rest.isEmpty else { throw SettingError("/\(name) needs the name of a file") }
            return rest
        }
        switch name {
        case "help", "h", "?": self = .help(rest.isEmpty ? nil : rest)
        case "show": self = .show
        case "set": self = try Self.setting(rest)
        case "reset": self = .reset(rest.isEmpty ? nil : try Self.setting(named: rest))
        case "quit", "exit", "q": self = .quit
        case "again": self = .again(try number())
        case "vary":
            let count = try number() ?? 1
            guard count <= 1000 else { throw SettingError("/vary takes 1 to 1000, not \(count)") }
            self = .vary(count)
        case "queue": self = .queue(rest.isEmpty ? nil : rest)
        case "cancel":
            self =
                rest.lowercased() == "all"
                ? .cancel(.all) : .cancel(try number().map { .number($0) } ?? .running)
        case "save": self = .save(try file())
        case "load": self = .load(try file())
        case "open": self = .open(try number())
        case "history": self = .history
        default:
            let near = Self.table.map(\.name).first {
                !name.isEmpty && ($0.hasPrefix(name) || name.hasPrefix($0))
            }
            throw SettingError(
                "there is no command /\(name)"
                    + (near.map { "; did you mean /\($0)?" } ?? "; /help lists them"))
        }
    }

    private static func setting(_ text: String) throws(SettingError) -> Command {
        if text.isEmpty { return .show }
        let name = text.prefix { !$0.isWhitespace && $0 != "=" }
        let setting = try setting(named: String(name))
        var value = text.dropFirst(name.count).trimmed
        if value.hasPrefix("=") { value = value.dropFirst().trimmed }
        guard !value.isEmpty else {
            throw SettingError("/set \(setting.rawValue) needs a value: \(setting.values)")
        }
        return .set(setting, value)
    }

    private static func setting(named name: String) throws(SettingError) -> Setting {
        guard let setting = Setting(named: name) else {
            let names = Setting.allCases.map(\.rawValue).joined(separator: ", ")
            throw SettingError("there is no setting '\(name)'; there are: \(names)")
        }
        return setting
    }

    /// The text of `/help`.
    static func help(_ name: String?) -> [String] {
        if let name {
            let name = name.hasPrefix("/") ? String(name.dropFirst()) : name
            if let entry = table.first(where: { $0.name == name.lowercased() }) {
                let lines = ["/\(entry.name) \(entry.arguments)".trimmed + ": \(entry.text)"]
                return entry.name == "set" ? lines + settings : lines
            }
            if let setting = Setting(named: name) {
                return ["\(setting.rawValue): \(setting.values)"]
            }
            return ["there is no command /\(name)"]
        }
        let width = table.map { $0.name.count + $0.arguments.count + 2 }.max() ?? 0
        return table.map { entry in
            "  " + "/\(entry.name) \(entry.arguments)".padded(to: width) + "  \(entry.text)"
        } + [
            "A line without a slash is a prompt; a \\ at its end goes on in the next line.",
            "Ctrl-C ends the video that is being made and keeps the model. /help set lists the settings.",
        ]
    }

    private static var settings: [String] {
        let width = Setting.allCases.map(\.rawValue.count).max() ?? 0
        return Setting.allCases.map { "  \($0.rawValue.padded(to: width))  \($0.values)" }
    }

    // MARK: Completion

    /// What may stand for the last word of a line.
    /// - Parameter files: the files whose names begin with a text.
    /// - Returns: whole words; the text that they stand for.
    static func completions(of line: String, files: (String) -> [String]) -> (
        words: [String], begun: String
    ) {
        let begun = String(line.reversed().prefix { !$0.isWhitespace }.reversed())
        func matching(_ words: [String]) -> (words: [String], begun: String) {
            (words.filter { $0.hasPrefix(begun) }, begun)
        }
        guard line.hasPrefix("/") else { return ([], begun) }
        let words = line.split(whereSeparator: \.isWhitespace).map(String.init)
        let position = words.count - (begun.isEmpty ? 0 : 1)
        switch (position, words.first) {
        case (0, _): return matching(table.map { "/\($0.name) " })
        case (1, "/set"), (1, "/reset"): return matching(Setting.allCases.map { "\($0.rawValue) " })
        case (2, "/set"):
            guard let setting = Setting(named: words[1]) else { return ([], begun) }
            return setting.takesFile ? (files(begun), begun) : matching(setting.choices)
        case (1, "/help"): return matching(table.map(\.name))
        case (1, "/load"), (1, "/save"): return (files(begun), begun)
        default: return ([], begun)
        }
    }
}

extension StringProtocol {
    func padded(to width: Int) -> String {
        String(self) + String(repeating: " ", count: Swift.max(0, width - count))
    }
}
