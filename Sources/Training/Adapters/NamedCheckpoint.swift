/// A checkpoint that remembers what it has handed out.

import Checkpoints
import Tensors

/// Another checkpoint, which can tell the name of a tensor that it gave.
final class NamedCheckpoint: Checkpoint {
    private struct Place: Hashable {
        let storage: UInt64
        let offset: Int
    }
    private let base: any Checkpoint
    private var given: [Place: String] = [:]
    /// Kept, so that no other storage takes a serial's meaning and mapped tensors are made once.
    private var tensors: [String: Tensor] = [:]

    init(_ base: any Checkpoint) { self.base = base }

    var path: String { base.path }
    var names: [String] { base.names }
    func info(_ name: String) -> TensorInfo? { base.info(name) }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        if let known = tensors[name] { return known }
        guard let tensor = try base.tensor(name) else { return nil }
        tensors[name] = tensor
        given[Place(storage: tensor.storage.serial, offset: tensor.byteOffset)] = name
        return tensor
    }

    func name(of tensor: Tensor) -> String? {
        given[Place(storage: tensor.storage.serial, offset: tensor.byteOffset)]
    }
}
