/// A backend that forwards everything to another one: the base class of those that watch, time or alter it.

/// Forwards every requirement to `base`. A subclass overrides what it changes; all operations pass through `run`.
open class ForwardingBackend: Backend {
    private let target: any Backend
    /// The backend that does the work.
    open var base: any Backend { target }

    public init(_ base: any Backend) { target = base }

    open func run(_ operation: Operation) -> [Tensor] { base.run(operation) }

    open var name: String { base.name }
    open var membership: Membership { base.membership }
    open func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool {
        base.supports(arithmetic)
    }
    open func supports(_ format: LinearFormat) -> Bool { base.supports(format) }
    open var supportsTraining: Bool { base.supportsTraining }
    open var readsNumbers: Bool { base.readsNumbers }

    open func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        base.place(host, as: dtype, in: group)
    }
    open func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        base.place(weight, as: dtype, in: group)
    }
    open func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        base.place(weight, quantizedTo: format, in: group)
    }
    open func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        base.place(convolution: kernel, bias: bias, as: dtype, in: group)
    }
    open func require(_ group: WeightGroup) { base.require(group) }
    open func read(_ x: Tensor) -> Tensor { base.read(x) }
    open func beginRead(_ x: Tensor) -> HostCopy { base.beginRead(x) }
    open func equalBits(_ a: Tensor, _ b: Tensor) -> Bool { base.equalBits(a, b) }
    open func synchronize() throws { try base.synchronize() }
    open var memory: MemoryUse { base.memory }
    open func resetPeak() { base.resetPeak() }
    open func limitResidentWeights(to byteCount: Int?) {
        base.limitResidentWeights(to: byteCount)
    }
    open func releaseUnusedMemory() { base.releaseUnusedMemory() }
}
