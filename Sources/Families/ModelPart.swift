/// The models that a run is made of.

public import Checkpoints

/// One model with a file of its own, or one half of the autoencoder.
public enum ModelPart: String, Sendable, Hashable, Codable, CaseIterable {
    case textEncoder = "text-encoder"
    /// The autoencoder's half that makes latents of a picture.
    case imageEncoder = "vae-encoder"
    /// The only transformer, or the expert for high noise.
    case transformer
    case lowNoiseTransformer = "low-noise-transformer"
    /// The autoencoder's half that makes frames of latents.
    case decoder = "vae"

    public var isTransformer: Bool { self == .transformer || self == .lowNoiseTransformer }

    /// What its file must hold.
    public var kind: DetectedModel.Kind {
        switch self {
        case .textEncoder: .umT5
        case .imageEncoder, .decoder: .wanVAE
        case .transformer, .lowNoiseTransformer: .wanTransformer
        }
    }

    /// For people: "text encoder".
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
