// Checkpoints made of tensors in memory, and ones that fail.

import Checkpoints
import Ground
import Tensors

final class MemoryCheckpoint: Checkpoint {
    let path: String
    let names: [String]
    let metadata: [String: String]
    private let tensors: [String: Tensor]
    /// The tensor whose reading fails.
    private let broken: String?

    init(
        _ tensors: [(String, Tensor)], metadata: [String: String] = [:], broken: String? = nil,
        path: String = "memory"
    ) {
        self.path = path
        names = tensors.map(\.0)
        self.tensors = Dictionary(uniqueKeysWithValues: tensors)
        self.metadata = metadata
        self.broken = broken
    }

    func info(_ name: String) -> TensorInfo? {
        tensors[name].map {
            TensorInfo(name: name, shape: $0.shape.dimensions, dtype: $0.dtype)
        }
    }

    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        if name == broken { throw .malformed(path: path, reason: "'\(name)' is broken") }
        return tensors[name]
    }

    /// The same with another tensor under a name.
    func replacing(_ name: String, by tensor: Tensor) -> MemoryCheckpoint {
        MemoryCheckpoint(names.map { ($0, $0 == name ? tensor : tensors[$0]!) })
    }
}

extension Tensor {
    /// Random numbers in -1 ... 1.
    static func random(
        _ shape: Shape, _ dtype: DType = .f32, using random: inout SplitMix64
    ) -> Tensor {
        let values = (0..<shape.count).map { _ in Float.random(in: -1...1, using: &random) }
        return Tensor(values, shape).converted(to: dtype)
    }
}

/// A small transformer with random weights in its plain form.
func randomTransformer(
    _ model: WanTransformerArchitecture, _ dtype: DType = .bf16, seed: UInt64 = 1
) -> MemoryCheckpoint {
    var random = SplitMix64(seed: seed)
    return MemoryCheckpoint(
        model.tensors().map { ($0.name, Tensor.random(Shape($0.shape), dtype, using: &random)) })
}

/// Whether two checkpoints have the same names, shapes, types and bytes.
func areEqual(_ a: any Checkpoint, _ b: any Checkpoint) throws -> Bool {
    guard Set(a.names) == Set(b.names) else { return false }
    for name in a.names {
        guard a.info(name) == b.info(name), try a.tensor(name)?.bytes == b.tensor(name)?.bytes
        else { return false }
    }
    return true
}
