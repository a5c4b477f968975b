/// A family of models: its latents, its conditioning, and the defaults of a request.

public import Models
public import Tensors

extension NormKind: Codable {}
extension LatentStatistics: Codable {
    private enum Key: CodingKey { case mean, std }
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        let mean = try values.decode([Float].self, forKey: .mean)
        let std = try values.decode([Float].self, forKey: .std)
        guard mean.count == std.count else {
            throw DecodingError.dataCorruptedError(
                forKey: .std, in: values,
                debugDescription: "\(std.count) deviations for \(mean.count) means")
        }
        self.init(mean: mean, std: std)
    }
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(mean, forKey: .mean)
        try values.encode(std, forKey: .std)
    }
}

/// What all models of one family share: everything that a run needs to know beyond its files and its request.
public struct Family: Sendable, Hashable, Codable {
    public var name: String
    public var geometry: LatentGeometry
    /// Mean and standard deviation of each latent channel.
    public var statistics: LatentStatistics
    public var conditioning: Conditioning
    /// Rows of the text embedding, padding included.
    public var textLength: Int
    /// Number of the transformer's attention heads; nil for what its file says, or else width / 128.
    public var heads: Int?
    /// Whether timesteps are rounded to bf16, as in the published models.
    public var roundsTimesteps: Bool
    public var defaults: Defaults
    /// How latents become small pictures without decoding; nil if no such map is known.
    public var preview: LatentPreview? = .wan
    /// What a small model was trained on; nil: nothing is known, or nearly everything.
    public var training: Training?

    /// What the transformer is given besides text and noise.
    public enum Conditioning: String, Sendable, Hashable, Codable {
        /// Nothing: text to video.
        case none
        /// A mask of the first frame, and the latents of a video that begins with the picture and continues in grey.
        case firstFrame
    }

    /// The values of a request that are not given.
    public struct Defaults: Sendable, Hashable, Codable {
        public var width = 832
        public var height = 480
        public var frames = 81
        public var framesPerSecond = 16
        public var distilled = Sampling.Distilled()
        public var flow = Sampling.Flow()
        public var attention = AttentionChoice.sagesla
        public var topK = 0.1
        /// The prompt that guidance leads away from. It is Wan2.1's own (wan/configs/shared_config.py): garish,
        /// overexposed, static, blurred, subtitles, and so on.
        public var negativePrompt = wanNegativePrompt
        /// Noise level strictly below which the low-noise of two experts takes the steps, in 0...1.
        public var boundary = 0.875

        public init() {}
    }

    public init(
        name: String, geometry: LatentGeometry = LatentGeometry(),
        statistics: LatentStatistics = .wan, conditioning: Conditioning = .none,
        textLength: Int = 512, heads: Int? = nil, roundsTimesteps: Bool = true,
        defaults: Defaults = Defaults()
    ) {
        self.name = name
        self.geometry = geometry
        self.statistics = statistics
        self.conditioning = conditioning
        self.textLength = textLength
        self.heads = heads
        self.roundsTimesteps = roundsTimesteps
        self.defaults = defaults
    }

    /// Channels of the conditioning: a mask value for each frame of a latent, then the picture's latents.
    public var conditioningChannels: Int {
        conditioning == .none ? 0 : geometry.stride.t + geometry.channels
    }
    /// Channels of the transformer's input.
    public var inputChannels: Int { geometry.channels + conditioningChannels }
}

extension Family {
    /// Wan2.1 text to video: 1.3B and 14B.
    public static let wan21 = Family(name: "Wan2.1")

    /// Wan2.2 image to video: A14B, with two experts.
    public static let wan22I2V: Family = {
        var family = Family(name: "Wan2.2 I2V", conditioning: .firstFrame)
        family.defaults.distilled.sigmaMax = 200
        family.defaults.boundary = 0.9
        (family.defaults.width, family.defaults.height) = (1280, 720)
        return family
    }()
}

private let wanNegativePrompt =
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    + "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    + "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
