/// The result of the text encoder, which is an input of the transformer.

import Ground
public import Tensors

/// An encoded prompt. rows: [textLength, textDim] on the device; rows past `count` are zero.
public struct TextEmbedding {
    public let rows: Tensor
    /// Number of rows for tokens of the prompt, the end token included.
    public let count: Int

    public init(rows: Tensor, count: Int) {
        ensure(
            rows.shape.rank == 2 && count >= 0 && count <= rows.shape[0],
            "TextEmbedding: \(count) of \(rows.shape)")
        self.rows = rows
        self.count = count
    }
}
