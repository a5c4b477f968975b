/// What a small model was trained on, so that whoever asks for something else can be told.

/// Of models that know little; the published ones say nothing of the kind.
public struct Training: Sendable, Hashable, Codable {
    /// "one simple object on a floor"
    public var subject: String
    public var width, height, frames: Int
    /// Of the longest descriptions.
    public var words: Int
    /// All words of the descriptions in lower case, with spaces between them.
    public var vocabulary: String
    /// Of scripts that do not separate words.
    public var characters: String?
    /// Where more is said.
    public var page: String?

    public init(
        subject: String, width: Int, height: Int, frames: Int, words: Int, vocabulary: String,
        characters: String? = nil, page: String? = nil
    ) {
        self.subject = subject
        (self.width, self.height, self.frames) = (width, height, frames)
        self.words = words
        self.vocabulary = vocabulary
        self.characters = characters
        self.page = page
    }
}

extension Training {
    /// Words of a prompt that no description had, in its order, each once.
    public func unknownWords(in prompt: String) -> [String] {
        let known = Set(vocabulary.split(separator: " ").map(String.init))
        let knownCharacters = Set(characters ?? "")
        var found: [String] = []
        func add(_ word: String) {
            if !found.contains(word) { found.append(word) }
        }
        var word = ""
        func end() {
            while word.last == "'" { word.removeLast() }
            let lower = word.lowercased()
            word = ""
            // "the camera's"
            let stem = lower.hasSuffix("'s") ? String(lower.dropLast(2)) : lower
            if !lower.isEmpty, Int(lower) == nil, !known.contains(lower), !known.contains(stem) {
                add(lower)
            }
        }
        for character in prompt {
            if character.isIdeographic {
                end()
                if !knownCharacters.contains(character) { add(String(character)) }
            } else if character.isLetter || character.isNumber {
                word.append(character)
            } else if "'’".contains(character), !word.isEmpty {
                word.append("'")
            } else {
                end()
                // Pictures that stand for words.
                let first = character.unicodeScalars.first
                if first?.properties.isEmojiPresentation == true { add(String(character)) }
            }
        }
        end()
        return found
    }

    /// What a request asks beyond it: "832x480", "the word cat"; empty where nothing.
    public func excess(prompt: String, width: Int, height: Int, frames: Int) -> [String] {
        var excess: [String] = []
        if (width, height) != (self.width, self.height) { excess.append("\(width)x\(height)") }
        if frames > self.frames { excess.append("\(frames) frames") }
        let count = prompt.split(whereSeparator: \.isWhitespace).count
        if count > words { excess.append("\(count) words") }
        let unknown = unknownWords(in: prompt)
        if !unknown.isEmpty {
            let list = unknown.prefix(5).joined(separator: ", ")
            let more = unknown.count > 5 ? " and \(unknown.count - 5) more" : ""
            excess.append("the word\(unknown.count == 1 ? "" : "s") \(list)\(more)")
        }
        return excess
    }
}

extension Character {
    /// Of Chinese and scripts that use its characters.
    fileprivate var isIdeographic: Bool {
        unicodeScalars.first?.properties.isIdeographic == true
    }
}
