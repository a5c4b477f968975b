/// What to make: everything that determines the frames, as a value that can be stored and repeated.

import Diffusion
public import Families
import Tensors

/// A LoRA file that is merged into a transformer during loading.
public struct RequestedLoRA: Codable, Sendable, Hashable {
    /// One of the two experts of a model.
    public enum Expert: String, Codable, Sendable {
        case highNoise, lowNoise
    }

    public var path: String
    /// Factor of the change; 1 is what the LoRA was trained for.
    public var strength: Float
    /// nil for both experts, or for the only transformer of a model.
    public var expert: Expert?

    public init(_ path: String, strength: Float = 1, expert: Expert? = nil) {
        self.path = path
        self.strength = strength
        self.expert = expert
    }
}

/// One request for videos. Equal requests give equal frames on the same device with the same model.
public struct Request: Codable, Sendable, Hashable {
    public var prompt: String
    /// What guidance leads away from; nil for the family's default. Used only if the sampling is guided.
    public var negativePrompt: String?
    /// Path of the picture that the video begins with; image-to-video models only.
    public var image: String?
    /// In pixels; multiples of the family's `multiple`.
    public var width, height: Int
    /// One more than a multiple of the family's `multiple.t`.
    public var frames: Int
    public var framesPerSecond: Int
    public var seed: UInt64
    /// Number of videos, all made from one draw of noise.
    public var samples: Int
    public var sampling: Sampling
    public var arithmetic: Arithmetic
    /// In the order in which they are added.
    public var loras: [RequestedLoRA]
    /// Noise level strictly below which the low-noise expert takes the steps, in 0...1; of no effect with one
    /// transformer.
    public var boundary: Double

    public init(
        prompt: String, negativePrompt: String? = nil, image: String? = nil, width: Int,
        height: Int, frames: Int, framesPerSecond: Int = 16, seed: UInt64 = 0, samples: Int = 1,
        sampling: Sampling = .distilled(.init()), arithmetic: Arithmetic = Arithmetic(),
        loras: [RequestedLoRA] = [], boundary: Double = 0.9
    ) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.image = image
        self.width = width
        self.height = height
        self.frames = frames
        self.framesPerSecond = framesPerSecond
        self.seed = seed
        self.samples = samples
        self.sampling = sampling
        self.arithmetic = arithmetic
        self.loras = loras
        self.boundary = boundary
    }

    /// A request with the family's defaults for everything but the prompt.
    public init(_ prompt: String, for family: Family) {
        let defaults = family.defaults
        self.init(
            prompt: prompt, width: defaults.width, height: defaults.height,
            frames: defaults.frames, framesPerSecond: defaults.framesPerSecond,
            sampling: .distilled(defaults.distilled),
            arithmetic: Arithmetic(attention: defaults.attention, topK: defaults.topK),
            boundary: defaults.boundary)
    }

    /// The LoRAs that change a part, in the order in which they are added.
    public func loras(for part: ModelPart) -> [RequestedLoRA] {
        switch part {
        case .transformer: loras.filter { $0.expert != .lowNoise }
        case .lowNoiseTransformer: loras.filter { $0.expert != .highNoise }
        default: []
        }
    }
}

// MARK: - Requests that no model can carry out

/// A request that cannot be carried out. Fields have the library's names; `message` can replace them with the
/// caller's own.
public enum RequestError: Error, Sendable, Hashable, Codable {
    /// A field of a request, or of what it starts from.
    public enum Field: String, Sendable, Hashable, Codable, CaseIterable {
        case prompt, negativePrompt, image, width, height, frames, framesPerSecond, samples, steps
        case sigmaMax, shift, guidance, topK, loras, boundary, linears, textEmbedding, conditioning
        case latents
    }

    /// A value out of range. `advice`: what to do, if there is more to say than what was expected.
    case unusable(Field, found: String, expected: String, advice: String? = nil)
    /// Two choices that exclude each other.
    case conflict(Field, with: String, advice: String)
    /// Something that the run needs is not there.
    case missing(Field, reason: String)

    /// One line, in which every field has the name that `naming` gives it.
    public func message(naming name: (Field) -> String) -> String {
        switch self {
        case .unusable(let field, let found, let expected, let advice):
            "\(name(field)) must be \(expected), not \(found)" + (advice.map { "; \($0)" } ?? "")
        case .conflict(let field, let other, let advice):
            "\(name(field)) does not go with \(other): \(advice)"
        case .missing(let field, let reason):
            "\(name(field)) is missing: \(reason)"
        }
    }
}

extension RequestError: CustomStringConvertible {
    public var description: String { message { $0.rawValue } }
}

extension RequestError {
    /// Throws for a number that is out of its range.
    public static func check(
        _ field: Field, _ value: Double, _ range: ClosedRange<Double>
    ) throws(RequestError) {
        try require(
            range.contains(value), field, value, "\(range.lowerBound) to \(range.upperBound)")
    }
}

extension Request {
    /// The largest number of videos of one request.
    public static let mostSamples = 64

    /// Throws for a request that no model of the family can carry out.
    /// - Parameter hasConditioning: the encoded picture is read from a file, so `image` may be nil.
    public func validate(for family: Family, hasConditioning: Bool = false) throws(RequestError) {
        let isBlank = prompt.unicodeScalars.allSatisfy(\.properties.isWhitespace)
        try require(!isBlank, .prompt, "empty", "words that say what the video should show")
        try validateSize(family.geometry)
        try require(
            (1...240).contains(framesPerSecond), .framesPerSecond, framesPerSecond, "1 to 240")
        try require(
            (1...Self.mostSamples).contains(samples), .samples, samples,
            "1 to \(Self.mostSamples)")
        let topK = arithmetic.topK
        try require(topK > 0 && topK <= 1, .topK, topK, "above 0 and at most 1")
        try require(
            boundary.isFinite && (0...1).contains(boundary), .boundary, boundary, "0 to 1")
        for lora in loras {
            try require(
                lora.strength.isFinite, .loras, "\(lora.path) with strength \(lora.strength)",
                "files with finite strengths")
        }
        try validateSampling()
        if family.conditioning == .firstFrame {
            try require(
                image != nil || hasConditioning, .image, "none",
                "a picture, which this image-to-video model needs")
        } else if image != nil {
            throw .conflict(
                .image, with: "a text-to-video model", advice: "choose an image-to-video model")
        }
    }

    private func validateSize(_ geometry: LatentGeometry) throws(RequestError) {
        let (multiple, largest) = (geometry.multiple, geometry.largest)
        for (field, size, multiple, largest) in [
            (RequestError.Field.width, width, multiple.w, largest.w),
            (.height, height, multiple.h, largest.h),
        ] {
            try require(size <= largest, field, size, "at most \(largest)")
            let nearest =
                size > 0 ? max(multiple, (size + multiple / 2) / multiple * multiple) : multiple
            try require(
                size > 0 && size % multiple == 0, field, size, "a multiple of \(multiple)",
                "nearest: \(nearest)")
        }
        let step = multiple.t
        try require(frames <= largest.t, .frames, frames, "at most \(largest.t)")
        let below = frames > 0 ? max(1, (frames - 1) / step * step + 1) : 1
        try require(
            frames > 0 && (frames - 1) % step == 0, .frames, frames, "\(step)n + 1",
            "nearest: \(below) or \(below + step)")
    }

    private func validateSampling() throws(RequestError) {
        if case .flow(let flow) = sampling {
            if flow.solver == .wanUniPC, flow.sigmaMax != nil {
                throw .conflict(
                    .sigmaMax, with: Sampling.Solver.wanUniPC.rawValue,
                    advice: "that solver has its own first noise level; leave it out, or use unipc")
            }
        }
        _ = try sampler(roundTimesteps: true)
        switch sampling {
        case .distilled(let settings):
            try RequestError.check(.sigmaMax, settings.sigmaMax, Sampling.sigmaMaxRange)
        case .flow(let flow):
            if let sigmaMax = flow.sigmaMax {
                try RequestError.check(.sigmaMax, sigmaMax, Sampling.sigmaMaxRange)
            }
            try RequestError.check(.shift, flow.shift, Sampling.shiftRange)
            try RequestError.check(.guidance, flow.guidance, Sampling.guidanceRange)
        }
    }

    /// - Parameter roundTimesteps: see `RCMSampler`.
    func sampler(roundTimesteps: Bool) throws(RequestError) -> any Sampler {
        do {
            return try sampling.sampler(roundTimesteps: roundTimesteps)
        } catch {
            let field: RequestError.Field =
                switch error.setting {
                case .steps: .steps
                case .sigmaMax: .sigmaMax
                case .shift: .shift
                }
            throw .unusable(field, found: error.found, expected: error.expected)
        }
    }
}

/// Throws if `isRight` is false.
private func require(
    _ isRight: Bool, _ field: RequestError.Field, _ found: some CustomStringConvertible,
    _ expected: String, _ advice: String? = nil
) throws(RequestError) {
    guard isRight else {
        throw .unusable(field, found: "\(found)", expected: expected, advice: advice)
    }
}
