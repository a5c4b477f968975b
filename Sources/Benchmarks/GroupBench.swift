/// One measurement on all devices of a group at once.

import Dispatch
public import Runs
import Synchronization
import Tensors

/// Has every device carry out the same measurement, each on a thread of its own.
public enum GroupBench {
    private final class Other: @unchecked Sendable {
        let go = DispatchSemaphore(value: 0)
        let opened = DispatchSemaphore(value: 0)
        let done = DispatchSemaphore(value: 0)
        let failure = Mutex<(any Error)?>(nil)
        let isWanted = Atomic(false)
    }

    /// - Parameters:
    ///   - openers: of each device, called on its own thread.
    ///   - first: on the first device, on the calling thread.
    ///   - others: on the others, at the same time.
    /// - Throws: the first error on any device.
    public static func run(
        _ openers: [@Sendable () throws -> OpenedDevice],
        first: (OpenedDevice) throws -> Void,
        others: @escaping @Sendable (OpenedDevice) throws -> Void
    ) throws {
        let device = try openers[0]()
        let members = openers.dropFirst().map { open -> Other in
            let other = Other()
            DispatchQueue(label: "device").async {
                do {
                    let device = try open()
                    other.opened.signal()
                    other.go.wait()
                    if other.isWanted.load(ordering: .acquiring) {
                        do { try others(device) } catch {
                            device.backend.membership.meeting?.breakOff()
                            throw error
                        }
                    }
                } catch {
                    other.failure.withLock { $0 = error }
                    other.opened.signal()
                }
                other.done.signal()
            }
            return other
        }
        members.forEach { $0.opened.wait() }
        let isWhole = members.allSatisfy { $0.failure.withLock { $0 == nil } }
        for other in members {
            other.isWanted.store(isWhole, ordering: .releasing)
            other.go.signal()
        }
        let result = Result { if isWhole { try first(device) } }
        if case .failure = result { device.backend.membership.meeting?.breakOff() }
        members.forEach { $0.done.wait() }
        for (index, other) in members.enumerated() {
            if let failure = other.failure.withLock({ $0 }) {
                throw GroupError(
                    device: "device \(index + 2) of \(openers.count)", underlying: failure)
            }
        }
        try result.get()
    }
}
