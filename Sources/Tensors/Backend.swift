/// The border between models and devices: everything that a model can ask of a device.

import Glibc
import Ground

/// A device that computes. Operations do not throw: a wrong shape stops the program with a message that names the
/// operation and its arguments, memory is planned beforehand, and device errors surface at `synchronize()`.
///
/// Models call methods such as `linear` or `attention`. These are defined in `Operations/`, together with what they
/// compute, and all of them end in `run`. Results have the dtype of the input `x` unless an operation says otherwise;
/// statistics and accumulators are f32.
///
/// Letters in shapes: `tokens` rows of the sequence, `dim` width of the model, T/H/W/C frames, height, width, channels.
public protocol Backend: AnyObject {
    /// Name for messages and reports: "CPU (2 threads)", "NVIDIA H200".
    var name: String { get }
    /// Which device of a group this is.
    var membership: Membership { get }

    /// Whether `sparseLinearAttention` can use this arithmetic on this device: some of them need certain cards.
    func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool
    /// Whether `linear` can multiply activations and weights of this format on this device.
    func supports(_ format: LinearFormat) -> Bool
    /// Whether the operations of `Operation.Training` are on this device.
    var supportsTraining: Bool { get }
    /// Whether the numbers of tensors matter to it. Where only their sizes do, nobody need make them.
    var readsNumbers: Bool { get }

    /// Starts an operation whose arguments are known to fit each other, without waiting for the device.
    /// - Returns: tensors of the shapes and types in `operation.facts.results`.
    func run(_ operation: Operation) -> [Tensor]

    // MARK: Memory

    /// Copies a host tensor (of a mapped file, for example) to this device as `dtype`; it is read-only from then on.
    /// Weights of a group may be copied later, when `require` names the group.
    func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor
    /// Copies a linear weight to this device, in the layout that its kernels need.
    /// A `.dense` weight is converted to `dtype`; quantised ones keep their format.
    func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?) -> LinearWeight
    /// Quantises a dense host weight while placing it.
    func place(_ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?)
        -> LinearWeight
    /// Copies the kernel of a convolution to this device, in the layout that its kernels need.
    /// kernel: [out, in, kernelTime, kernelHeight, kernelWidth], as checkpoints store it; bias: [out] or nil
    func place(convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?)
        -> ConvolutionWeight
    /// Must be called before the operations that use the weights of `group`.
    func require(_ group: WeightGroup)
    /// A copy in host memory, same dtype. Waits for the device.
    func read(_ x: Tensor) -> Tensor
    /// Queues a copy to host memory behind the work that is already queued, and does not wait for it.
    func beginRead(_ x: Tensor) -> HostCopy
    /// Whether two tensors of equal shape and dtype hold the same bits. Waits for the device.
    func equalBits(_ a: Tensor, _ b: Tensor) -> Bool
    /// Waits for all work, and throws the first error that the device has reported since the last call.
    func synchronize() throws
    /// Device memory in use now, and the most since the last `resetPeak()`.
    var memory: MemoryUse { get }
    /// Sets `memory.peak` to what is in use now.
    func resetPeak()
    /// How many bytes of grouped weights may stay on the device, from the next model on; the others visit it for each
    /// use. nil: all stay.
    func limitResidentWeights(to byteCount: Int?)
    /// Gives back to the system what nothing on this device holds any more. Waits for the device.
    func releaseUnusedMemory()
}

/// Bytes of device memory in use now (`current`), and the most in use at once (`peak`).
public struct MemoryUse: Sendable, Hashable {
    public var current, peak: Int
    public init(current: Int, peak: Int) {
        self.current = current
        self.peak = peak
    }
}

extension Backend {
    public var membership: Membership { .alone }

    public func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool { true }
    public func supports(_ format: LinearFormat) -> Bool { true }
    public var supportsTraining: Bool { true }
    public var readsNumbers: Bool { true }

    /// Copies a host tensor that belongs to no group to this device.
    public func place(_ host: Tensor, as dtype: DType) -> Tensor {
        place(host, as: dtype, in: nil)
    }

    /// Copies numbers that the host computes to this device, which are computed only if it reads them.
    /// - Parameter make: makes a host tensor of this shape.
    public func place(_ shape: Shape, as dtype: DType, _ make: () -> Tensor) -> Tensor {
        guard readsNumbers else { return place(.outline(shape, dtype), as: dtype) }
        let made = make()
        ensure(made.shape == shape, "place: \(shape) promised, \(made.shape) made")
        return place(made, as: dtype)
    }

    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        ConvolutionWeight(
            place(kernel.kernelChannelsLast(), as: dtype, in: group),
            bias: bias.map { place($0, as: .f32, in: group) })
    }

    public func require(_ group: WeightGroup) {}
    public func limitResidentWeights(to byteCount: Int?) {}
    public func releaseUnusedMemory() {}

    public func beginRead(_ x: Tensor) -> HostCopy { HostCopy(x.isOnHost ? x : read(x)) }

    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool { equalOnHost(a, b) }

    /// `equalBits`, on copies in host memory.
    public func equalOnHost(_ a: Tensor, _ b: Tensor) -> Bool {
        ensure(
            a.shape == b.shape && a.dtype == b.dtype,
            "equalBits: \(a.shape) \(a.dtype) and \(b.shape) \(b.dtype)")
        let (a, b) = (read(a), read(b))
        return memcmp(a.hostAddress, b.hostAddress, a.byteCount) == 0
    }
}
