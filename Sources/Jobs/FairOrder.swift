/// Which of the waiting jobs comes next.

/// Highest response ratio next: (waiting + own time) / own time. Short jobs overtake long ones, nobody waits for ever, and
/// equal ones go in the order in which they came. (Brinch Hansen, 1971.)
public struct FairOrder: Sendable {
    private struct Entry: Sendable {
        let id: String
        let number: Int
        let created, cost: Double
    }
    private var entries: [Entry] = []
    /// What a unit of cost takes, by the jobs that were carried out. One number for all jobs, so that equal ones stay in
    /// order whatever was learned between them.
    public private(set) var secondsPerCost: Double

    /// - Parameter secondsPerCost: a first guess.
    public init(secondsPerCost: Double) { self.secondsPerCost = secondsPerCost }

    public var count: Int { entries.count }
    public var isEmpty: Bool { entries.isEmpty }
    /// What all of them take.
    public var seconds: Double { entries.reduce(0) { $0 + $1.cost } * secondsPerCost }

    /// A job waits.
    public mutating func add(_ job: Job) {
        guard !contains(job.id) else { return }
        entries.append(
            Entry(id: job.id, number: job.number, created: job.created, cost: job.cost))
    }

    public func contains(_ id: String) -> Bool { entries.contains { $0.id == id } }
    public mutating func remove(_ id: String) { entries.removeAll { $0.id == id } }

    /// Takes the job whose turn it is.
    /// - Parameter time: now, in seconds since 1970.
    public mutating func next(at time: Double) -> String? {
        let index = entries.indices.min { precedes(entries[$0], entries[$1], time) }
        return index.map { entries.remove(at: $0).id }
    }

    /// How many come before a job, as things are now; nil where it does not wait.
    public func countAhead(of id: String, at time: Double) -> Int? {
        guard let own = entries.first(where: { $0.id == id }) else { return nil }
        return entries.count { $0.id != id && precedes($0, own, time) }
    }

    /// A better first guess, before anything was carried out.
    public mutating func guess(secondsPerCost: Double) { self.secondsPerCost = secondsPerCost }

    /// A job was carried out on loaded models. The last ones count most.
    public mutating func learn(seconds: Double, cost: Double) {
        guard cost > 0, seconds > 0 else { return }
        secondsPerCost = 0.7 * secondsPerCost + 0.3 * seconds / cost
    }

    /// No job is so short that it is always first.
    private func ratio(_ entry: Entry, _ time: Double) -> Double {
        max(time - entry.created, 0) / max(entry.cost * secondsPerCost, 0.01)
    }

    private func precedes(_ a: Entry, _ b: Entry, _ time: Double) -> Bool {
        // Of equal length the one that came first, whatever a clock says that was set back.
        if a.cost == b.cost { return a.number < b.number }
        let (first, second) = (ratio(a, time), ratio(b, time))
        return first == second ? a.number < b.number : first > second
    }
}
