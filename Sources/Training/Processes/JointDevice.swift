/// Devices that need the other processes of a run while a net computes.

import Tensors

/// A device some of whose operations the processes carry out together.
///
/// Operations do not throw: after a failure nothing is computed any more, neither here nor in a joint device below or
/// above, and `check` says why. What models and recipes return then has sizes and no numbers.
class JointDevice: ForwardingBackend {
    /// What has gone wrong between the processes.
    private final class Failure {
        var error: (any Error)?
    }
    private let failure: Failure
    private let nothing = NullBackend()

    override init(_ base: any Backend) {
        failure = (base as? JointDevice)?.failure ?? Failure()
        super.init(base)
    }

    override var base: any Backend { hasFailed ? nothing : super.base }
    var hasFailed: Bool { failure.error != nil }

    /// What the processes do together.
    /// - Returns: nil where that fails, or has failed before.
    func together<Result>(_ body: () throws -> Result) -> Result? {
        if hasFailed { return nil }
        do { return try body() } catch {
            failure.error = error
            return nil
        }
    }

    /// Throws what has gone wrong.
    func check() throws {
        if let error = failure.error { throw error }
    }

    override func synchronize() throws {
        try check()
        try super.synchronize()
    }
}
