/// What a run takes of the host's memory against what the process may have.

public import Ground

/// More memory is needed on a CPU than this process can ever have. Bytes.
public struct HostMemoryShortage: Error, Sendable, Hashable, CustomStringConvertible {
    public var needed, most: Int
    /// Whether it is the process that is limited, and not the machine or its container.
    public var isOfProcess: Bool

    public var description: String {
        "this request needs at least \(describe(bytes: needed)) of memory, "
            + (isOfProcess
                ? "the process may take \(describe(bytes: most)) (ulimit -v): raise that, or "
                : "the machine or container has \(describe(bytes: most)): ")
            + "choose fewer frames or a smaller size"
    }
}

extension HostMemory {
    /// The process itself, beside its tensors: stacks and heaps of threads, frames on their way to the encoder. Addresses,
    /// not all of them used.
    private static let process = 320 << 20

    /// Refuses a run on the CPU that cannot end well.
    /// - Parameters:
    ///   - computed: bytes that are computed and in no file, at most at once.
    ///   - whole: with the weights, which may be mapped from their files and come and go.
    /// - Returns: what to tell where it may end well: memory that others use now can become free.
    public func check(computed: Int, whole: Int) throws(HostMemoryShortage) -> String? {
        if computed > most {
            throw HostMemoryShortage(needed: computed, most: most, isOfProcess: false)
        }
        if let addresses, whole + Self.process > addresses {
            throw HostMemoryShortage(
                needed: whole + Self.process, most: addresses, isOfProcess: true)
        }
        guard whole > available else { return nil }
        return
            "the run takes about \(describe(bytes: whole)) of memory, \(describe(bytes: available)) are free: it may be "
            + "slow, or be ended by the system"
    }
}
