/// From the words of a command line to a command, and from what ends it to a line and an exit code.

import ArgumentParser
import Catalog
import Glibc
import Ground
import Terminal

/// A command line that is none, where no command can say it.
struct UsageError: Error, CustomStringConvertible {
    let description: String
}

extension TurboDiffusion {
    /// The words after the program's name.
    /// - Throws: ``UsageError`` for one that is no text: what it names would be something else.
    static func words() throws -> [String] {
        try (1..<max(1, Int(CommandLine.argc))).map { index in
            guard let word = CommandLine.unsafeArgv[index] else { return "" }
            guard let text = String(validatingCString: word) else {
                throw UsageError(
                    description:
                        "argument \(index) is not UTF-8 text: '\(String(cString: word))'; prompts and names must be"
                )
            }
            return text
        }
    }

    /// Carries out a command line.
    /// - Returns: the exit code.
    static func execute(_ words: [String]) async -> Int32 {
        do {
            if let script = try completionScript(words) {
                TextStream.output.write(script + "\n")
                return EXIT_SUCCESS
            }
            let parsed = try await command(words)
            if !(parsed is DoctorCommand) {
                if case .failure(let error) = Settings.loaded {
                    throw UsageError(description: error.description)
                }
                try Defaults.checkDevice()
            }
            for note in repeatedOptions(normalized(words)) where !words.contains("--quiet") {
                Output.note("note: \(note)")
            }
            try await carryOut(parsed)
            return EXIT_SUCCESS
        } catch {
            return end(error, words)
        }
    }

    private static func carryOut(_ parsed: any ParsableCommand) async throws {
        if var command = parsed as? any AsyncParsableCommand {
            try await command.run()
        } else {
            var command = parsed
            try command.run()
        }
    }

    /// The command that is meant, with its options.
    static func command(_ words: [String]) async throws -> any ParsableCommand {
        let arguments = normalized(words)
        try checkCommand(arguments)
        return try await asyncParseAsRoot(arguments)
    }

    /// Tells why a command ended.
    /// - Returns: the exit code.
    private static func end(_ error: any Error, _ words: [String]) -> Int32 {
        let code = error is UsageError ? .validationFailure : exitCode(for: error)
        if code == .success {
            // Help, the version: not foreign text.
            TextStream.output.write(fullMessage(for: error) + "\n")
        } else if let line = line(for: error, words) {
            Output.note("Error: \(line)")
            if code == .validationFailure, words.prefix(while: { $0 != "--" }).contains("--json") {
                Output.jsonFailure(code: "usage", line)
            }
        }
        return code.rawValue
    }

    /// One line: what was expected, what was found, what to do; nil where the command has told it.
    static func line(for error: any Error, _ words: [String]) -> String? {
        if let error = error as? UsageError { return error.description.printable }
        let message = message(for: error).trimmed
        guard !message.isEmpty else { return nil }
        guard exitCode(for: error) == .validationFailure else { return message.printable }
        let lines = fullMessage(for: error).split(separator: "\n")
        var line = better(message, words) ?? message
        // Values that are possible come one a line.
        let parts = line.split(separator: "\n").map(\.trimmed)
        line = parts[0]
        if parts.count > 1 {
            line +=
                " "
                + parts.dropFirst().map { $0.hasPrefix("- ") ? String($0.dropFirst(2)) : $0 }
                .joined(separator: ", ")
        }
        // What the option is, where the message says only that the value is none.
        if parts.count == 1, !message.contains("': "), message.contains("is invalid for"),
            let help = lines.first(where: { $0.hasPrefix("Help:  ") }),
            let text = help.dropFirst(7).split(separator: "  ").last
        {
            line += ": " + text.trimmed
        }
        if line.hasSuffix(".") { line.removeLast() }
        if let see = lines.last(where: { $0.contains("See '") }),
            let command = see.split(separator: "'").dropFirst().first
        {
            line += "; see '\(command)'"
        }
        return line.printable
    }

    // MARK: What was meant

    private static let commandNames = configuration.subcommands.map { $0._commandName }

    /// Throws where the first word is no command.
    private static func checkCommand(_ arguments: [String]) throws {
        var names = arguments.prefix { $0 != "--" }
        if names.first == "help" { names.removeFirst() }
        guard let name = names.first ?? arguments.last, !name.hasPrefix("-"), name != "help",
            !commandNames.contains(name), arguments != ["help"]
        else { return }
        let near = commandNames.min { distance($0, name) < distance($1, name) }
        let advice: String
        if name.contains(where: \.isWhitespace) {
            advice = "a video is made by: turbodiffusion t2v \"\(name)\""
        } else if let near, distance(near, name) <= 2 {
            advice = "did you mean \(near)?"
        } else {
            advice = "expected one of " + commandNames.joined(separator: ", ")
        }
        throw UsageError(description: "no command '\(name)': \(advice)")
    }

    /// An option that another command has.
    private static func better(_ message: String, _ words: [String]) -> String? {
        guard message.hasPrefix("Unknown option '"), let command = words.first,
            let option = message.split(separator: "'").dropFirst().first,
            option.hasPrefix("--")
        else { return nil }
        let owners = configuration.subcommands.filter { $0._commandName != command }.filter {
            helpMessage(for: $0, columns: 200).split { ", \n<".contains($0) }.contains(option)
        }.map { $0._commandName }
        let usual = ["t2v", "i2v"].filter(owners.contains)
        guard let owner = usual.first ?? (owners.count == 1 ? owners[0] : nil) else { return nil }
        return "\(command) has no option '\(option)'; 'turbodiffusion \(owner)' has it"
    }

    /// Insertions, deletions and changes between two words.
    private static func distance(_ a: String, _ b: String) -> Int {
        let b = Array(b.prefix(40))
        var row = Array(0...b.count)
        for (i, x) in a.enumerated() {
            var corner = row[0]
            row[0] = i + 1
            for (j, y) in b.enumerated() {
                let changed = corner + (x == y ? 0 : 1)
                corner = row[j + 1]
                row[j + 1] = min(changed, row[j] + 1, row[j + 1] + 1)
            }
        }
        return row[b.count]
    }

    /// Options that take one value and were given twice: the last one counts.
    static func repeatedOptions(_ arguments: [String]) -> [String] {
        var repeatable: Set = [
            "--lora", "--high-noise-lora", "--low-noise-lora", "--arch", "--card",
        ]
        if arguments.first == "serve" { repeatable.formUnion(["--device", "--devices"]) }
        var counts: [String: Int] = [:]
        for word in arguments.prefix(while: { $0 != "--" }) where word.hasPrefix("--") {
            counts[String(word.prefix { $0 != "=" }), default: 0] += 1
        }
        return counts.filter { $0.value > 1 && !repeatable.contains($0.key) }.keys.sorted().map {
            "\($0) is given more than once: the last one counts"
        }
    }

    // MARK: Spellings

    /// `--dit_path` and `--dit-path` are the same option: the original's command lines work unchanged. Values may begin
    /// with a dash, and are told from options as Python's argparse tells them.
    static func normalized(_ arguments: [String]) -> [String] {
        let end = arguments.firstIndex(of: "--") ?? arguments.endIndex
        var result: [String] = []
        var positional: [String] = []
        for argument in arguments[..<end] {
            if isValue(argument) {
                if let option = result.last, option.hasPrefix("--"), !option.contains("=") {
                    result[result.count - 1] = option + "=" + argument
                } else {
                    positional.append(argument)
                }
            } else if argument.hasPrefix("--") {
                let name = argument.prefix { $0 != "=" }
                result.append(
                    String(name.map { $0 == "_" ? "-" : $0 }) + argument.dropFirst(name.count))
            } else {
                result.append(argument)
            }
        }
        let rest = positional + arguments[end...].dropFirst()
        return rest.isEmpty ? result : result + ["--"] + rest
    }

    /// Begins with a dash and is no option: "- a cat", "-5".
    private static func isValue(_ argument: String) -> Bool {
        guard argument.hasPrefix("-") else { return false }
        return Double(argument) != nil
            || argument.prefix { $0 != "=" }.contains(where: \.isWhitespace)
    }
}
