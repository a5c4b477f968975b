/// What the commands print: results to standard output, the rest to standard error.

import FoundationEssentials
import Ground

public enum Output {
    /// A line of the result, or several.
    public static func line(_ text: String) { TextStream.output.write(visible(text) + "\n") }
    /// A line about the work, or several.
    public static func note(_ text: String) { TextStream.errors.write(visible(text) + "\n") }

    /// Names and texts out of files must not steer the terminal.
    static func visible(_ text: String) -> String {
        text.split(separator: "\n", omittingEmptySubsequences: false).map(\.printable)
            .joined(separator: "\n")
    }

    /// A value as one line of JSON on standard output. Numbers that JSON does not have become texts: "inf", "nan".
    public static func json(_ value: some Encodable) {
        do {
            TextStream.output.write(try jsonText(value) + "\n")
        } catch {
            note("this value is not written as JSON: \(error)")
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
