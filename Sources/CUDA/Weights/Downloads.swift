// From the device to pinned host memory, while the device goes on.

internal import Tensors

/// Pinned buffers for copies to the host. They are used again: making one takes far longer than
/// copying a few frames.
final class Downloads {
    /// A buffer, and the end of the copy into it.
    struct Slot {
        let pinned: PinnedBuffer
        let event: Event
    }

    let context: Context
    private var free: [Slot] = []

    init(_ context: Context) { self.context = context }

    /// Queues the copy in the main stream: it takes a fraction of a percent of the time in which the frames
    /// were computed, and the memory of `x` may be given out again as soon as it is queued.
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
        // Whoever did not wait for the copy leaves it behind in the stream.
        slot.event.synchronize()
        free.append(slot)
    }
}

/// One copy on its way.
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

    /// The tensor lies in the pinned buffer, which is used again when nobody holds either.
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
