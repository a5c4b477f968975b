/// The stages of a run.

public import Families

/// A stage of a run, as it appears in events and reports. In the order of a run.
public enum Stage: Sendable, Hashable {
    case load(ModelPart)
    case encodeText
    case encodeImage
    /// A transformer's projection of the prompt, once for all steps.
    case projectText(ModelPart)
    /// One step of the sampler: one evaluation of the transformer for each sample, two with guidance. Weights that are
    /// not on the device yet, or do not stay there, are copied in parallel with the computation.
    /// `number` counts from 1; `expert` is which of two transformers is evaluated, nil if there is only one.
    case step(number: Int, of: Int, expert: ModelPart?)
    case decode
    /// Waiting for the video encoder after the last frame has been decoded.
    case deliver

    /// The model that is loaded or evaluated; nil where none is.
    public var part: ModelPart? {
        switch self {
        case .load(let part), .projectText(let part): part
        case .encodeText: .textEncoder
        case .encodeImage: .imageEncoder
        case .step(_, _, let expert): expert ?? .transformer
        case .decode: .decoder
        case .deliver: nil
        }
    }

    /// Name for people: "step 1/4", "VAE decode".
    public var title: String {
        switch self {
        case .load(let part): "load \(part.title)"
        case .encodeText: "text encoder"
        case .encodeImage: "image encoder"
        case .projectText(let part): "text for \(part.title)"
        case .step(let number, let count, nil): "step \(number)/\(count)"
        case .step(let number, let count, .lowNoiseTransformer):
            "step \(number)/\(count) (low noise)"
        case .step(let number, let count, _): "step \(number)/\(count) (high noise)"
        case .decode: "VAE decode"
        case .deliver: "video encoder"
        }
    }
}

/// `{"id": "step", "number": 1, "of": 4}`, `{"id": "load", "part": "vae"}`
extension Stage: Codable {
    private enum Key: CodingKey { case id, part, number, of }
    /// The kind of a stage: one for all steps.
    public enum ID: String, Sendable, Codable {
        case load, encodeText = "encode-text", encodeImage = "encode-image"
        case projectText = "project-text", step, decode, deliver
    }

    public var id: ID {
        switch self {
        case .load: .load
        case .encodeText: .encodeText
        case .encodeImage: .encodeImage
        case .projectText: .projectText
        case .step: .step
        case .decode: .decode
        case .deliver: .deliver
        }
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        func part() throws -> ModelPart { try values.decode(ModelPart.self, forKey: .part) }
        switch try values.decode(ID.self, forKey: .id) {
        case .load: self = .load(try part())
        case .encodeText: self = .encodeText
        case .encodeImage: self = .encodeImage
        case .projectText: self = .projectText(try part())
        case .step:
            self = .step(
                number: try values.decode(Int.self, forKey: .number),
                of: try values.decode(Int.self, forKey: .of),
                expert: try values.decodeIfPresent(ModelPart.self, forKey: .part))
        case .decode: self = .decode
        case .deliver: self = .deliver
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(id, forKey: .id)
        switch self {
        case .load(let part), .projectText(let part): try values.encode(part, forKey: .part)
        case .step(let number, let count, let expert):
            try values.encode(number, forKey: .number)
            try values.encode(count, forKey: .of)
            try values.encodeIfPresent(expert, forKey: .part)
        case .encodeText, .encodeImage, .decode, .deliver: break
        }
    }
}

/// The time and memory that one stage took.
public struct StageReport: Sendable, Hashable, Codable {
    public let stage: Stage
    public let seconds: Double
    /// The most device memory in use at once during the stage, weights included.
    public let peakBytes: Int

    public init(stage: Stage, seconds: Double, peakBytes: Int) {
        self.stage = stage
        self.seconds = seconds
        self.peakBytes = peakBytes
    }
}

/// The time and memory that a run took.
public struct RunReport: Sendable, Hashable, Codable {
    public var device: String
    public var stages: [StageReport]
    public var totalSeconds: Double
    /// The most host memory that the process has used (resident set).
    public var hostPeakBytes: Int

    /// The most device memory in use at once during all stages.
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
