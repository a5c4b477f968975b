/// Which files make a model, and of which family it is.

public import Checkpoints
import Models

/// The files of one model.
public struct ModelSet: Sendable, Hashable, Codable {
    public var name: String
    public var family: Family
    /// The transformer, or the high-noise expert where there are two.
    public var transformer: String
    /// The expert for noise levels below the request's boundary.
    public var lowNoiseTransformer: String?
    public var textEncoder: String
    public var tokenizer: String
    public var vae: String

    public init(
        name: String, family: Family, transformer: String, lowNoiseTransformer: String? = nil,
        textEncoder: String, tokenizer: String, vae: String
    ) {
        self.name = name
        self.family = family
        self.transformer = transformer
        self.lowNoiseTransformer = lowNoiseTransformer
        self.textEncoder = textEncoder
        self.tokenizer = tokenizer
        self.vae = vae
    }

    /// The file of a part.
    public func path(_ part: ModelPart) -> String {
        switch part {
        case .textEncoder: textEncoder
        case .imageEncoder, .decoder: vae
        case .transformer: transformer
        case .lowNoiseTransformer: lowNoiseTransformer ?? transformer
        }
    }

    /// The transformers, in the order of their use.
    public var experts: [ModelPart] {
        lowNoiseTransformer == nil ? [.transformer] : [.transformer, .lowNoiseTransformer]
    }
}

/// Where the weights of a run's models come from: files, or numbers that are made up.
public protocol ModelSource {
    var family: Family { get }
    /// The transformers, in the order of their use.
    var experts: [ModelPart] { get }
    /// The tokenizer's file.
    var tokenizer: String { get }
    /// What a part is known by: its file.
    func path(_ part: ModelPart) -> String
    /// The opened file of a part: a whole model of its kind.
    /// - Throws: what its header tells against it.
    func file(_ part: ModelPart) throws -> OpenedModel
}

extension ModelSet: ModelSource {
    public func file(_ part: ModelPart) throws -> OpenedModel {
        try openModel(
            path(part), part.kind, heads: part.isTransformer ? family.heads : nil,
            patch: family.geometry.patch)
    }
}
