/// Where the threads of a group of devices wait for each other.

import Ground

/// A place of meeting for a fixed number of threads, one for each device.
///
/// It hands over values on the host only; what devices do by themselves is ordered by their own means. A meeting that
/// is broken off lets everybody go at once, whoever is missing: what they were to hand over is then not there. It is
/// made good by `reset`, when every thread has come back from what it was doing.
public final class Meeting: @unchecked Sendable {
    public let count: Int
    /// Guards everything below.
    private let monitor = Monitor()
    /// Rounds that somebody has come to and not everybody has left, by number.
    private var rounds: [Int: Round] = [:]
    /// The next round of each thread.
    private var next: [Int]
    private var broken = false

    private struct Round {
        var values: [AnyObject?]
        var present = 0
        var gone = 0
    }

    public init(count: Int) {
        ensure(count > 0, "Meeting of \(count)")
        self.count = count
        next = Array(repeating: 0, count: count)
    }

    /// Hands over a value and takes everybody's, in the order of the devices. All threads come to the same rounds in the
    /// same order. Waits for whoever is missing.
    /// - Returns: nil where the meeting was broken off.
    public func exchange(_ value: AnyObject, of index: Int) -> [AnyObject]? {
        monitor.locked {
            let number = next[index]
            next[index] += 1
            if broken { return nil }
            rounds[number, default: Round(values: Array(repeating: nil, count: count))]
                .values[index] = value
            rounds[number]!.present += 1
            if rounds[number]!.present == count { monitor.announce() }
            monitor.wait { broken || rounds[number]!.present == count }
            // Whoever is late for a round that all came to still gets what was handed over.
            if rounds[number]!.present < count { return nil }
            let values = rounds[number]!.values
            rounds[number]!.gone += 1
            if rounds[number]!.gone == count { rounds[number] = nil }
            return values.map { $0! }
        }
    }

    /// Changes something that `wait` looks at.
    public func announce(_ change: () -> Void) {
        monitor.locked {
            change()
            monitor.announce()
        }
    }

    /// Waits until something that is announced has come true.
    /// - Returns: false where the meeting was broken off.
    public func wait(until isTrue: () -> Bool) -> Bool {
        monitor.locked {
            monitor.wait { broken || isTrue() }
            return isTrue()
        }
    }

    /// Lets everybody go: some thread will not come.
    public func breakOff() {
        monitor.locked {
            broken = true
            monitor.announce()
        }
    }

    public var isBroken: Bool { monitor.locked { broken } }

    /// A new beginning, for when no thread is in a round.
    public func reset() {
        monitor.locked {
            rounds = [:]
            next = Array(repeating: 0, count: count)
            broken = false
        }
    }
}
