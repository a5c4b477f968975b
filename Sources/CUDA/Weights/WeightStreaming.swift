// Weights that do not fit: kept in pinned host memory, brought to the device group by group behind
// the computation.

import Tensors

/// The streamed weights of one group, laid out as one range.
private final class StreamedGroup {
    struct Member {
        let storage: DeviceStorage
        let pinned: PinnedBuffer
        let offset: Int
    }

    var members: [Member] = []
    var byteCount = 0
    /// The slot that holds the group now.
    var slot: Int?
}

/// Bytes of grouped weights that stay on the device.
private final class Residents {
    var byteCount = 0
}

/// Counts one resident tensor until its storage goes.
private final class ResidentToken {
    private let residents: Residents
    private let byteCount: Int

    init(_ residents: Residents, _ byteCount: Int) {
        self.residents = residents
        self.byteCount = byteCount
        residents.byteCount += byteCount
    }

    deinit { residents.byteCount -= byteCount }
}

/// Two slots on the device: one computes, the other fills.
final class WeightStreaming {
    private struct Slot {
        let buffer: DeviceBuffer
        weak var group: StreamedGroup?
        /// The copy into the slot has ended.
        let filled: Event
        /// The last operation that reads the slot has ended.
        let used: Event
        /// Time of the last use.
        var turn = 0
    }

    private let context: Context
    private let copies: Stream
    private let residentLimit: Int?
    private let residents = Residents()
    /// The last copy from the device to pinned memory.
    private let admitted: Event
    private var largestGroup = 0
    private var slots: [Slot] = []
    private var turn = 0
    private var current: StreamedGroup?

    /// Smaller tensors always stay on the device: together they are little.
    private static let smallest = 1 << 20

    init(_ context: Context, residentBytes limit: Int?) throws(CUDAError) {
        self.context = context
        residentLimit = limit
        copies = try Stream(context.device)
        admitted = try Event(context.device)
    }

    /// Counts a placed tensor of `group`, or moves it to host memory where the limit is reached.
    /// - Returns: the tensor to use from now on.
    func admit(_ tensor: Tensor, to group: WeightGroup?) -> Tensor {
        guard let group, let residentLimit, tensor.byteCount >= Self.smallest else { return tensor }
        if residents.byteCount + tensor.byteCount <= residentLimit {
            (tensor.storage as? DeviceStorage)?.token = ResidentToken(residents, tensor.byteCount)
            return tensor
        }
        let streamed = group.attachment as? StreamedGroup ?? StreamedGroup()
        group.attachment = streamed
        do {
            let pinned = try PinnedBuffer(context.device, byteCount: tensor.byteCount)
            context.stream.copy(
                tensor.pointer, to: pinned.bytes.baseAddress!, byteCount: tensor.byteCount)
            admitted.record(in: context.stream)
            let storage = DeviceStorage(streamed: tensor.byteCount)
            streamed.members.append(
                .init(storage: storage, pinned: pinned, offset: streamed.byteCount))
            streamed.byteCount += Arena.rounded(tensor.byteCount)
            largestGroup = max(largestGroup, streamed.byteCount)
            return Tensor(tensor.shape, tensor.dtype, storage: storage)
        } catch {
            context.device.fail(error)
            return tensor
        }
    }

    /// Makes the weights of `group` usable by what is queued from here on, and starts on `next`.
    func require(_ group: WeightGroup, next: WeightGroup?) {
        if let current, let slot = current.slot { slots[slot].used.record(in: context.stream) }
        current = group.attachment as? StreamedGroup
        if let current {
            guard let slot = fetch(current) else {
                // The device has failed and launches nothing more; addresses only have to exist.
                for member in current.members where member.storage.location == .null {
                    member.storage.location = DevicePointer(address: UInt64(Arena.alignment))
                }
                return
            }
            context.stream.wait(for: slots[slot].filled)
        }
        if let next = next?.attachment as? StreamedGroup, next !== current { _ = fetch(next) }
    }

    /// The slot of `group`, filling the one that was used longest ago if it is in none.
    private func fetch(_ group: StreamedGroup) -> Int? {
        guard context.device.failure == nil, prepareSlots() else { return nil }
        turn += 1
        if let slot = group.slot {
            slots[slot].turn = turn
            return slot
        }
        let slot = slots.indices.min { slots[$0].turn < slots[$1].turn }!
        if let old = slots[slot].group {
            old.slot = nil
            for member in old.members { member.storage.location = .null }
        }
        copies.wait(for: slots[slot].used)
        copies.wait(for: admitted)
        let base = slots[slot].buffer.pointer
        for member in group.members {
            let pinned = UnsafeRawPointer(member.pinned.bytes.baseAddress!)
            copies.copy(pinned, to: base + member.offset, byteCount: member.pinned.bytes.count)
            member.storage.location = base + member.offset
        }
        slots[slot].filled.record(in: copies)
        slots[slot].group = group
        slots[slot].turn = turn
        group.slot = slot
        return slot
    }

    /// Two slots as large as the largest group.
    private func prepareSlots() -> Bool {
        if let slot = slots.first, slot.buffer.byteCount >= largestGroup { return true }
        for slot in slots {
            slot.group?.members.forEach { $0.storage.location = .null }
            slot.group?.slot = nil
        }
        slots = []
        // The copy stream does not wait for what the main stream did with this memory before.
        context.stream.drain()
        copies.drain()
        do {
            for _ in 0..<2 {
                let slot = Slot(
                    buffer: context.buffer(byteCount: largestGroup),
                    filled: try Event(context.device), used: try Event(context.device))
                slots.append(slot)
            }
        } catch {
            context.device.fail(error)
        }
        return context.device.failure == nil
    }
}
