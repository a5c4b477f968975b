/// Tensors that are at hand, as a checkpoint; and a checkpoint that remembers what it has handed out.

public import Checkpoints
public import Tensors

/// Tensors by name in host memory.
public final class TensorCollection: Checkpoint {
    public let path: String
    public let names: [String]
    public let metadata: [String: String]
    private let tensors: [String: Tensor]

    public init(
        _ path: String, _ tensors: [(name: String, tensor: Tensor)],
        metadata: [String: String] = [:]
    ) {
        self.path = path
        self.metadata = metadata
        names = tensors.map(\.name)
        self.tensors = Dictionary(
            tensors.map { ($0.name, $0.tensor) }, uniquingKeysWith: { a, _ in a })
    }

    public func info(_ name: String) -> TensorInfo? {
        tensors[name].map { TensorInfo(name: name, shape: $0.shape.dimensions, dtype: $0.dtype) }
    }
    public func tensor(_ name: String) -> Tensor? { tensors[name] }
}

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
