/// Formatting numbers and untrusted text for people and tables.

import Glibc
import SystemPackage

/// A number with a fixed count of decimals, independent of the locale: `fixed(2.5, 2)` is `2.50`.
/// - Parameter digits: number of decimals, 0 to 15.
public func fixed(_ value: Double, _ digits: Int) -> String {
    let scale = (0..<digits).reduce(1.0) { scale, _ in scale * 10 }
    let scaled = (value.magnitude * scale).rounded()
    // Such large numbers have no decimals.
    guard scaled < 0x1p63 else { return value.isNaN ? "nan" : "\(value)" }
    let (whole, fraction) = UInt64(scaled).quotientAndRemainder(dividingBy: UInt64(scale))
    let sign = value < 0 && scaled > 0 ? "-" : ""
    guard digits > 0 else { return sign + "\(whole)" }
    return sign + "\(whole)." + padded(fraction, digits)
}

/// A whole number with zeros before it: `padded(7, 3)` is `007`. One that is longer stays as it is.
public func padded(_ number: some BinaryInteger, _ digits: Int, radix: Int = 10) -> String {
    let text = String(number, radix: radix)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
}

/// A number in f32's digits, `inf`, `-inf` or `nan`: Swift would print the bits of a NaN, too.
public func numeral(_ value: Double) -> String { value.isNaN ? "nan" : "\(Float(value))" }

/// A duration: `43.2 ms`, `1.25 s`.
public func describe(seconds: Double) -> String {
    seconds < 0.0995 ? "\(fixed(seconds * 1000, 1)) ms" : "\(fixed(seconds, 2)) s"
}

/// Seconds as one says them: `8 s`, `1 min 40 s`, `25 min`, `9 h`, `3 days`.
public func about(seconds: Double) -> String {
    guard seconds.isFinite, seconds < 0x1p53 else { return "for ever" }
    let seconds = max(0, seconds)
    if seconds > 0, seconds < 9.5 { return "\(fixed(seconds, seconds < 1.95 ? 1 : 0)) s" }
    let whole = Int(seconds.rounded())
    if whole < 100 { return "\(whole) s" }
    if whole < 600 {
        return "\(whole / 60) min" + (whole % 60 >= 10 ? " \(whole % 60 / 10 * 10) s" : "")
    }
    if whole < 5400 { return "\((whole + 30) / 60) min" }
    let hours = Double(whole) / 3600
    if hours < 9.5 { return "\(fixed(hours, 1)) h" }
    return hours < 72 ? "\(fixed(hours, 0)) h" : "\(fixed(hours / 24, 0)) days"
}

/// `8 s to 15 s`
public func about(seconds range: ClosedRange<Double>) -> String {
    "\(about(seconds: range.lowerBound)) to \(about(seconds: range.upperBound))"
}

/// `12.0 KiB`, `3.5 MiB`, `27.98 GiB`
public func describe(bytes: Int) -> String {
    let count = Double(bytes)
    if count >= 0x1p30 { return "\(fixed(count / 0x1p30, 2)) GiB" }
    if count >= 0x1p20 { return "\(fixed(count / 0x1p20, 1)) MiB" }
    return "\(fixed(count / 0x1p10, 1)) KiB"
}

/// A field of a CSV file (RFC 4180), quoted if necessary.
public func csvField(_ text: String) -> String {
    guard text.unicodeScalars.contains(where: { ",\"\r\n".unicodeScalars.contains($0) }) else {
        return text
    }
    let parts = text.unicodeScalars.split(separator: "\"", omittingEmptySubsequences: false)
    return "\"" + parts.map(String.init).joined(separator: "\"\"") + "\""
}

/// A text in JSON, quotes included.
public func jsonString(_ text: String) -> String {
    var out = "\""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\"": out += "\\\""
        case "\\": out += "\\\\"
        case "\u{0}"..<" ": out += "\\u" + padded(scalar.value, 4, radix: 16)
        default: out.unicodeScalars.append(scalar)
        }
    }
    return out + "\""
}

/// A variable of the environment; nil where it is not set, or empty.
public func environment(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
}

/// One of a user's folders by the XDG base directory specification, by which a path that is not absolute counts as none:
/// `userFolder("XDG_CACHE_HOME", ".cache")`.
/// - Parameters:
///   - name: the variable that names it.
///   - usual: where it is in the home folder if nothing names it.
/// - Returns: nil where there is no home.
public func userFolder(
    _ name: String, _ usual: String, _ variable: (String) -> String? = environment
) -> String? {
    func absolute(_ name: String) -> String? {
        variable(name).flatMap { $0.hasPrefix("/") ? $0 : nil }
    }
    return absolute(name) ?? absolute("HOME").map { "\($0)/\(usual)" }
}

/// A folder of this program's in the user's caches; nil where there is no home, and where others can change what is in it.
public func userCache(
    _ name: String, _ variable: (String) -> String? = environment
) -> String? {
    guard let caches = userFolder("XDG_CACHE_HOME", ".cache", variable) else { return nil }
    let folder = "\(caches)/turbodiffusion/\(name)"
    return FilePath(folder).changeableByOthers == nil ? folder : nil
}

/// A number's bytes, the lowest first.
public func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

extension StringProtocol {
    /// Without white space at both ends.
    public var trimmed: String {
        var text = self[...]
        while let last = text.last, last.isWhitespace { text.removeLast() }
        return String(text.drop(while: \.isWhitespace))
    }

    /// The text on one line with every control character escaped (`\n`, `\u{1B}`), so that text from a file can neither
    /// control a terminal nor look like other text. Joiners, which scripts and emoji need, are kept.
    public var printable: String {
        var result = String.UnicodeScalarView()
        for scalar in unicodeScalars {
            switch (scalar, scalar.properties.generalCategory) {
            case ("\n", _): result.append(contentsOf: "\\n".unicodeScalars)
            case ("\r", _): result.append(contentsOf: "\\r".unicodeScalars)
            case ("\t", _): result.append(contentsOf: "\\t".unicodeScalars)
            case ("\u{200C}", _), ("\u{200D}", _): result.append(scalar)
            case (_, .control), (_, .format), (_, .lineSeparator), (_, .paragraphSeparator):
                let digits = String(scalar.value, radix: 16, uppercase: true)
                result.append(contentsOf: "\\u{\(digits)}".unicodeScalars)
            default: result.append(scalar)
            }
        }
        return String(result)
    }
}
