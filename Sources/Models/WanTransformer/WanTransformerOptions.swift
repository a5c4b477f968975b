/// Options of the transformer that are not in its checkpoint.

public import Tensors

/// How self-attention is computed.
public enum SelfAttentionKind: Sendable, Hashable {
    /// Every token attends to every token.
    case original
    /// SLA or SageSLA; needs `proj_l` in the checkpoint.
    case sparse(SparseAttention)
}

/// Options of a transformer.
public struct WanTransformerOptions: Sendable, Hashable {
    public var attention: SelfAttentionKind
    public var norms: NormKind
    /// Number of heads; nil for what the size of `proj_l` implies, or else for heads of 128.
    public var heads: Int?
    /// Rows and columns of latents per token.
    public var patch: Int

    public init(
        attention: SelfAttentionKind = .original, norms: NormKind = .exact, heads: Int? = nil,
        patch: Int = 2
    ) {
        self.patch = patch
        self.attention = attention
        self.norms = norms
        self.heads = heads
    }
}
