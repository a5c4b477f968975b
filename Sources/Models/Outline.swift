/// Models of which only the sizes are known, for planning, and for benchmarks without a download.

public import Checkpoints
public import Tensors

/// A checkpoint whose tensors have names and shapes but no bytes. It needs a backend that does not read the tensors
/// that it places: one that only plans, or one that makes random numbers.
public final class Outline: Checkpoint {
    public let path: String
    public let names: [String]
    private let tensors: [String: TensorInfo]

    /// The tensors that a model of these sizes has.
    /// - Parameter numbers: the dtype of everything that is not quantised.
    public init(_ model: DetectedModel, numbers: DType) {
        let expected = model.tensors()
        path = "outline of \(model.title)"
        names = expected.map(\.name)
        tensors = Dictionary(
            uniqueKeysWithValues: expected.map { tensor in
                let dtype: DType =
                    switch tensor.content {
                    case .numbers, .quantizableMatrix: numbers
                    case .int8Codes: .i8
                    case .fp8Codes: .f8e4m3
                    case .scales: .f32
                    }
                return (
                    tensor.name, TensorInfo(name: tensor.name, shape: tensor.shape, dtype: dtype)
                )
            })
    }

    /// The names and shapes of another checkpoint, for a plan that needs no numbers.
    public init(of checkpoint: any Checkpoint) {
        path = checkpoint.path
        names = checkpoint.names
        tensors = Dictionary(
            uniqueKeysWithValues: names.compactMap { name in
                checkpoint.info(name).map { (name, $0) }
            })
    }

    public func info(_ name: String) -> TensorInfo? { tensors[name] }

    public func tensor(_ name: String) -> Tensor? {
        tensors[name].map { .outline(Shape($0.shape), $0.dtype) }
    }
}
