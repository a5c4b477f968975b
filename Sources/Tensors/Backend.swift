/// The border between models and machines: what a device can be asked for.

import Glibc
import Ground

/// A machine that computes. Operations do not throw: a wrong shape fails with a message that names
/// the operation and its arguments, memory is planned before, device errors surface at `synchronize()`.
///
/// Models ask by methods such as `linear` or `attention`, which stand with what they mean in `Operations/` and
/// end in `run`. Activations keep the dtype of their input (`x`) unless an operation says otherwise; statistics and
/// accumulators are f32.
///
/// Letters: `tokens` rows of the sequence, `dim` model width, T/H/W/C frames, height, width, channels.
public protocol Backend: AnyObject {
    /// For messages and reports: "CPU (2 threads)", "NVIDIA H200".
    var name: String { get }

    /// Whether `sparseLinearAttention` computes in this arithmetic here: some need certain cards.
    func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool
    /// Whether `linear` multiplies weights of this format here.
    func supports(_ format: ActivationFormat) -> Bool
    /// Whether the operations of `Operation.Training` are here.
    var supportsTraining: Bool { get }

    /// Carries out an operation whose arguments are known to fit each other; does not wait for the device.
    /// → the results that the operation's facts tell of
    func run(_ operation: Operation) -> [Tensor]

    // MARK: Memory

    /// Brings a host tensor (a mapped file's, say) to this device as `dtype`; read-only from then on.
    /// Weights of a group may be left to stream in when `require` names the group.
    func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor
    /// Brings a linear weight to this device in the layout its kernels want.
    /// A `.dense` weight becomes `dtype`; quantised ones keep their format.
    func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?) -> LinearWeight
    /// Quantises a dense host weight while placing it.
    func place(_ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?)
        -> LinearWeight
    /// Brings the kernel of a convolution to this device in the layout its kernels want.
    /// kernel: [out, in, kernelTime, kernelHeight, kernelWidth], as checkpoints store it; bias: [out] or nil
    func place(convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?)
        -> ConvolutionWeight
    /// Before the operations that use the weights of `group`.
    func require(_ group: WeightGroup)
    /// A copy in host memory, same dtype. Waits for the device.
    func read(_ x: Tensor) -> Tensor
    /// Begins a copy in host memory, behind the work that is queued, and does not wait for it.
    func beginRead(_ x: Tensor) -> HostCopy
    /// Whether two tensors of equal shape and dtype hold the same bits. Waits for the device.
    func equalBits(_ a: Tensor, _ b: Tensor) -> Bool
    /// Waits for all work and throws the first error that the device reported since the last call.
    func synchronize() throws
    /// Bytes of device memory held now and at most since the last `resetPeak()`.
    var memory: MemoryUse { get }
    func resetPeak()
}

/// Bytes of device memory.
public struct MemoryUse: Sendable, Hashable {
    public var current, peak: Int
    public init(current: Int, peak: Int) {
        self.current = current
        self.peak = peak
    }
}

extension Backend {
    public func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool { true }
    public func supports(_ format: ActivationFormat) -> Bool { true }
    public var supportsTraining: Bool { true }

    public func place(_ host: Tensor, as dtype: DType) -> Tensor {
        place(host, as: dtype, in: nil)
    }

    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        ConvolutionWeight(
            place(kernel.kernelChannelsLast(), as: dtype, in: group),
            bias: bias.map { place($0, as: .f32, in: group) })
    }

    public func require(_ group: WeightGroup) {}

    public func beginRead(_ x: Tensor) -> HostCopy { HostCopy(x.isOnHost ? x : read(x)) }

    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool { equalOnHost(a, b) }

    /// `equalBits` by copies in host memory.
    public func equalOnHost(_ a: Tensor, _ b: Tensor) -> Bool {
        ensure(
            a.shape == b.shape && a.dtype == b.dtype,
            "equalBits: \(a.shape) \(a.dtype) and \(b.shape) \(b.dtype)")
        let (a, b) = (read(a), read(b))
        return memcmp(a.hostAddress, b.hostAddress, a.byteCount) == 0
    }
}
