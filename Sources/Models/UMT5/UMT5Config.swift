/// The sizes of a umT5 encoder.

public import Checkpoints

/// umT5 (arXiv 2304.09151): a T5 v1.1 encoder whose layers each have their own position biases.
public struct UMT5Config: Sendable, Hashable {
    public var vocabularySize: Int
    public var dim: Int
    /// Width of all heads together.
    public var attentionDim: Int
    public var ffnDim: Int
    public var heads: Int
    public var layers: Int
    public var epsilon: Float = 1e-6

    public var headDim: Int { attentionDim / heads }
    /// Rows of each layer's table of position biases.
    public static let buckets = 32

    /// Reads the sizes off a checkpoint.
    public init(detectedFrom weights: Weights) throws(CheckpointError) {
        let table = try weights["token_embedding"].extents("weight", rank: 2)
        let block = weights["blocks"][0]
        let bias = try block["pos_embedding"]["embedding"].extents("weight", rank: 2)
        vocabularySize = table[0]
        dim = table[1]
        attentionDim = try block["attn"]["q"].matrixExtents().outputs
        ffnDim = try block["ffn"]["fc1"].matrixExtents().outputs
        heads = bias[1]
        layers = weights["blocks"].count(having: "norm1.weight")
        guard heads > 0, attentionDim % heads == 0 else {
            throw block["attn"]["q"].misshapen(
                "weight", expected: [heads, dim], found: [attentionDim, dim])
        }
    }
}
