/// The files of a model, and its family.

public import Checkpoints
import Models

/// A model: the paths of its files, and its family.
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

    /// The path of a part's file.
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

/// Where the weights of a run's models come from: files, or random numbers.
public protocol ModelSource {
    var family: Family { get }
    /// The transformers, in the order of their use.
    var experts: [ModelPart] { get }
    /// The path of the tokenizer's file.
    var tokenizer: String { get }
    /// The path of a part's file, which also identifies the part.
    func path(_ part: ModelPart) -> String
    /// Opens the file of a part.
    /// - Throws: if its header shows that it is not a complete model of the part's kind.
    func file(_ part: ModelPart) throws -> OpenedModel
}

extension ModelSet: ModelSource {
    public func file(_ part: ModelPart) throws -> OpenedModel {
        try openModel(
            path(part), part.kind, heads: part.isTransformer ? family.heads : nil,
            patch: family.geometry.patch)
    }
}
