/// Weights that are split over the processes of a run, as FSDP and ZeRO-3 do: each process keeps some tensors of each net,
/// and those of a unit come together where an operation reads one of them.

import Ground
import Tensors

/// How shards pass between processes. Equal names, shapes and order in all of them.
protocol ShardExchange: AnyObject {
    var rank: Int { get }
    var count: Int { get }
    /// → those of other owners, by name, on the host or the device
    func spread(_ tensors: [ProcessGroup.Owned], on device: any Backend) throws -> [String: Tensor]
    /// → own sums, by name, on the device
    func sums(_ tensors: [ProcessGroup.Owned], on device: any Backend) throws -> [String: Tensor]
}

extension ProcessGroup: ShardExchange {
    var rank: Int { place.rank }
    var count: Int { place.count }
}

/// The first of some processes that are only planned: its tensors have sizes and no numbers.
final class PlannedProcesses: ShardExchange {
    let rank = 0
    let count: Int

    init(_ count: Int) { self.count = count }

    func spread(_ tensors: [ProcessGroup.Owned], on device: any Backend) -> [String: Tensor] {
        placed(tensors, on: device) { $0 != rank }
    }

    func sums(_ tensors: [ProcessGroup.Owned], on device: any Backend) -> [String: Tensor] {
        placed(tensors, on: device) { $0 == rank }
    }

    private func placed(
        _ tensors: [ProcessGroup.Owned], on device: any Backend, _ isWanted: (Int) -> Bool
    ) -> [String: Tensor] {
        var found: [String: Tensor] = [:]
        for owned in tensors where isWanted(owned.owner) {
            found[owned.name] = device.place(owned.tensor, as: owned.tensor.dtype)
        }
        return found
    }
}

/// A device that knows weights of which this process keeps only some.
///
/// Nets hold outlines of such weights, tensors without memory. Before an operation that reads one, the weights of its
/// unit are gathered from their owners; they stay until another unit, of whichever net, is gathered. So all processes
/// must run through equal nets in equal order, and at any time there is one whole unit beside the shares.
final class ShardedDevice: JointDevice {
    /// Weights that are gathered together.
    final class Unit {
        fileprivate var shards: [Shard] = []
    }

    fileprivate struct Shard {
        let outline: Tensor
        let owner: Int
        /// nil: another process keeps it.
        var own: Tensor?
    }

    let exchange: any ShardExchange
    /// Units and shards by the memory of the outlines.
    private var places: [UInt64: (unit: Unit, index: Int)] = [:]
    private var gathered: (unit: Unit, tensors: [UInt64: Tensor])?

    init(_ base: any Backend, _ exchange: any ShardExchange) {
        self.exchange = exchange
        super.init(base)
    }

    // MARK: Weights

    /// - Parameter outline: the weight as nets see it.
    func add(_ outline: Tensor, owner: Int, to unit: Unit) {
        places[outline.storage.serial] = (unit, unit.shards.count)
        unit.shards.append(Shard(outline: outline, owner: owner))
    }

    /// A weight has new numbers: what was gathered of it counts no more, in all processes.
    /// - Parameter own: the numbers, where this process keeps them.
    func renew(_ outline: Tensor, own: Tensor?) {
        let serial = outline.storage.serial
        gathered?.tensors[serial] = nil
        guard let own, let (unit, index) = places[serial] else { return }
        ensure(
            own.shape == outline.shape && own.dtype == outline.dtype,
            "ShardedDevice: \(own) for \(outline)")
        unit.shards[index].own = own
    }

    /// Lets go of what was gathered.
    func drop() { gathered = nil }

    /// Bytes of what this process keeps.
    var ownBytes: Int {
        places.values.reduce(0) { $0 + ($1.unit.shards[$1.index].own?.byteCount ?? 0) }
    }

    override func run(_ operation: Operation) -> [Tensor] {
        // Views of outlines are outlines.
        operation.isView ? super.run(operation) : super.run(operation.mapTensors(whole))
    }

    /// The numbers of an outline, or of a view of it; everything else as it is.
    private func whole(_ x: Tensor) -> Tensor {
        let serial = x.storage.serial
        guard let (unit, _) = places[serial] else { return x }
        if gathered?.unit !== unit || gathered?.tensors[serial] == nil { gather(unit) }
        guard let found = gathered?.tensors[serial] else { return x }
        return Tensor(
            x.shape, x.dtype, storage: found.storage, byteOffset: found.byteOffset + x.byteOffset)
    }

    private func gather(_ unit: Unit) {
        // First, so that there are never two.
        gathered = nil
        gathered = together {
            let found = try exchange.spread(
                unit.shards.enumerated().map { index, shard in
                    ProcessGroup.Owned(
                        name: "\(index)", tensor: shard.own ?? shard.outline, owner: shard.owner)
                }, on: base)
            var tensors: [UInt64: Tensor] = [:]
            for (index, shard) in unit.shards.enumerated() {
                let tensor = shard.own ?? found["\(index)"]!
                tensors[shard.outline.storage.serial] =
                    tensor.isOnHost ? base.place(tensor, as: tensor.dtype) : tensor
            }
            return (unit, tensors)
        }
    }

    // MARK: Gradients

    /// Sums gradients over all processes. gradients: f32, equal names, shapes and order in all processes
    /// → own ones; none after a failure
    func sums(_ gradients: [ProcessGroup.Owned]) -> [String: Tensor] {
        together { try exchange.sums(gradients, on: base) } ?? [:]
    }
}
