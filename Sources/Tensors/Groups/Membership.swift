/// Which device of a group a backend is, and how work is shared out.

import Ground

/// A device's place among those that compute one thing together. Every device runs the same model code on its share of
/// the rows; what differs is `index`.
public struct Membership: Sendable {
    public let index: Int
    public let count: Int
    /// nil where nothing is handed over: alone, or while a run is planned.
    public let meeting: Meeting?

    /// One device that computes by itself.
    public static let alone = Membership(index: 0, of: 1)

    /// A member that meets nobody: only the sizes of its shares matter.
    public init(index: Int, of count: Int) {
        ensure((0..<count).contains(index), "Membership: device \(index) of \(count)")
        (self.index, self.count, meeting) = (index, count, nil)
    }

    public init(index: Int, in meeting: Meeting) {
        ensure(
            (0..<meeting.count).contains(index), "Membership: device \(index) of \(meeting.count)")
        (self.index, count, self.meeting) = (index, meeting.count, meeting)
    }

    public var isAlone: Bool { count == 1 }
    /// The one that speaks for the group.
    public var isFirst: Bool { index == 0 }

    /// How rows of a sequence are shared out: blocks of 128, which share the scales of int8 codes, stay whole.
    public func sequence(_ rows: Int) -> Shares {
        Shares(of: rows, unit: Int8Blocks.side, among: count)
    }

    public func heads(_ heads: Int) -> Shares { Shares(of: heads, unit: 1, among: count) }

    /// Whether all devices say so. All of them ask at the same point.
    public func agree(_ value: Bool) -> Bool {
        guard let meeting else { return value }
        let votes = meeting.exchange(Vote(value), of: index) as? [Vote]
        return votes?.allSatisfy(\.value) ?? false
    }

    /// What the first device has, on every one. All of them ask at the same point.
    /// - Returns: nil where the meeting was broken off.
    public func share<Value>(_ value: Value?) -> Value? {
        guard let meeting else { return value }
        return (meeting.exchange(Handed(value), of: index)?[0] as? Handed<Value>)?.value
    }
}

private final class Vote {
    let value: Bool
    init(_ value: Bool) { self.value = value }
}

private final class Handed<Value> {
    let value: Value?
    init(_ value: Value?) { self.value = value }
}

/// A number of things shared out to devices in order, in whole units and as evenly as these allow. The last unit is
/// larger where the count is no multiple, so that no share is smaller than a unit but an empty one; empty shares are the
/// last ones.
public struct Shares: Sendable, Hashable, CustomStringConvertible {
    public let ranges: [Range<Int>]

    public init(of count: Int, unit: Int, among devices: Int) {
        let units = count == 0 ? 0 : max(1, count / unit)
        var start = 0
        ranges = (0..<devices).map { device in
            let own = units / devices + (device < units % devices ? 1 : 0)
            defer { start += own }
            func end(_ unitCount: Int) -> Int { unitCount == units ? count : unitCount * unit }
            return end(start)..<end(start + own)
        }
    }

    private init(_ ranges: [Range<Int>]) { self.ranges = ranges }

    public subscript(device: Int) -> Range<Int> { ranges[device] }
    public var total: Int { ranges.last?.upperBound ?? 0 }
    public var smallest: Int { ranges.map(\.count).min() ?? 0 }

    /// The same shares of things that are `factor` times as many.
    public func scaled(by factor: Int) -> Shares {
        Shares(ranges.map { $0.lowerBound * factor..<$0.upperBound * factor })
    }

    /// The same in blocks of `side`, of which none is shared by two.
    public func blocks(of side: Int) -> Shares {
        Shares(ranges.map { ceilDivide($0.lowerBound, side)..<ceilDivide($0.upperBound, side) })
    }

    public var description: String { "\(ranges)" }
}
