/// What a run needs to know of its device while a model computes: progress, and a way out.

import Synchronization
import Tensors

/// Whether a run is still wanted: set by whoever holds its handle, from any thread.
final class Cancellation: Sendable {
    private let flag = Atomic(false)
    func cancel() { flag.store(true, ordering: .relaxed) }
    /// The task that carries out the run may be cancelled too.
    var isCancelled: Bool { flag.load(ordering: .relaxed) || Task.isCancelled }
}

/// Passes operations on until the run is cancelled; from then on nothing is computed, so that the model's code comes to
/// its end at once. What it then returns is no result: `check` throws, and the stage's state is dropped.
final class SupervisedBackend: ForwardingBackend {
    private let cancellation: Cancellation
    private let nothing = NullBackend()
    /// Once something was left out, nothing that follows is a result.
    private var wasInterrupted = false
    private var groups = 0
    private var onGroup: ((Int) -> Void)?
    private var onPlacing: ((Int) -> Void)?

    init(_ base: any Backend, _ cancellation: Cancellation) {
        self.cancellation = cancellation
        super.init(base)
    }

    override var base: any Backend {
        if wasInterrupted || cancellation.isCancelled {
            wasInterrupted = true
            return nothing
        }
        return super.base
    }

    /// Throws where the run is not wanted any more or anything was left out.
    func check() throws {
        if wasInterrupted || cancellation.isCancelled { throw CancellationError() }
    }

    /// Runs `body` and tells the number of weight groups that it has used so far.
    func countingGroups<Result>(
        _ tell: @escaping (Int) -> Void, _ body: () throws -> Result
    ) rethrows -> Result {
        (groups, onGroup) = (0, tell)
        defer { onGroup = nil }
        return try body()
    }

    /// Runs `body` and tells the bytes of every weight that it places.
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

    /// Errors of the device count even where nobody waits for results any more.
    override func synchronize() throws { try super.base.synchronize() }
    override var memory: MemoryUse { super.base.memory }
    override func resetPeak() { super.base.resetPeak() }
    override var name: String { super.base.name }
}
