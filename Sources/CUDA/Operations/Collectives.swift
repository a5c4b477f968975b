// What the GPUs of a group give to each other: copies between their memories, ordered by events. The host waits for no
// device; its threads meet to tell each other addresses and events.
//
// A device writes into its peers' results. It may do so when they have passed the point at which their memory was taken
// (`ready`), and its own tensor is there. Copies run in streams of their own, behind what else is queued; whoever first asks
// for the address of a result makes the main stream wait for what is on its way (`Arrival`).

internal import CDrivers
import Ground
import Tensors

/// How bytes travel between GPUs.
public enum Route: String, Sendable, Hashable, CaseIterable {
    /// By copy engines, which need no multiprocessor.
    case engines
    /// By a kernel that writes to the peer's memory.
    case kernel
    /// By way of pinned host memory: what there is without peer access.
    case host
}

/// What one device shows the others of a collective. What changes is announced by the meeting.
private final class Parcel: @unchecked Sendable {
    let result, scales: DevicePointer
    let ready: Event
    /// Which devices may write to the result.
    let writers: Set<Int>
    /// For each device, the end of what was sent to it.
    var sent: [Sent?]

    enum Sent {
        /// It is in the result.
        case written(Event?)
        /// It is in pinned memory, one run after the other: codes, then scales.
        case staged(Staging?, Event?)

        var event: Event? {
            switch self {
            case .written(let event), .staged(_, let event): event
            }
        }
    }

    init(
        result: DevicePointer, scales: DevicePointer, ready: Event, writers: Set<Int>, members: Int
    ) {
        (self.result, self.scales, self.ready) = (result, scales, ready)
        self.writers = writers
        sent = Array(repeating: nil, count: members)
    }
}

/// Pinned memory on the way from one device to another.
final class Staging: @unchecked Sendable {
    let pinned: PinnedBuffer
    /// The taker has read it, or nobody has used it yet.
    var taken: Event?
    var isOnItsWay = false

    init(_ pinned: PinnedBuffer) { self.pinned = pinned }
}

/// What the result of a collective still waits for.
final class Arrival {
    private var complete: (() -> Void)?

    fileprivate init(_ complete: @escaping () -> Void) { self.complete = complete }

    /// Makes the main stream wait; once.
    func wait() {
        guard let complete else { return }
        self.complete = nil
        complete()
    }
}

/// A GPU's means of giving to others.
final class Exchanges {
    fileprivate let toPeers, toSelf: Stream
    fileprivate let fromHost: Stream
    /// Devices whose memory this one can write to, by index in the group.
    fileprivate let reachable: Set<Int>
    /// The ordinals of the others.
    fileprivate let unreachable: [Int]
    fileprivate let route: Route
    /// Devices whose memory this one reads weights from: none where bytes go by way of the host.
    var readable: Set<Int> { route == .host ? [] : reachable }
    fileprivate var stagings: [Staging] = []

    /// - Parameter ordinals: of the group's GPUs, in its order.
    init(_ context: Context, ordinals: [Int], route: Route) throws(CUDAError) {
        toPeers = try Stream(context.device)
        toSelf = try Stream(context.device)
        fromHost = try Stream(context.device)
        self.route = route
        let device = context.device
        func isReachable(_ ordinal: Int) -> Bool {
            device.driver.canAccess(from: device.ordinal, to: ordinal)
        }
        reachable = Set(ordinals.indices.filter { isReachable(ordinals[$0]) })
        unreachable = ordinals.filter { $0 != device.ordinal && !isReachable($0) }
    }

    /// Pinned memory that nobody reads any more.
    fileprivate func staging(byteCount: Int, _ context: Context, _ meeting: Meeting) -> Staging? {
        let fitting = stagings.filter { $0.pinned.bytes.count >= byteCount }
        var free: Staging?
        _ = meeting.wait {
            free = fitting.first { !$0.isOnItsWay && $0.taken?.isComplete ?? true }
            return true
        }
        if let free { return free }
        if stagings.count >= 16, let oldest = fitting.first {
            guard meeting.wait(until: { !oldest.isOnItsWay }) else { return nil }
            oldest.taken?.synchronize()
            stagings.removeAll { $0 === oldest }
            stagings.append(oldest)
            return oldest
        }
        do {
            let made = Staging(
                try PinnedBuffer(context.device, byteCount: byteCount, isPortable: true))
            stagings.append(made)
            return made
        } catch {
            context.device.fail(error)
            return nil
        }
    }
}

extension CUDABackend {
    /// GPUs of the group whose memory this one cannot write to.
    public var unreachablePeers: [Int] { exchanges?.unreachable ?? [] }

    func collective(_ o: some Collective) -> Tensor {
        let type = o.results[0]
        let scales = type.scaleBytes.map { storage(byteCount: $0) }
        let result = tensor(type.shape, type.element, scales: scales)
        let source = o.x.shape.count == 0 ? DevicePointer.null : o.x.pointer
        let sourceScales =
            o.x.scales == nil || o.x.shape.count == 0 ? DevicePointer.null : o.x.scalesPointer
        guard let exchanges, let meeting = membership.meeting else {
            programmingError("\(type): this GPU is in no group")
        }
        let memory = context.memory
        guard let ready = event(), let toSelf = event() else { return result }
        ready.record(in: context.stream)
        let me = membership.index
        let parcel = Parcel(
            result: result.pointer, scales: scales?.location ?? .null, ready: ready,
            writers: memory.peersHaveAccess ? exchanges.reachable : [], members: membership.count)
        guard let parcels = meeting.exchange(parcel, of: me) as? [Parcel] else { return result }

        func transfers(to taker: Int) -> [(Transfer, DevicePointer, DevicePointer)] {
            let to = parcels[taker]
            return [
                o.transfer(from: me, to: taker).map { ($0, source, to.result) },
                o.scaleTransfer(from: me, to: taker).map { ($0, sourceScales, to.scales) },
            ].compactMap(\.self).filter { $0.1 != .null && $0.2 != .null }
        }
        exchanges.toPeers.wait(for: ready)
        // Each begins with the next one, so that not all write to the same.
        for step in 1..<membership.count {
            let taker = (me + step) % membership.count
            let sent = send(
                transfers(to: taker), to: parcels[taker],
                directly: exchanges.route != .host && exchanges.reachable.contains(taker)
                    && parcels[taker].writers.contains(me), exchanges, meeting)
            meeting.announce { parcel.sent[taker] = sent }
        }
        exchanges.toSelf.wait(for: ready)
        for (transfer, from, to) in transfers(to: me) {
            copy(transfer, from, to, in: exchanges.toSelf, exchanges.route)
        }
        toSelf.record(in: exchanges.toSelf)

        let (x, context) = (o.x, context)
        let arrival = Arrival { [weak self] in
            for giver in parcels.indices where giver != me {
                var sent: Parcel.Sent?
                _ = meeting.wait {
                    sent = parcels[giver].sent[me]
                    return sent != nil
                }
                switch sent {
                case .written(let event?): context.stream.wait(for: event)
                case .staged(let staging?, let event?):
                    self?.take(
                        staging, event, o.transfer(from: giver, to: me),
                        o.scaleTransfer(from: giver, to: me), parcel, exchanges, meeting)
                default: break
                }
            }
            context.stream.wait(for: toSelf)
            // Until the others have it, what they were sent must stay.
            for event in parcel.sent.compactMap({ $0?.event }) { context.stream.wait(for: event) }
            withExtendedLifetime(x) {}
        }
        (result.storage as? DeviceStorage)?.arrival = arrival
        scales?.arrival = arrival
        return result
    }

    func joinRows(_ o: Operation.JoinRows) -> Tensor {
        let result = tensor(o.results[0].shape, o.x.dtype)
        for part in o.parts {
            copy(part.transfer, part.tensor.pointer, result.pointer, in: context.stream, .kernel)
        }
        return result
    }

    private func event() -> Event? {
        do { return try Event(context.device) } catch {
            context.device.fail(error)
            return nil
        }
    }

    /// Queues what is for one device.
    private func send(
        _ transfers: [(Transfer, DevicePointer, DevicePointer)], to parcel: Parcel, directly: Bool,
        _ exchanges: Exchanges, _ meeting: Meeting
    ) -> Parcel.Sent {
        let stream = exchanges.toPeers
        guard let end = event() else { return .written(nil) }
        if directly {
            stream.wait(for: parcel.ready)
            for (transfer, from, to) in transfers {
                copy(transfer, from, to, in: stream, exchanges.route)
            }
            end.record(in: stream)
            return .written(end)
        }
        let byteCount = transfers.reduce(0) { $0 + $1.0.byteCount }
        guard byteCount > 0 else { return .written(nil) }
        guard let staging = exchanges.staging(byteCount: byteCount, context, meeting) else {
            return .staged(nil, nil)
        }
        staging.isOnItsWay = true
        var offset = 0
        for (transfer, from, _) in transfers {
            stream.copy(
                rows: transfer.rows, width: transfer.width,
                from: .device(from + transfer.source.offset, pitch: transfer.source.pitch),
                to: .host(staging.pinned.bytes.baseAddress! + offset, pitch: transfer.width))
            offset += transfer.byteCount
        }
        end.record(in: stream)
        return .staged(staging, end)
    }

    /// Queues what has come by way of host memory.
    private func take(
        _ staging: Staging, _ sent: Event, _ transfer: Transfer?, _ scaleTransfer: Transfer?,
        _ parcel: Parcel, _ exchanges: Exchanges, _ meeting: Meeting
    ) {
        let stream = exchanges.fromHost
        stream.wait(for: parcel.ready)
        stream.wait(for: sent)
        var offset = 0
        for (transfer, to) in [(transfer, parcel.result), (scaleTransfer, parcel.scales)] {
            guard let transfer, to != .null else { continue }
            stream.copy(
                rows: transfer.rows, width: transfer.width,
                from: .host(staging.pinned.bytes.baseAddress! + offset, pitch: transfer.width),
                to: .device(to + transfer.target.offset, pitch: transfer.target.pitch))
            offset += transfer.byteCount
        }
        let end = event()
        end?.record(in: stream)
        if let end { context.stream.wait(for: end) }
        meeting.announce {
            staging.taken = end
            staging.isOnItsWay = false
        }
    }

    /// Queues a transfer within this GPU, or to a peer's memory.
    func copy(
        _ transfer: Transfer, _ from: DevicePointer, _ to: DevicePointer, in stream: Stream,
        _ route: Route
    ) {
        let (source, target) = (from + transfer.source.offset, to + transfer.target.offset)
        let (fromPitch, toPitch) = (transfer.source.pitch, transfer.target.pitch)
        guard route == .kernel else {
            return stream.copy(
                rows: transfer.rows, width: transfer.width,
                from: .device(source, pitch: fromPitch), to: .device(target, pitch: toPitch))
        }
        let unit = Layout.unit(transfer.width | fromPitch | toPitch, source, target)
        let count = transfer.byteCount / unit.size
        let kernel: Kernel<DevicePointer, DevicePointer, Int64, Int64, Int64, Int64> =
            context.kernel("copy_runs<\(unit.name)>", of: Layout.unit)
        context.launching(in: stream) {
            kernel(
                LaunchShape(
                    grid: Extents(
                        min(ceilDivide(count, 512), 2 * context.properties.multiprocessors)),
                    block: 512),
                target, source, Int64(count), Int64(transfer.width / unit.size),
                Int64(toPitch / unit.size), Int64(fromPitch / unit.size))
        }
    }
}
