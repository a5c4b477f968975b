/// Tensors that are at hand, as a checkpoint: so that they can be written, or a net be made of them.

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
