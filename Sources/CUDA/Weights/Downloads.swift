// Copies from the device to pinned host memory, while the device continues to compute.

internal import Tensors

/// Pinned buffers for copies to the host. They are reused, because allocating one takes far longer than copying a few
/// frames.
final class Downloads {
    /// A buffer, and the end of the copy into it.
    struct Slot {
        let pinned: PinnedBuffer
        let event: Event
    }

    let context: Context
    private var free: [Slot] = []

    init(_ context: Context) { self.context = context }

    /// Queues a copy in the main stream. There the memory of `x` can be reused as soon as the copy is queued, and the
    /// copy takes only a fraction of a percent of the time in which the frames are computed.
    func begin(_ x: Tensor) -> HostCopy {
        let copy = DeviceToHost(x.shape, x.dtype, self, Result { try slot(of: x.byteCount) })
        if let slot = copy.slot {
            context.stream.copy(
                x.pointer, to: slot.pinned.bytes.baseAddress!, byteCount: x.byteCount)
            slot.event.record(in: context.stream)
        }
        return copy
    }

    /// The smallest free buffer that is large enough, or a new one.
    private func slot(of byteCount: Int) throws -> Slot {
        let fitting = free.indices.filter { free[$0].pinned.bytes.count >= byteCount }
        let best = fitting.min { free[$0].pinned.bytes.count < free[$1].pinned.bytes.count }
        if let best { return free.remove(at: best) }
        return Slot(
            pinned: try PinnedBuffer(context.device, byteCount: byteCount),
            event: try Event(context.device))
    }

    fileprivate func giveBack(_ slot: Slot) {
        // The caller may not have waited for the copy.
        slot.event.synchronize()
        free.append(slot)
    }
}

/// One copy, perhaps in progress.
private final class DeviceToHost: HostCopy {
    private let shape: Shape
    private let dtype: DType
    private let downloads: Downloads
    private let target: Result<Downloads.Slot, any Error>

    init(
        _ shape: Shape, _ dtype: DType, _ downloads: Downloads,
        _ target: Result<Downloads.Slot, any Error>
    ) {
        self.shape = shape
        self.dtype = dtype
        self.downloads = downloads
        self.target = target
        super.init()
    }

    deinit { if let slot { downloads.giveBack(slot) } }

    var slot: Downloads.Slot? { try? target.get() }

    override var isComplete: Bool { slot?.event.isComplete ?? true }

    override var isAsynchronous: Bool { true }

    /// The returned tensor uses the pinned buffer, which is reused when neither this copy nor the tensor exists any
    /// more.
    override func wait() throws -> Tensor {
        let slot = try target.get()
        slot.event.synchronize()
        if let failure = downloads.context.device.takeFailure() { throw failure }
        return Tensor(
            shape, dtype,
            storage: HostStorage(
                borrowing: UnsafeRawBufferPointer(slot.pinned.bytes), owner: self))
    }
}
