/// The arithmetic of a run: precision, attention, linear layers, norms.

public import Models
public import Tensors

/// The kind of the transformer's self-attention: dense, SLA, or SLA with 8-bit kernels.
public enum AttentionChoice: String, Codable, Sendable, CaseIterable {
    case original, sla, sagesla
}

/// Type of the activations and dense weights.
public enum Precision: String, Codable, Sendable, CaseIterable {
    case f32, bf16

    public var dtype: DType { self == .f32 ? .f32 : .bf16 }
}

/// The form of the linear layers in the transformer's blocks.
public enum LinearChoice: String, Codable, Sendable, CaseIterable {
    /// As the checkpoint stores them.
    case stored
    /// Dense ones are quantised while loading.
    case int8, fp8

    /// The form that a file has.
    public init(_ format: LinearFormat) {
        switch format {
        case .plain: self = .stored
        case .int8Blocks: self = .int8
        case .fp8Rows: self = .fp8
        }
    }

    public var format: LinearFormat {
        switch self {
        case .stored: .plain
        case .int8: .int8Blocks
        case .fp8: .fp8Rows
        }
    }
}

/// All choices of arithmetic that a request makes.
public struct Arithmetic: Sendable, Hashable, Codable {
    public var precision: Precision
    public var linears: LinearChoice
    public var attention: AttentionChoice
    /// Share of the key blocks to which SLA and SageSLA attend exactly, in (0, 1].
    public var topK: Double
    /// The textbook norms, or the original's fast ones.
    public var norms: NormKind

    public init(
        precision: Precision = .bf16, linears: LinearChoice = .stored,
        attention: AttentionChoice = .sagesla, topK: Double = 0.1, norms: NormKind = .exact
    ) {
        self.precision = precision
        self.linears = linears
        self.attention = attention
        self.topK = topK
        self.norms = norms
    }

    /// The transformer's options.
    /// - Parameters:
    ///   - sage: the kind of card whose 8-bit arithmetic SageSLA uses.
    ///   - family: supplies the number of heads and the patch size, which a checkpoint may not contain.
    public func transformerOptions(sage: SageArchitecture, family: Family)
        -> WanTransformerOptions
    {
        let kind: SelfAttentionKind =
            switch attention {
            case .original: .original
            case .sla:
                .sparse(
                    SparseAttention(topK: topK, arithmetic: precision == .f32 ? .exact : .bf16))
            case .sagesla: .sparse(SparseAttention(topK: topK, arithmetic: .sage(sage)))
            }
        return WanTransformerOptions(
            attention: kind, norms: norms, heads: family.heads, patch: family.geometry.patch)
    }
}
