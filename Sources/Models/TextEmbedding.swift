/// What the text encoder hands to the transformer.

import Ground
public import Tensors

/// An encoded prompt. rows: [textLength, textDim] on the device; rows past `count` are zero.
public struct TextEmbedding {
    public let rows: Tensor
    /// Rows that stand for tokens of the prompt, its end included.
    public let count: Int

    public init(rows: Tensor, count: Int) {
        ensure(
            rows.shape.rank == 2 && count >= 0 && count <= rows.shape[0],
            "TextEmbedding: \(count) of \(rows.shape)")
        self.rows = rows
        self.count = count
    }
}
