/// What the commands print: stdout for results, stderr for progress.

import FoundationEssentials
import Glibc
import Ground

enum Output {
    static func line(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }
    static func note(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress, $0.count)
            }
            if count < 0 { if errno == EINTR { continue } else { return } }
            bytes = bytes.dropFirst(count)
        }
    }

    /// One line of JSON.
    static func json(_ value: some Encodable) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(value) else { return }
        line(String(decoding: data, as: UTF8.self))
    }

    static func seconds(_ value: Double) -> String {
        value < 0.0995 ? "\(fixed(value * 1000, 1)) ms" : "\(fixed(value, 2)) s"
    }

    static func bytes(_ count: Int) -> String {
        let value = Double(count)
        if value >= 0x1p30 { return "\(fixed(value / 0x1p30, 2)) GiB" }
        if value >= 0x1p20 { return "\(fixed(value / 0x1p20, 1)) MiB" }
        return "\(fixed(value / 0x1p10, 1)) KiB"
    }

    /// Decimal digits without a locale.
    static func fixed(_ value: Double, _ digits: Int) -> String { Ground.fixed(value, digits) }

    /// Columns padded to their widest cell; the first left-aligned, the others right-aligned.
    static func table(_ rows: [[String]]) -> String {
        guard let columns = rows.map(\.count).max() else { return "" }
        let widths = (0..<columns).map { column in
            rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        return rows.map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                line += column == 0 ? cell + padding : "  " + padding + cell
            }
            return line
        }.joined(separator: "\n")
    }
}
