/// Completions for shells, that know both spellings of an option.

import ArgumentParser

extension TurboDiffusion {
    private static let completionOption = "--generate-completion-script"

    /// The script that a command line asks for; nil where it asks for something else.
    static func completionScript(_ words: [String]) throws -> String? {
        guard let first = words.first, first.hasPrefix("--") else { return nil }
        let parts = first.split(separator: "=", maxSplits: 1)
        let name = parts[0].map { $0 == "_" ? "-" : String($0) }.joined()
        guard name == completionOption else { return nil }
        let value = parts.count > 1 ? String(parts[1]) : words.dropFirst().first
        let shell: CompletionShell?
        if let value {
            shell = CompletionShell(rawValue: value)
        } else {
            shell = CompletionShell.autodetected()
        }
        guard let shell else {
            let known = CompletionShell.allCases.map(\.rawValue).joined(separator: ", ")
            throw UsageError(
                description:
                    "\(completionOption) takes the name of a shell: expected \(known), found '\(value ?? "")'"
            )
        }
        return withBothSpellings(completionScript(for: shell), shell)
    }

    /// Offers `--dit_path` beside `--dit-path`.
    static func withBothSpellings(_ script: String, _ shell: CompletionShell) -> String {
        let lines = script.split(separator: "\n", omittingEmptySubsequences: false)
        return lines.map { line in
            let text = String(line)
            return switch shell {
            case .bash: bash(text)
            case .zsh: zsh(text)
            case .fish: fish(text)
            default: text
            }
        }.joined(separator: "\n")
    }

    /// `_options=(--a-b --c)` → `_options=(--a-b --a_b --c)`; the case `'--a-b')` → `'--a-b'|'--a_b')`.
    private static func bash(_ line: String) -> String {
        let text = line.drop { $0 == " " }
        if text.hasPrefix("'--"), text.hasSuffix(")") {
            return replacingOptions(in: line) { "\($0)'|'\($1)" }
        }
        let isList = ["repeating_flags=(", "repeating_options=("].contains { text.contains($0) }
        return isList ? replacingOptions(in: line) { "\($0) \($1)" } : line
    }

    /// `'--a-b[…` → `'(--a-b --a_b)'{--a-b,--a_b}'[…`; `'*--a-b[…` → `'*'{--a-b,--a_b}'[…`
    private static func zsh(_ line: String) -> String {
        let indent = line.prefix { $0 == " " }
        let text = line.dropFirst(indent.count)
        for (head, isRepeatable) in [("'--", false), ("'*--", true)] where text.hasPrefix(head) {
            guard let end = text.firstIndex(of: "[") else { continue }
            let name = String(text[..<end].dropFirst(isRepeatable ? 2 : 1))
            guard let other = underscored(name) else { return line }
            let set = isRepeatable ? "'*'" : "'(\(name) \(other))'"
            return indent + set + "{\(name),\(other)}'" + text[end...]
        }
        return line
    }

    /// `-l 'a-b'` → `-l 'a-b' -l 'a_b'`; the words of the command line are looked at with dashes.
    private static func fish(_ line: String) -> String {
        if line.contains("set -l unparsed_tokens (__turbodiffusion_tokens -pc)") {
            return line + """

                    for index in (seq (count $unparsed_tokens))
                        if string match -q -- '--*' $unparsed_tokens[$index]
                            set unparsed_tokens[$index] (string replace -a _ - -- $unparsed_tokens[$index])
                        end
                    end
                """
        }
        guard line.hasPrefix("complete "), let start = line.range(" -l '") else { return line }
        let rest = line[start.upperBound...]
        guard let end = rest.firstIndex(of: "'"), let other = underscored(String(rest[..<end]))
        else { return line }
        return line[..<end] + "' -l '\(other)" + line[end...]
    }

    /// nil where an option has one spelling.
    private static func underscored(_ option: String) -> String? {
        let dashes = option.prefix { $0 == "-" }
        let other = dashes + option.dropFirst(dashes.count).map { $0 == "-" ? "_" : $0 }
        return other == option ? nil : String(other)
    }

    private static func replacingOptions(
        in line: String, by both: (String, String) -> String
    ) -> String {
        var (result, rest) = ("", line[...])
        while let start = rest.range("--") {
            result += rest[..<start.lowerBound]
            let option = String(
                rest[start.lowerBound...].prefix { $0.isLetter || $0.isNumber || $0 == "-" })
            result += underscored(option).map { both(option, $0) } ?? option
            rest = rest[rest.index(start.lowerBound, offsetBy: option.count)...]
        }
        return result + rest
    }
}

extension StringProtocol {
    /// Where a text begins and ends for the first time.
    fileprivate func range(_ text: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(text) {
                return start..<index(start, offsetBy: text.count)
            }
            start = index(after: start)
        }
        return nil
    }
}
