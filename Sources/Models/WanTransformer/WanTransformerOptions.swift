/// What a run chooses and the checkpoint does not say.

public import Tensors

/// How self-attention is computed.
public enum SelfAttentionKind: Sendable, Hashable {
    /// Every token attends to every token.
    case original
    /// SLA or SageSLA; the checkpoint holds `proj_l`.
    case sparse(SparseAttention)
}

/// How a transformer is to be run.
public struct WanTransformerOptions: Sendable, Hashable {
    public var attention: SelfAttentionKind
    public var norms: NormKind
    /// nil: as `proj_l` tells, or heads of 128.
    public var heads: Int?
    /// Rows and columns of latents that make one token.
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
