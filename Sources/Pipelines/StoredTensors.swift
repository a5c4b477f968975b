/// Stages that start from a file: text embeddings and latents as safetensors.

import Checkpoints
import Models
import Tensors

/// Tensors in host memory as a checkpoint, for writing them.
private final class TensorList: Checkpoint {
    let path: String
    let metadata: [String: String]
    private let tensors: [(name: String, tensor: Tensor)]

    init(_ path: String, _ tensors: [(name: String, tensor: Tensor)], _ metadata: [String: String])
    {
        self.path = path
        self.tensors = tensors
        self.metadata = metadata
    }

    var names: [String] { tensors.map(\.name) }
    func info(_ name: String) -> TensorInfo? {
        tensors.first { $0.name == name }.map {
            TensorInfo(name: name, shape: $0.tensor.shape.dimensions, dtype: $0.tensor.dtype)
        }
    }
    func tensor(_ name: String) -> Tensor? { tensors.first { $0.name == name }?.tensor }
}

/// Text embeddings and latents in files.
enum StoredTensors {
    static let embedding = "text_embedding"
    static let negativeEmbedding = "negative_text_embedding"
    static let latents = "latents"

    /// Writes named host tensors, replacing the file.
    static func write(
        _ tensors: [(name: String, tensor: Tensor)], to path: String,
        metadata: [String: String] = [:]
    ) throws {
        try writeCheckpoint(
            TensorList(path, tensors, metadata), to: path, format: .safetensors, overwrite: true)
    }

    /// Rows of a prompt. The file holds `text_embedding` [rows, dim], or one tensor that is [1, rows, dim] or so,
    /// as the original's cache of embeddings does. Rows of zeros at its end are padding.
    /// - Parameter name: nil is returned where the file does not hold the negative prompt.
    static func readEmbedding(
        _ path: String, _ name: String = embedding, textLength: Int, textDim: Int
    ) throws -> (rows: Tensor, count: Int)? {
        let file = try openCheckpoint(path)
        var stored = try file.tensor(name)
        if stored == nil {
            if name == negativeEmbedding { return nil }
            let matrices = file.names.filter { file.info($0).map { $0.shape.count >= 2 } ?? false }
            guard matrices.count == 1 else {
                throw RequestError(
                    "\(path) holds no text embedding: expected a tensor '\(embedding)', "
                        + "found \(file.names.prefix(4).joined(separator: ", "))")
            }
            stored = try file.tensor(matrices[0])
        }
        guard let stored, stored.dtype.isFloatingPoint,
            stored.shape.columns == textDim, stored.shape.rows <= textLength
        else {
            throw RequestError(
                "\(path): the text embedding is \(stored?.shape.description ?? "unreadable"), "
                    + "the transformer wants up to [\(textLength), \(textDim)]")
        }
        let rows = stored.shape.rows
        let values = stored.floats()
        let count = values.lastIndex { $0 != 0 }.map { $0 / textDim + 1 } ?? 0
        let padding = [Float](repeating: 0, count: (textLength - rows) * textDim)
        return (Tensor(values + padding, [textLength, textDim]), count)
    }

    /// latents: f32 [samples, 16, T, H, W]
    static func readLatents(_ path: String) throws -> Tensor {
        let file = try openCheckpoint(path)
        let name = file.names.contains(latents) ? latents : file.names.first ?? latents
        guard let stored = try file.tensor(name) else {
            throw RequestError("\(path) holds no tensor '\(latents)'")
        }
        let shape = stored.shape
        guard stored.dtype.isFloatingPoint, [4, 5].contains(shape.rank), shape[shape.rank - 4] == 16
        else {
            throw RequestError(
                "\(path): '\(name)' is \(stored.dtype) \(shape), "
                    + "expected latents [samples, 16, T, H, W]")
        }
        let batch: Shape = [
            shape.rank == 5 ? shape[0] : 1, 16, shape[-3], shape[-2], shape[-1],
        ]
        return stored.converted(to: .f32).reshaped(batch)
    }
}
