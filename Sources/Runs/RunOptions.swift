/// How a run is carried out: choices that do not change the frames.

public import Media

/// Which results of stages are read from files or written to files, and what stays in memory.
public struct RunOptions: Sendable, Hashable {
    /// Paths of safetensors files with the results of stages.
    public struct Files: Sendable, Hashable {
        /// The text embeddings.
        public var text: String?
        /// What the transformer is given of the picture.
        public var conditioning: String?
        /// The denoised latents, before decoding.
        public var latents: String?

        public init(text: String? = nil, conditioning: String? = nil, latents: String? = nil) {
            self.text = text
            self.conditioning = conditioning
            self.latents = latents
        }
    }

    /// Results that are read instead of computed. With latents, only the decoder runs.
    public var start = Files()
    /// Results that are written.
    public var save = Files()
    /// Whether they replace files that exist; if not, they get a number: `latents-2.safetensors`.
    public var replacesSaved = true
    /// Whether the latents are decoded. If not, they must be saved.
    public var makesFrames = true
    /// Format of the frames: RGB for pictures, or NV12 for video encoders.
    public var pixelFormat = PixelFormat.rgb24
    /// Keeps the text encoder on the device after use, for the next run.
    public var keepsTextEncoder = false
    /// The same for the encoder half of the VAE.
    public var keepsImageEncoder = false
    /// Keeps the transformer on the device during decoding, and for the next run.
    public var keepsTransformer = true
    /// Keeps both experts on the device, if there are two.
    public var keepsBothExperts = true
    /// Which models of other runs may stay on the device; nil: none that this run does not use.
    public var residency: Residency?
    /// Keeps the video as each step predicts it, for `RunHandle.preview`.
    public var keepsPrediction = false
    /// Copies a transformer's weights to the device when they are first required, in parallel with the computation,
    /// instead of when it is loaded.
    package var defersWeights = true

    public init() {}
}
