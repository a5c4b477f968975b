/// The sizes of a Wan transformer and the choices of a run.

public import Checkpoints
public import Tensors

/// The sizes of a Wan 2.1 or 2.2 transformer.
public struct WanTransformerConfig: Sendable, Hashable {
    public var dim: Int
    public var ffnDim: Int
    public var heads: Int
    public var layers: Int
    /// Channels of the input: 16 latents, or 16 + 4 mask + 16 image latents.
    public var inputChannels: Int
    public var outputChannels: Int
    public var textDim: Int
    /// Width of the sinusoidal embedding of the timestep.
    public var frequencyDim: Int
    public var epsilon: Float = 1e-6

    public var headDim: Int { dim / heads }
    /// Features of one patch of 1x2x2 latent pixels, per channel.
    public static let patch = 4

    /// Reads the sizes off a checkpoint. The number of heads leaves no trace there: `heads` or dim / 128.
    public init(detectedFrom weights: Weights, heads: Int? = nil) throws(CheckpointError) {
        let patchEmbedding = try weights["patch_embedding"].matrixExtents()
        let block = weights["blocks"][0]
        dim = patchEmbedding.outputs
        inputChannels = patchEmbedding.inputs / Self.patch
        ffnDim = try block["ffn"][0].matrixExtents().outputs
        layers = weights["blocks"].count(having: "modulation")
        textDim = try weights["text_embedding"][0].matrixExtents().inputs
        frequencyDim = try weights["time_embedding"][0].matrixExtents().inputs
        outputChannels = try weights["head"]["head"].matrixExtents().outputs / Self.patch
        self.heads = heads ?? max(1, dim / 128)
        guard self.heads > 0, dim % self.heads == 0, (dim / self.heads) % 2 == 0 else {
            throw .wrongModel(
                path: weights.file, expected: "a transformer with \(self.heads) heads",
                found: "one of width \(dim)",
                differences: ["\(dim) is not \(self.heads) heads of an even width"])
        }
    }
}

/// How self-attention is computed.
public enum SelfAttentionKind: Sendable, Hashable {
    /// Every token attends to every token.
    case original
    /// SLA or SageSLA; the checkpoint holds `proj_l`.
    case sparse(SparseAttention)
}

/// What a run chooses and the checkpoint does not say.
public struct WanTransformerOptions: Sendable, Hashable {
    public var attention: SelfAttentionKind
    public var norms: NormKind
    /// nil: dim / 128
    public var heads: Int?

    public init(
        attention: SelfAttentionKind = .original, norms: NormKind = .exact, heads: Int? = nil
    ) {
        self.attention = attention
        self.norms = norms
        self.heads = heads
    }
}
