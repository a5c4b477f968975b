/// Progress and cancellation while a model computes.

import Synchronization
import Tensors

/// Whether a run has been cancelled. May be set from any thread.
final class Cancellation: Sendable {
    private let flag = Atomic(false)
    func cancel() { flag.store(true, ordering: .relaxed) }
    /// True also if the task that executes the run has been cancelled.
    var isCancelled: Bool { flag.load(ordering: .relaxed) || Task.isCancelled }
}

/// Forwards operations until the run is cancelled. From then on it computes nothing, so that the model's code returns
/// quickly. What that returns is meaningless: `check` throws, and the stage's state is dropped.
final class SupervisedBackend: ForwardingBackend {
    private let cancellation: Cancellation
    private let nothing: NullBackend
    /// Whether an operation has been left out, which makes everything after it meaningless.
    private var wasInterrupted = false
    private var groups = 0
    private var onGroup: ((Int) -> Void)?
    private var onPlacing: ((Int) -> Void)?

    init(_ base: any Backend, _ cancellation: Cancellation) {
        self.cancellation = cancellation
        let membership = base.membership
        nothing = NullBackend(
            membership: Membership(index: membership.index, of: membership.count))
        super.init(base)
    }

    override var base: any Backend {
        if wasInterrupted || cancellation.isCancelled {
            if !wasInterrupted {
                // The other devices of a group must not wait for this one, nor go on.
                cancellation.cancel()
                super.base.membership.meeting?.breakOff()
            }
            wasInterrupted = true
            return nothing
        }
        return super.base
    }

    override var membership: Membership { super.base.membership }

    /// Throws a `CancellationError` if the run has been cancelled or an operation has been left out.
    func check() throws {
        if wasInterrupted || cancellation.isCancelled { throw CancellationError() }
    }

    /// Runs `body` and calls `tell` with the number of weight groups that it has used so far.
    func countingGroups<Result>(
        _ tell: @escaping (Int) -> Void, _ body: () throws -> Result
    ) rethrows -> Result {
        (groups, onGroup) = (0, tell)
        defer { onGroup = nil }
        return try body()
    }

    /// Runs `body` and calls `tell` with the bytes of every weight that it places.
    func countingBytes<Result>(
        _ tell: @escaping (Int) -> Void, _ body: () throws -> Result
    ) rethrows -> Result {
        onPlacing = tell
        defer { onPlacing = nil }
        return try body()
    }

    override func require(_ group: WeightGroup) {
        super.require(group)
        groups += 1
        onGroup?(groups)
    }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        defer { onPlacing?(host.byteCount) }
        return super.place(host, as: dtype, in: group)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        defer { onPlacing?(weight.matrix.byteCount) }
        return super.place(weight, as: dtype, in: group)
    }

    override func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        defer { onPlacing?(weight.byteCount) }
        return super.place(weight, quantizedTo: format, in: group)
    }

    override func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        defer { onPlacing?(kernel.byteCount) }
        return super.place(convolution: kernel, bias: bias, as: dtype, in: group)
    }

    /// Asks the device even after a cancellation: its errors still matter.
    override func synchronize() throws { try super.base.synchronize() }
    override var memory: MemoryUse { super.base.memory }
    override func resetPeak() { super.base.resetPeak() }
    override var name: String { super.base.name }
}
