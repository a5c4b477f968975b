/// Which bytes of a file are there.

/// A set of byte positions as ranges: sorted, neither empty nor touching each other.
struct ByteRanges: Sendable, Equatable {
    private(set) var ranges: [Range<Int>] = []

    init(_ ranges: [Range<Int>] = []) {
        for range in ranges { insert(range) }
    }

    /// The number of bytes.
    var count: Int { ranges.reduce(0) { $0 + $1.count } }

    /// How many bytes are there from the beginning on.
    var prefix: Int { ranges.first.map { $0.lowerBound == 0 ? $0.upperBound : 0 } ?? 0 }

    mutating func insert(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        // Most ranges continue the one before them.
        let start = ranges.firstIndex { $0.upperBound >= range.lowerBound } ?? ranges.endIndex
        var (end, merged) = (start, range)
        while end < ranges.endIndex, ranges[end].lowerBound <= range.upperBound {
            merged =
                min(
                    merged.lowerBound, ranges[end].lowerBound)..<max(
                    merged.upperBound, ranges[end].upperBound)
            end += 1
        }
        ranges.replaceSubrange(start..<end, with: [merged])
    }

    /// The first bytes of `0..<size` that are in none of the ranges, at most `limit` of them; nil where none is missing.
    func firstGap(in size: Int, limit: Int) -> Range<Int>? {
        var start = 0
        for range in ranges {
            if range.lowerBound > start { break }
            start = range.upperBound
        }
        guard start < size else { return nil }
        let next = ranges.first { $0.lowerBound > start }?.lowerBound ?? size
        return start..<min(next, size, start + limit)
    }
}
