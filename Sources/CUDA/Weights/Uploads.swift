// Copies from mapped files to the device: all cores copy into pinned memory, and the copy engine follows.

internal import Dispatch
internal import Glibc
internal import Ground
import Tensors

/// A ring of pinned buffers, which all cores fill while the copy engine empties it.
final class Uploads {
    /// One buffer of the ring. Its event marks the end of the last upload from it.
    private struct Slot {
        let pinned: PinnedBuffer
        let event: Event
    }

    let context: Context
    private var slots: [Slot] = []
    private var next = 0
    private static let slotCount = 4
    static let chunk = 16 << 20

    init(_ context: Context) throws(CUDAError) {
        self.context = context
    }

    /// Queues a copy of host bytes to the device. The bytes have been read when this returns.
    func copy(
        _ source: UnsafeRawPointer, to destination: DevicePointer, byteCount: Int, in stream: Stream
    ) {
        if byteCount <= 64 << 10 {
            return stream.copy(source, to: destination, byteCount: byteCount)
        }
        var start = 0
        while start < byteCount {
            let size = min(Self.chunk, byteCount - start)
            guard let slot = freeSlot() else { return }
            fill(slot.pinned, from: source + start, byteCount: size)
            stream.copy(
                UnsafeRawPointer(slot.pinned.bytes.baseAddress!), to: destination + start,
                byteCount: size)
            slot.event.record(in: stream)
            start += size
        }
    }

    /// The next buffer of the ring, after the device has read it; nil after a failure.
    private func freeSlot() -> Slot? {
        guard context.device.failure == nil else { return nil }
        if slots.count < Self.slotCount {
            do {
                let slot = Slot(
                    pinned: try PinnedBuffer(context.device, byteCount: Self.chunk),
                    event: try Event(context.device))
                slots.append(slot)
                return slot
            } catch {
                context.device.fail(error)
                return nil
            }
        }
        defer { next = (next + 1) % slots.count }
        slots[next].event.synchronize()
        return slots[next]
    }

    private func fill(_ target: PinnedBuffer, from source: UnsafeRawPointer, byteCount: Int) {
        // Whoever is ready takes the next part: equal shares fixed beforehand would wait for the slowest thread.
        let share = 512 << 10
        let destination = UInt(bitPattern: target.bytes.baseAddress!)
        let origin = UInt(bitPattern: source)
        DispatchQueue.concurrentPerform(iterations: ceilDivide(byteCount, share)) { part in
            let start = part * share
            memcpy(
                UnsafeMutableRawPointer(bitPattern: destination + UInt(start))!,
                UnsafeRawPointer(bitPattern: origin + UInt(start))!,
                min(share, byteCount - start))
        }
    }

    /// Frees the pinned buffers; the next upload allocates new ones.
    func release() {
        for slot in slots { slot.event.synchronize() }
        slots = []
        next = 0
    }
}
