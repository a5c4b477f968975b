/// How a run is carried out: what does not change the frames of a request.

public import Media

/// Stages that start from a file or are written to one, and what stays in memory.
public struct RunOptions: Sendable, Hashable {
    /// Files that stand in for a stage.
    public struct Files: Sendable, Hashable {
        /// The prompt as the text encoder makes it.
        public var text: String?
        /// The picture as the transformer is told of it.
        public var conditioning: String?
        /// The sample before it is decoded.
        public var latents: String?

        public init(text: String? = nil, conditioning: String? = nil, latents: String? = nil) {
            self.text = text
            self.conditioning = conditioning
            self.latents = latents
        }
    }

    /// Stages that are not computed but read. Latents leave only the decoder to be run.
    public var start = Files()
    /// Results of stages that are written.
    public var save = Files()
    /// Whether the latents are decoded. A run that does not needs latents that are written.
    public var makesFrames = true
    /// How frames are delivered: as pictures want them, or as video encoders do.
    public var pixelFormat = PixelFormat.rgb24
    /// Keep the text encoder on the device after use, for the next run.
    public var keepsTextEncoder = false
    /// Keep the transformer on the device while frames are decoded, and for the next run.
    public var keepsTransformer = true
    /// Keep both experts on the device, where there are two.
    public var keepsBothExperts = true
    /// A transformer's weights come when they are first required, behind the computation, and not when it is loaded.
    package var defersWeights = true

    public init() {}
}
