// The unigram language model: the most probable way to write a word in pieces.

/// Viterbi segmentation (Kudo, arXiv 1804.10959) over a trie of all pieces, in time linear in the
/// length of the word, with the tie rules of
/// https://github.com/huggingface/tokenizers/blob/v0.21.0/tokenizers/src/models/unigram/model.rs
struct Unigram: Sendable {
    private let trie: ByteTrie
    private let scores: [Double]
    private let unknownID: Int32
    private let unknownScore: Double
    /// The pieces `<0x00>` … `<0xFF>`, if unknown characters are written as bytes.
    private let bytePieces: [Int32]?

    init(pieces: [(piece: String, score: Double)], unknownID: Int32, byteFallback: Bool) {
        var strings = ByteStrings()
        for (piece, _) in pieces { strings.append(piece.utf8) }
        let trie = ByteTrie(strings)
        self.trie = trie
        scores = pieces.map(\.score)
        self.unknownID = unknownID
        unknownScore = (scores.min() ?? 0) - 10
        let hex = Array("0123456789ABCDEF".utf8)
        let bytes = (0..<256).compactMap { byte in
            trie.value(for: Array("<0x".utf8) + [hex[byte >> 4], hex[byte & 15]] + Array(">".utf8))
        }
        bytePieces = byteFallback && bytes.count == 256 ? bytes : nil
    }

    /// The best path to one place of the word.
    private struct Place {
        var score = 0.0
        /// Where the last piece starts; -1 if no path leads here.
        var start: Int32 = -1
        var id: Int32 = 0
    }

    /// Appends the pieces of `word` (UTF-8) to `ids`.
    func encode(_ word: ArraySlice<UInt8>, into ids: inout [Int32]) {
        let word = Array(word)
        var best = [Place](repeating: Place(), count: word.count + 1)
        func offer(_ score: Double, _ id: Int32, from start: Int, to end: Int) {
            guard best[end].start < 0 || score > best[end].score else { return }
            best[end] = Place(score: score, start: Int32(start), id: id)
        }
        var start = 0
        while start < word.count {
            let here = best[start].score
            let nextCharacter = min(start + Self.characterLength(word[start]), word.count)
            var coversCharacter = false
            var node = ByteTrie.root
            var end = start
            while end < word.count, let child = trie.child(of: node, word[end]) {
                node = child
                end += 1
                if let id = trie.value(of: node) {
                    offer(here + scores[Int(id)], id, from: start, to: end)
                    if end == nextCharacter { coversCharacter = true }
                }
            }
            if !coversCharacter {
                offer(here + unknownScore, unknownID, from: start, to: nextCharacter)
            }
            start = nextCharacter
        }
        appendPath(best, of: word, to: &ids)
    }

    /// Follows the best path back; a run of unknown characters is one unknown piece.
    private func appendPath(_ best: [Place], of word: [UInt8], to ids: inout [Int32]) {
        var path: [(id: Int32, range: Range<Int>)] = []
        var end = word.count
        while end > 0 {
            let start = Int(best[end].start)
            let id = best[end].id
            if id == unknownID, let last = path.last, last.id == unknownID {
                path[path.count - 1].range = start..<last.range.upperBound
            } else {
                path.append((id, start..<end))
            }
            end = start
        }
        for (id, range) in path.reversed() {
            if id != unknownID {
                ids.append(id)
            } else if let whole = trie.value(for: word[range]) {
                ids.append(whole)
            } else if let bytePieces {
                for byte in word[range] { ids.append(bytePieces[Int(byte)]) }
            } else {
                ids.append(unknownID)
            }
        }
    }

    private static func characterLength(_ lead: UInt8) -> Int {
        lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4
    }
}
