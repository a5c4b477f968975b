/// What the commands print: results to standard output, the rest to standard error.

import FoundationEssentials
import Ground

public enum Output {
    /// Prints one or more lines of the result.
    public static func line(_ text: String) { TextStream.output.write(visible(text) + "\n") }
    /// Prints one or more lines about the work.
    public static func note(_ text: String) { TextStream.errors.write(visible(text) + "\n") }

    /// Makes control characters visible: names and texts from files must not control the terminal.
    static func visible(_ text: String) -> String {
        text.split(separator: "\n", omittingEmptySubsequences: false).map(\.printable)
            .joined(separator: "\n")
    }

    /// Prints a value as one line of JSON. Numbers that JSON lacks become strings: "inf", "-inf", "nan".
    public static func json(_ value: some Encodable) {
        do {
            TextStream.output.write(try jsonText(value) + "\n")
        } catch {
            note("a value cannot be written as JSON: \(error)")
        }
    }

    static func jsonText(_ value: some Encodable) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        return String(decoding: try encoder.encode(value), as: UTF8.self)
    }

    /// Columns padded to their widest cell; the first left-aligned, the others right-aligned.
    public static func table(_ rows: [[String]]) -> String {
        let widths = (0..<(rows.map(\.count).max() ?? 0)).map { column in
            rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        return rows.map { row in
            row.enumerated().map { column, cell in
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                return column == 0 ? cell + padding : padding + cell
            }.joined(separator: "  ")
        }.joined(separator: "\n")
    }
}
