/// The parts of a model that a run uses.

public import Checkpoints

/// A network with its own file, or one half of the autoencoder.
public enum ModelPart: String, Sendable, Hashable, Codable, CaseIterable {
    case textEncoder = "text-encoder"
    /// The half of the autoencoder that makes latents from a picture.
    case imageEncoder = "vae-encoder"
    /// The only transformer, or the expert for high noise levels.
    case transformer
    case lowNoiseTransformer = "low-noise-transformer"
    /// The half of the autoencoder that makes frames from latents.
    case decoder = "vae"

    /// Whether this is the transformer or one of the two experts.
    public var isTransformer: Bool { self == .transformer || self == .lowNoiseTransformer }

    /// The kind of model that its file must contain.
    public var kind: DetectedModel.Kind {
        switch self {
        case .textEncoder: .umT5
        case .imageEncoder, .decoder: .wanVAE
        case .transformer, .lowNoiseTransformer: .wanTransformer
        }
    }

    /// Name for people: "text encoder".
    public var title: String {
        switch self {
        case .textEncoder: "text encoder"
        case .imageEncoder: "VAE encoder"
        case .transformer: "transformer"
        case .lowNoiseTransformer: "low-noise transformer"
        case .decoder: "VAE"
        }
    }
}
