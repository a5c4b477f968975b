// Weights in groups: which of them stay on the device, and how they are copied to it during the computation.
//
// Placing a weight of a mapped file copies nothing; it only makes a `Promise`. When the group of the weight is
// required, the host copies its bytes into pinned memory, and the copy engine transfers them to the device in a stream
// of its own. The host runs ahead of the device: while it works on one group, the device computes with the group
// before. So the transfer is hidden if the computation with a group takes longer.
//
// A weight that leaves the device after each use is called a visitor. Visitors share two slots of device memory. In a group
// of GPUs they come from where they are held, if they are; see `SharedWeights.swift`.

import Tensors

/// One weight that is not on the device yet: its source, its conversion and its storage.
private final class Promise {
    let storage: DeviceStorage
    let source: Tensor
    let recipe: Recipe
    /// Which device of a group copies it from the host for all.
    let owner: Int
    /// Where another device has it.
    var held: Held?

    init(_ storage: DeviceStorage, from source: Tensor, _ recipe: Recipe, owner: Int = 0) {
        (self.storage, self.source, self.recipe, self.owner) = (storage, source, recipe, owner)
    }
}

/// The weights of a group that are not simply on the device.
private final class GroupWeights {
    /// Weights that are shared with the other devices of a group, until all have told what they hold.
    var unannounced: [Promise] = []
    /// Whether only their owners keep them.
    var isHeldByOwners = false
    /// Weights that will stay and have memory, but have not been copied yet.
    var expected: [Promise] = []
    /// Weights that are copied for each use, and their offsets in a slot.
    var visitors: [(promise: Promise, offset: Int)] = []
    var byteCount = 0
    /// The slot that contains the visitors now.
    var slot: Slot?
}

/// Device memory for the visitors of one group at a time.
private final class Slot {
    let buffer: DeviceBuffer
    weak var group: GroupWeights?
    /// Marks the end of the last operation that reads the slot.
    let used: Event
    /// When the slot was last used, as a count of uses.
    var turn = 0

    init(_ buffer: DeviceBuffer, used: Event) {
        self.buffer = buffer
        self.used = used
    }
}

/// The deferred weights of a set, whose memory is allocated all at once when the first group that stays is required;
/// and the two slots of the set, of which one is used for computing while the other is filled.
private final class SetWeights {
    var undecided: [(promise: Promise, group: GroupWeights)] = []
    var owners: WeightOwners
    var slots: [Slot] = []
    /// Bytes of the largest group of visitors.
    var largest = 0

    init(devices: Int) { owners = WeightOwners(devices: devices) }

    func visit(_ promise: Promise, _ group: GroupWeights) {
        group.visitors.append((promise, group.byteCount))
        group.byteCount += Arena.rounded(promise.storage.byteCount)
        largest = max(largest, group.byteCount)
    }
}

/// Counts the bytes of grouped weights that stay on the device.
private final class Residents {
    var byteCount = 0
}

/// Counts one resident tensor as long as its storage exists.
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

/// Decides which weights stay on the device, and copies weights when they are required.
final class WeightStreaming {
    private let context: Context
    private let uploads: Uploads
    private let membership: Membership
    private let sharing: WeightSharing?
    private let copies: Stream
    /// The most bytes of grouped weights that stay, from the next weight on; nil: all.
    var residentLimit: Int?
    private let residents = Residents()
    /// An event of one stream that the other waits for.
    private let mark: Event
    private var turn = 0
    /// The slot that the operations queued now read.
    private weak var current: Slot?
    /// Memory for unconverted bytes, used in the stream of copies only.
    private var scratch: DeviceBuffer?

    /// - Parameter readable: GPUs of its group whose memory this one can read, by their index.
    init(
        _ context: Context, _ uploads: Uploads, residentBytes limit: Int?, _ membership: Membership,
        readable: Set<Int>
    ) throws(CUDAError) {
        self.context = context
        self.uploads = uploads
        self.membership = membership
        sharing = WeightSharing(membership, readable: readable)
        residentLimit = limit
        copies = try Stream(context.device)
        mark = try Event(context.device)
    }

    /// Lets go of what only the next copies would want again.
    func releaseScratch() {
        if scratch != nil { follow(context.stream, copies) }
        scratch = nil
    }

    // ---- placing ----

    /// Leaves a host tensor where it is until its group is required; nil if the weight has to be copied now.
    func promise(
        _ host: Tensor, _ recipe: Recipe, as dtype: DType, to group: WeightGroup
    ) -> DeviceStorage? {
        let byteCount = host.shape.count * dtype.byteCount
        guard byteCount >= WeightGroup.smallestMoving else { return nil }
        let isVisitor = group.isVisitor(byteCount: byteCount) || !fits(byteCount)
        let isDeferred = host.isMapped && group.set.isDeferred
        var isCopy = false
        if case .copy = recipe { isCopy = true }
        // A weight that is not in a mapped file is copied now, so that its memory is freed sooner. If it cannot stay on
        // the device, it is kept on the host in its final form, which is the smallest.
        guard isDeferred || isVisitor && (host.isMapped || isCopy) else { return nil }
        let (weights, set) = attachments(of: group)
        let storage = DeviceStorage(away: byteCount)
        // Where there is room, a group's devices hold what is used once for each prompt, each its own.
        let isShared = sharing != nil && (!group.isTransient || residentLimit == nil)
        if isDeferred, isShared || !group.isVisitor(byteCount: byteCount) {
            let promise = Promise(
                storage, from: host, recipe, owner: set.owners.next(of: byteCount))
            set.undecided.append((promise, weights))
            if isShared {
                weights.unannounced.append(promise)
                weights.isHeldByOwners = group.isTransient
            }
        } else {
            set.visit(Promise(storage, from: host, recipe), weights)
        }
        return storage
    }

    /// Counts a tensor that is on the device, or moves it to host memory as a visitor if it exceeds the limit.
    /// - Returns: the tensor to use from now on.
    func admit(_ tensor: Tensor, to group: WeightGroup?) -> Tensor {
        guard let group, tensor.byteCount >= WeightGroup.smallestMoving else { return tensor }
        if !group.isVisitor(byteCount: tensor.byteCount), fits(tensor.byteCount) {
            count(tensor.storage as? DeviceStorage)
            return tensor
        }
        let host = Tensor.host(tensor.shape, tensor.dtype)
        context.stream.copy(tensor.pointer, to: host.hostAddress, byteCount: tensor.byteCount)
        context.stream.drain()
        let storage = DeviceStorage(away: tensor.byteCount)
        let (weights, set) = attachments(of: group)
        set.visit(Promise(storage, from: host, .copy), weights)
        return Tensor(tensor.shape, tensor.dtype, storage: storage)
    }

    private func fits(_ byteCount: Int) -> Bool {
        residentLimit.map { residents.byteCount + byteCount <= $0 } ?? true
    }

    private func count(_ storage: DeviceStorage?) {
        guard let storage else { return }
        storage.token = ResidentToken(residents, storage.byteCount)
    }

    private func attachments(of group: WeightGroup) -> (GroupWeights, SetWeights) {
        let set =
            group.set.attachment as? SetWeights ?? SetWeights(devices: membership.count)
        group.set.attachment = set
        let weights = group.attachment as? GroupWeights ?? GroupWeights()
        group.attachment = weights
        return (weights, set)
    }

    // ---- requiring ----

    /// Makes the weights of `group` usable for everything that is queued from now on. A group without weights only has its set
    /// take its memory.
    func require(_ group: WeightGroup) {
        current?.used.record(in: context.stream)
        current = nil
        guard let set = group.set.attachment as? SetWeights else { return }
        let attached = group.attachment as? GroupWeights
        if !group.isTransient || attached?.isHeldByOwners == true { settle(set) }
        guard let weights = attached else { return }
        let isWhole = weights.unannounced.isEmpty || announce(weights)
        if !weights.expected.isEmpty, context.device.failure == nil {
            for promise in weights.expected { bring(promise, to: promise.storage.location) }
            follow(context.stream, copies)
            if context.device.failure == nil, isWhole { weights.expected = [] }
        }
        if !weights.visitors.isEmpty { current = fetch(weights, of: set) }
        if context.device.failure != nil {
            // Nothing is launched after a failure, so any address that is not null will do.
            let undecided = set.undecided.filter { $0.group === weights }.map(\.promise)
            for promise in weights.visitors.map(\.promise) + undecided
            where promise.storage.location == .null {
                promise.storage.location = DevicePointer(address: UInt64(Arena.alignment))
            }
        }
    }

    /// Copies this device's own weights of a group, tells the other devices of them, and learns of theirs.
    /// - Returns: false where somebody did not come; then it is done again the next time.
    private func announce(_ weights: GroupWeights) -> Bool {
        guard let sharing else { return true }
        let (index, shared) = (membership.index, weights.unannounced)
        var (own, others): ([Promise], [Promise]) = ([], [])
        for promise in weights.expected {
            if promise.owner == index { own.append(promise) } else { others.append(promise) }
        }
        if context.device.failure == nil {
            for promise in own { bring(promise, to: promise.storage.location) }
        }
        let there = try? Event(context.device)
        there?.record(in: copies)
        let isThere = context.device.failure == nil
        let held = shared.map { promise -> Held? in
            guard isThere, let there, promise.owner == index, !promise.storage.isAway,
                own.contains(where: { $0 === promise })
            else { return nil }
            return Held(
                location: promise.storage.location, scales: promise.recipe.scales, there: there)
        }
        let found = sharing.exchange(
            owners: shared.map(\.owner), held, isOpen: context.memory.peersHaveAccess)
        guard let found else { return false }
        for (promise, held) in zip(shared, found) { promise.held = held }
        weights.unannounced = []
        if isThere {
            follow(context.stream, copies)
            weights.expected = others
        }
        return true
    }

    /// Whether this device keeps a weight for which it has room.
    private func isKept(_ promise: Promise, _ group: GroupWeights) -> Bool {
        promise.owner == membership.index || !group.isHeldByOwners
    }

    /// Allocates the memory of all weights that stay: this device's own before others, each in the order of placing.
    private func settle(_ set: SetWeights) {
        if set.undecided.isEmpty { return }
        if sharing != nil {
            let index = membership.index
            set.undecided =
                set.undecided.filter { $0.promise.owner == index }
                + set.undecided.filter { $0.promise.owner != index }
        }
        var staying = 0
        context.memory.prepare(
            for: set.undecided.compactMap { promise, group in
                let byteCount = promise.storage.byteCount
                guard fits(staying + byteCount), isKept(promise, group) else { return nil }
                staying += byteCount
                return byteCount
            })
        while let (promise, group) = set.undecided.first {
            if fits(promise.storage.byteCount), isKept(promise, group) {
                guard context.device.failure == nil else { return }
                let buffer = context.buffer(byteCount: promise.storage.byteCount)
                guard context.device.failure == nil else { return }
                promise.storage.settle(in: buffer)
                count(promise.storage)
                group.expected.append(promise)
            } else {
                set.visit(promise, group)
            }
            set.undecided.removeFirst()
        }
        // What the main stream did with this memory before comes first.
        follow(copies, context.stream)
    }

    /// The slot with the visitors of `group`. If there is none, fills the slot that was used longest ago.
    private func fetch(_ group: GroupWeights, of set: SetWeights) -> Slot? {
        turn += 1
        if let slot = group.slot {
            slot.turn = turn
            return slot
        }
        guard prepareSlots(of: set), let slot = set.slots.min(by: { $0.turn < $1.turn }) else {
            return nil
        }
        leave(slot)
        copies.wait(for: slot.used)
        for (promise, offset) in group.visitors {
            promise.storage.location = slot.buffer.pointer + offset
            bring(promise, to: promise.storage.location)
        }
        follow(context.stream, copies)
        guard context.device.failure == nil else { return nil }
        slot.group = group
        slot.turn = turn
        group.slot = slot
        return slot
    }

    private func leave(_ slot: Slot) {
        guard let group = slot.group else { return }
        group.slot = nil
        for (promise, _) in group.visitors { promise.storage.location = .null }
    }

    /// Allocates two slots that are as large as the largest group of visitors.
    private func prepareSlots(of set: SetWeights) -> Bool {
        if let slot = set.slots.first, slot.buffer.byteCount >= set.largest { return true }
        set.slots.forEach(leave)
        set.slots = []
        do {
            for _ in 0..<2 where context.device.failure == nil {
                let slot = Slot(
                    context.buffer(byteCount: set.largest), used: try Event(context.device))
                // What the main stream did with this memory before comes first.
                slot.used.record(in: context.stream)
                set.slots.append(slot)
            }
        } catch {
            context.device.fail(error)
        }
        if context.device.failure != nil { set.slots = [] }
        return context.device.failure == nil
    }

    /// Queues everything that makes the weight at `target`, in the stream of copies.
    private func bring(_ promise: Promise, to target: DevicePointer) {
        if let held = promise.held {
            copies.wait(for: held.there)
            copies.copy(fromPeer: held.location, to: target, byteCount: promise.storage.byteCount)
            if case .quantize(_, let scales) = promise.recipe {
                copies.copy(
                    fromPeer: held.scales, to: scales,
                    byteCount: promise.recipe.scaleBytes(of: promise.source.shape))
            }
            return
        }
        uploads.carry(out: promise.recipe, of: promise.source, to: target, in: copies) {
            if let scratch, scratch.byteCount >= $0 { return scratch.pointer }
            // The old memory returns to the main stream, which must not reuse it before its last use here.
            follow(context.stream, copies)
            let buffer = context.buffer(byteCount: $0)
            follow(copies, context.stream)
            scratch = buffer
            return buffer.pointer
        }
    }

    /// Makes what is queued in `later` from now on wait for what is queued in `earlier` until now.
    private func follow(_ later: Stream, _ earlier: Stream) {
        mark.record(in: earlier)
        later.wait(for: mark)
    }
}
