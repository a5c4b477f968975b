/// Processes that share out the tokens of each sample: sequence parallel in the manner of Ulysses (arXiv 2309.14509).

import Ground
import Tensors

/// The device of a process that computes a share of each sample's tokens, together with those of neighbouring ranks.
///
/// Models see a group of devices, as when several cards make one video: own rows of the sequence everywhere, all rows of
/// own heads in self-attention, all rows at the end. What members give to each other goes between the processes. Process
/// r is member r % N of group r / N.
final class SequenceDevice: JointDevice {
    private let group: ProcessGroup
    private let own: Membership
    /// Whether this process computes whole samples for now, by itself.
    var isApart = false

    init(_ base: any Backend, _ group: ProcessGroup, members: Int) {
        self.group = group
        own = Membership(index: group.place.rank % members, of: members)
        super.init(base)
    }

    override var membership: Membership { isApart ? .alone : own }

    override func run(_ operation: Operation) -> [Tensor] {
        guard let collective = operation.collective else {
            switch operation {
            // Codes do not travel: they are made of what has arrived.
            case .attention, .sparseLinearAttention: return super.run(operation.withPlainResult)
            default: return super.run(operation)
            }
        }
        return together { [try group.carryOut(collective, on: base)] } ?? super.run(operation)
    }
}

extension ProcessGroup {
    /// A collective of processes of neighbouring ranks, of which this one is `member`. All of them call it at the same
    /// point. → on the device
    func carryOut(_ o: any Collective, on device: any Backend) throws -> Tensor {
        ensure(o.x.scales == nil, "carryOut: 8-bit codes are not sent to other processes")
        let first = place.rank - o.member
        if let cards { return try cards.carryOut(o, first: first) }
        let (type, x) = (o.results[0], device.read(o.x))
        let result = Tensor.host(type.shape, type.dtype)
        if let own = o.transfer(from: o.member, to: o.member) {
            own.copy(from: x.hostAddress, to: result.hostAddress)
        }
        var outgoing: [(to: Connection, bytes: UnsafeRawBufferPointer)] = []
        var incoming: [(from: Connection, bytes: UnsafeMutableRawBufferPointer)] = []
        var sent: [Tensor] = []
        var taken: [(transfer: Transfer, bytes: Tensor)] = []
        for other in o.others {
            let connection = connections[first + other.member]!
            if let transfer = other.given {
                let bytes = Tensor.host([transfer.byteCount], .u8)
                transfer.packing.copy(from: x.hostAddress, to: bytes.hostAddress)
                sent.append(bytes)
                outgoing.append((connection, bytes.rawBytes))
            }
            if let transfer = other.taken {
                let bytes = Tensor.host([transfer.byteCount], .u8)
                taken.append((transfer, bytes))
                incoming.append((connection, bytes.mutableBytes))
            }
        }
        try Connection.transfer(sending: outgoing, receiving: incoming)
        for (transfer, bytes) in taken {
            transfer.unpacking.copy(from: bytes.hostAddress, to: result.hostAddress)
        }
        withExtendedLifetime(sent) {}
        return device.place(result, as: type.dtype)
    }
}
