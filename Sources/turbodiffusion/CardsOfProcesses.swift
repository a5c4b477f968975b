/// How the GPUs of a training run's processes reach each other: by NCCL, or by way of the host.

import CUDA
import Tensors
import Training

/// GPUs of several processes as the trainer knows them.
final class CardsOfProcesses: CardCollectives {
    private let group: CardGroup
    private init(_ group: CardGroup) { self.group = group }

    /// All processes take the same way.
    /// - Returns: nil for CPUs, and where a process has no NCCL.
    static func open(
        _ group: ProcessGroup, _ device: any Backend, note: (String) -> Void
    ) throws -> CardsOfProcesses? {
        guard let backend = device as? CUDABackend else { return nil }
        let missing = CardGroup.reasonAgainst
        let count = try group.sum([missing == nil ? 0 : 1])[0]
        guard count == 0 else {
            note("gradients go by way of the host: \(missing ?? "another process has no NCCL")")
            return nil
        }
        let cards = try CardGroup(backend, rank: group.place.rank, count: group.place.count) {
            try group.fromFirst($0)
        }
        note("gradients go by \(cards.name)")
        return CardsOfProcesses(cards)
    }

    func sums(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor?] {
        try group.sums(tensors)
    }
    func spread(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor] {
        try group.spread(tensors)
    }
    func carryOut(_ operation: any Collective, first: Int) throws -> Tensor {
        try group.carryOut(operation, first: first)
    }
}
