/// How a run is carried out: what does not change the frames.

public import Media
public import Tensors

/// Stages that start from a file or are written to one, and what stays in memory.
public struct RunOptions: Sendable, Equatable {
    /// A file with the text embedding, instead of the text encoder.
    public var textEmbedding: String?
    /// A file with latents: only the decoder runs.
    public var latents: String?
    public var saveTextEmbedding: String?
    public var saveLatents: String?
    /// How frames are delivered: as pictures want them, or as video encoders do.
    public var pixelFormat = PixelFormat.rgb24
    /// Keep the text encoder on the device after use, for the next run.
    public var keepsTextEncoder = false
    /// Keep the transformer on the device while frames are decoded, and for the next run.
    public var keepsTransformer = true
    /// Keep both experts on the device, where there are two.
    public var keepsBothExperts = true

    public init() {}
}

/// A device on its thread.
public struct OpenedDevice {
    public let backend: any Backend
    /// Whose 8-bit arithmetic SageSLA uses on this device.
    public let sageArchitecture: SageArchitecture

    public init(_ backend: any Backend, sageArchitecture: SageArchitecture) {
        self.backend = backend
        self.sageArchitecture = sageArchitecture
    }
}

/// One step that the sampler has taken.
public struct DenoisedStep: Sendable, Hashable {
    /// From 1.
    public let number: Int
    public let count: Int
    /// Noise levels before and after, 1 for pure noise.
    public let from, to: Double
}
