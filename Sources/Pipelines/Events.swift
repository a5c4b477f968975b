/// What a run tells its caller: where it is, how long each stage took, how much memory it needed.

public import Media

/// The stages of a run, in order.
public enum Stage: Sendable, Hashable, Encodable {
    case load(ModelRole)
    case textEncoder
    case imageEncoder
    /// What a transformer makes of the prompt, once for all steps.
    case textProjection(ModelRole)
    /// One step of the sampler: one evaluation of the transformer for each sample, two with guidance. Weights
    /// that are on the device for the first time, or only visit it, come behind this computation.
    /// `expert`: which of two transformers answers; nil where there is one.
    case denoise(step: Int, of: Int, expert: ModelRole?)
    case decode
    /// Waiting for the video encoder after the last frame was decoded.
    case encode

    public var name: String {
        switch self {
        case .load(let role): "load \(role.rawValue)"
        case .textEncoder: "text encoder"
        case .imageEncoder: "image encoder"
        case .textProjection(let role): "text for \(role.rawValue)"
        case .denoise(let step, let count, nil): "step \(step)/\(count)"
        case .denoise(let step, let count, .lowNoiseTransformer):
            "step \(step)/\(count) (low noise)"
        case .denoise(let step, let count, _): "step \(step)/\(count) (high noise)"
        case .decode: "VAE decode"
        case .encode: "video encoder"
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(name)
    }
}

/// The models of a run.
public enum ModelRole: String, Sendable, Hashable {
    case textEncoder = "text encoder"
    case imageEncoder = "VAE encoder"
    case transformer
    case lowNoiseTransformer = "low-noise transformer"
    case decoder = "VAE"
}

/// What one stage took.
public struct StageReport: Sendable, Hashable, Encodable {
    public let stage: Stage
    public let seconds: Double
    /// Most device memory held at once during the stage, weights included.
    public let peakBytes: Int

    public init(stage: Stage, seconds: Double, peakBytes: Int) {
        self.stage = stage
        self.seconds = seconds
        self.peakBytes = peakBytes
    }
}

/// Something that happened during a run.
public enum PipelineEvent: Sendable {
    case started(Stage)
    /// Share of the stage that is done, in 0...1.
    case progress(Stage, Double)
    case finished(StageReport)
    /// The prompt was cut to the model's length: tokens kept, tokens dropped.
    case promptCut(kept: Int, dropped: Int)
    /// Something the user should know; the run goes on.
    case note(String)
}

/// A whole run.
public struct RunReport: Sendable, Encodable {
    public var device: String
    public var stages: [StageReport]
    public var totalSeconds: Double
    /// Most host memory the process held (resident set).
    public var hostPeakBytes: Int

    public var peakBytes: Int { stages.map(\.peakBytes).max() ?? 0 }

    public init(
        device: String, stages: [StageReport], totalSeconds: Double, hostPeakBytes: Int
    ) {
        self.device = device
        self.stages = stages
        self.totalSeconds = totalSeconds
        self.hostPeakBytes = hostPeakBytes
    }
}

/// Finished frames on their way to a file. One chunk of one sample.
public struct FrameChunk: Sendable {
    public let sample: Int
    public let width, height, count: Int
    public let format: PixelFormat
    /// `count` frames in `format`, one after the other.
    public let bytes: [UInt8]
}

/// The model produced numbers that are not finite.
public struct NonFiniteError: Error, Sendable, CustomStringConvertible {
    public let stage: Stage
    /// A tensor of the checkpoint that holds the first such number, where that is the cause.
    public let tensor: String?

    public var description: String {
        if case .load = stage, let tensor {
            return
                "\(stage.name): tensor \(tensor) holds numbers that are not finite (NaN or infinity): "
                + "the file is damaged; download it again"
        }
        let place = "\(stage.name) produced numbers that are not finite (NaN or infinity)"
        guard let tensor else {
            return place + "; the weights are finite: try --precision f32"
        }
        return place
            + ": the weights are damaged, first in tensor \(tensor); download the file again"
    }
}
