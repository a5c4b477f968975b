/// The umT5 text encoder: its sizes and its tensors.
///
/// Names and shapes as in
/// https://github.com/thu-ml/TurboDiffusion/blob/aaecff5/turbodiffusion/rcm/utils/umt5.py

import Tensors

/// The sizes of a umT5 encoder, detected from its tensors.
public struct UMT5Architecture: Sendable, Hashable {
    public var vocabulary: Int
    /// The widths of the model, of all heads together, and of the feed-forward layer.
    public var dim, attentionDim, feedForward: Int
    public var heads: Int
    public var layers: Int
    /// Rows of the table of relative positions.
    public var buckets: Int

    public init(
        vocabulary: Int, dim: Int, attentionDim: Int, feedForward: Int, heads: Int, layers: Int,
        buckets: Int = 32
    ) {
        self.vocabulary = vocabulary
        self.dim = dim
        self.attentionDim = attentionDim
        self.feedForward = feedForward
        self.heads = heads
        self.layers = layers
        self.buckets = buckets
    }

    public static let xxl = Self(
        vocabulary: 256384, dim: 4096, attentionDim: 4096, feedForward: 10240, heads: 64,
        layers: 24)
    public static let nano = Self(
        vocabulary: 2048, dim: 256, attentionDim: 256, feedForward: 640, heads: 4, layers: 4)

    /// The published model with these sizes, or "umT5 encoder".
    public var title: String {
        self == .xxl ? "umT5-xxl encoder" : self == .nano ? "nano umT5 encoder" : "umT5 encoder"
    }

    /// Why this program does not run a model with these sizes; nil if it does.
    public var refusal: String? {
        guard attentionDim % heads == 0 else {
            return "a text encoder of width \(attentionDim) cannot have \(heads) heads"
        }
        // The attention knows one division of distances.
        guard buckets == Operation.RelativeAttention.buckets else {
            return "its table of relative positions has \(buckets) rows, expected "
                + "\(Operation.RelativeAttention.buckets)"
        }
        return nil
    }

    init?(detecting checkpoint: any Checkpoint) {
        func shape(_ name: String) -> [Int]? { checkpoint.info(name)?.shape }
        func outputs(_ layer: String) -> Int? {
            LinearFormat.leaves.lazy
                .compactMap { shape("blocks.0.\(layer).\($0)") }.first?.first
        }
        guard let embedding = shape("token_embedding.weight"), embedding.count == 2 else {
            return nil
        }
        let positions = shape("blocks.0.pos_embedding.embedding.weight") ?? []
        self.init(
            vocabulary: embedding[0], dim: embedding[1],
            attentionDim: outputs("attn.q") ?? embedding[1],
            feedForward: outputs("ffn.fc1") ?? 4 * embedding[1],
            heads: positions.count == 2 ? positions[1] : max(embedding[1] / 64, 1),
            layers: countEntries("blocks.", in: checkpoint),
            buckets: positions.first ?? 32)
        guard isPlausible(vocabulary, dim, attentionDim, feedForward, heads, buckets) else {
            return nil
        }
    }

    /// The linear layers of a block, which quantisation replaces.
    static let linears =
        ["q", "k", "v", "o"].map { "attn.\($0)" } + ["ffn.gate.0", "ffn.fc1", "ffn.fc2"]

    /// Layers that read the same input, which has one format.
    static let sharedInputs = [["attn.q", "attn.k", "attn.v"], ["ffn.gate.0", "ffn.fc1"]]

    /// The tensors of this model, in the order of the original's state dictionary.
    /// - Parameter checkpoint: each linear layer is expected in the form that it has in this checkpoint; nil: plain.
    public func tensors(storedAs checkpoint: (any Checkpoint)? = nil) -> [ExpectedTensor] {
        var list = [ExpectedTensor("token_embedding.weight", [vocabulary, dim])]
        for block in 0..<layers {
            func add(_ name: String, _ shape: [Int]) {
                list.append(ExpectedTensor("blocks.\(block).\(name)", shape))
            }
            func linear(_ name: String, _ outputs: Int, _ inputs: Int) {
                let layer = "blocks.\(block).\(name)"
                let form = checkpoint.flatMap { LinearFormat.stored(layer, in: $0) } ?? .plain
                list += form.tensors(layer, outputs, inputs)
            }
            add("norm1.weight", [dim])
            for name in ["q", "k", "v"] { linear("attn.\(name)", attentionDim, dim) }
            linear("attn.o", dim, attentionDim)
            add("norm2.weight", [dim])
            linear("ffn.gate.0", feedForward, dim)
            linear("ffn.fc1", feedForward, dim)
            linear("ffn.fc2", dim, feedForward)
            add("pos_embedding.embedding.weight", [buckets, heads])
        }
        list.append(ExpectedTensor("norm.weight", [dim]))
        return list
    }
}
