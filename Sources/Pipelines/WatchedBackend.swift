/// What a run needs to know of its device while a model computes: progress, and a way out.

import Tensors

/// Passes operations on until the task is cancelled; from then on nothing is computed, so that the model's code
/// comes to its end at once. Results after that are meaningless, and whoever asked for them must check for
/// cancellation.
final class WatchedBackend: ForwardingBackend {
    private let nothing = NullBackend()
    /// Told the number of weight groups used since it was set.
    var afterGroup: ((Int) -> Void)? {
        didSet { groups = 0 }
    }
    private var groups = 0
    /// Told the bytes of every weight that was placed.
    var afterPlacing: ((Int) -> Void)?

    override var base: any Backend { Task.isCancelled ? nothing : super.base }

    /// The device itself.
    var device: any Backend { super.base }

    override func require(_ group: WeightGroup) {
        super.require(group)
        groups += 1
        afterGroup?(groups)
    }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        defer { afterPlacing?(host.byteCount) }
        return super.place(host, as: dtype, in: group)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        defer { afterPlacing?(weight.matrix.byteCount) }
        return super.place(weight, as: dtype, in: group)
    }

    override func place(
        _ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?
    ) -> LinearWeight {
        defer { afterPlacing?(weight.byteCount) }
        return super.place(weight, quantizedTo: format, in: group)
    }

    override func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        defer { afterPlacing?(kernel.byteCount) }
        return super.place(convolution: kernel, bias: bias, as: dtype, in: group)
    }

    /// Errors of the device count even where nobody waits for results any more.
    override func synchronize() throws { try device.synchronize() }
    override var memory: MemoryUse { device.memory }
    override func resetPeak() { device.resetPeak() }
    override var name: String { device.name }
}
