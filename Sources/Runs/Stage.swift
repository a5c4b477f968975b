/// The stages of a run.

public import Families

/// One thing that a run does and its report tells of, in the order of a run.
public enum Stage: Sendable, Hashable {
    case load(ModelPart)
    case encodeText
    case encodeImage
    /// What a transformer makes of the prompt, once for all steps.
    case projectText(ModelPart)
    /// One step of the sampler: one evaluation of the transformer for each sample, two with guidance. Weights that are
    /// on the device for the first time, or only visit it, come behind this computation.
    /// `number` counts from 1; `expert`: which of two transformers answers, nil where there is one.
    case step(number: Int, of: Int, expert: ModelPart?)
    case decode
    /// Waiting for the video encoder after the last frame was decoded.
    case deliver

    /// For people.
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
    private enum ID: String, Codable {
        case load, encodeText = "encode-text", encodeImage = "encode-image"
        case projectText = "project-text", step, decode, deliver
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
        let id: ID
        var part: ModelPart?
        switch self {
        case .load(let model): (id, part) = (.load, model)
        case .encodeText: id = .encodeText
        case .encodeImage: id = .encodeImage
        case .projectText(let model): (id, part) = (.projectText, model)
        case .step(let number, let count, let expert):
            (id, part) = (.step, expert)
            try values.encode(number, forKey: .number)
            try values.encode(count, forKey: .of)
        case .decode: id = .decode
        case .deliver: id = .deliver
        }
        try values.encode(id, forKey: .id)
        try values.encodeIfPresent(part, forKey: .part)
    }
}

/// What one stage took.
public struct StageReport: Sendable, Hashable, Codable {
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

/// A whole run.
public struct RunReport: Sendable, Hashable, Codable {
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
