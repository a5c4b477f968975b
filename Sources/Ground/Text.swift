/// Formatting numbers and untrusted text for people and tables.

/// A number with a fixed count of decimals, independent of the locale: `fixed(2.5, 2)` is `2.50`.
/// - Parameter digits: number of decimals, 0 to 15.
public func fixed(_ value: Double, _ digits: Int) -> String {
    let scale = (0..<digits).reduce(1.0) { scale, _ in scale * 10 }
    let scaled = (value.magnitude * scale).rounded()
    // Such large numbers have no decimals.
    guard scaled < 0x1p63 else { return "\(value)" }
    let (whole, fraction) = UInt64(scaled).quotientAndRemainder(dividingBy: UInt64(scale))
    let sign = value < 0 && scaled > 0 ? "-" : ""
    guard digits > 0 else { return sign + "\(whole)" }
    let rest = String(fraction)
    return sign + "\(whole)." + String(repeating: "0", count: digits - rest.count) + rest
}

/// A duration: `43.2 ms`, `1.25 s`.
public func describe(seconds: Double) -> String {
    seconds < 0.0995 ? "\(fixed(seconds * 1000, 1)) ms" : "\(fixed(seconds, 2)) s"
}

/// A number of bytes: `12.0 KiB`, `3.5 MiB`, `27.98 GiB`.
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

extension StringProtocol {
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
