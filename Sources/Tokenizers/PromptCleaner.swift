// Cleans a prompt the way the text encoder's training data was cleaned.

/// The cleaning that Wan applies before tokenizing: `ftfy.fix_text`, `html.unescape` twice, and
/// every run of white space replaced by one space.
/// Source: https://github.com/Wan-Video/Wan2.1/blob/main/wan/modules/tokenizers.py
public enum PromptCleaner {
    /// `prompt` with its encoding repaired, curly quotes straightened, full-width and half-width
    /// characters at their standard width, Latin ligatures split, control characters removed, in
    /// normalization form C, HTML references decoded and white space collapsed.
    ///
    /// Takes time linear in the length of the prompt.
    public static func clean(_ prompt: String) -> String {
        var text = TextFixes.fix(Array(prompt.unicodeScalars))
        // Twice, for references that are escaped themselves (`&amp;lt;`).
        for _ in 0..<2 { text = HTMLEntities.unescape(text) }
        return collapsingWhitespace(text)
    }

    private static func collapsingWhitespace(_ text: [Unicode.Scalar]) -> String {
        var result = String.UnicodeScalarView()
        result.reserveCapacity(text.count)
        var needsSpace = false
        for scalar in text {
            if isWhitespace(scalar) {
                needsSpace = !result.isEmpty
            } else {
                if needsSpace { result.append(" ") }
                needsSpace = false
                result.append(scalar)
            }
        }
        return String(result)
    }

    /// Unicode's White_Space and the four ASCII separators, like Python's `str.isspace`.
    static func isWhitespace(_ scalar: Unicode.Scalar) -> Bool {
        (0x1C...0x1F).contains(scalar.value) || scalar.properties.isWhitespace
    }
}
