/// What devices of a group give to each other, by copies.

import Ground
import Tensors

/// One device's tensor as the others see it: they only read it.
private final class Given: @unchecked Sendable {
    let tensor: Tensor
    init(_ tensor: Tensor) { self.tensor = tensor }
}

extension Definitions {
    /// The parts of the others' tensors that are for this device, and its own. Where a device is missing the result means
    /// nothing.
    func collective(_ o: some Collective, _ membership: Membership) -> Tensor {
        let type = o.results[0]
        let scales = type.scaleBytes.map { memory.storage(byteCount: $0) }
        let result = memory.tensor(type.shape, type.element, scales: scales)
        let given =
            membership.meeting.map { $0.exchange(Given(o.x), of: membership.index) } ?? [Given(o.x)]
        guard let given = given as? [Given] else { return result }
        for (giver, given) in given.enumerated() {
            if let transfer = o.transfer(from: giver, to: o.member) {
                transfer.copy(from: given.tensor.hostAddress, to: result.hostAddress)
            }
            if let transfer = o.scaleTransfer(from: giver, to: o.member),
                let from = given.tensor.scales?.hostPointer, let to = scales?.hostPointer
            {
                transfer.copy(from: from, to: to)
            }
        }
        return withExtendedLifetime(given) { result }
    }

    func joinRows(_ o: Operation.JoinRows) -> Tensor {
        let result = memory.tensor(o.results[0].shape, o.x.dtype)
        for part in o.parts {
            part.transfer.copy(from: part.tensor.hostAddress, to: result.hostAddress)
        }
        return result
    }
}
