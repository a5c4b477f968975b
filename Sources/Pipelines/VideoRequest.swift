/// What to make: every option that decides the frames, as a value that can be stored and repeated.

public import Diffusion

/// How the flow is solved.
public enum SamplerChoice: String, Codable, Sendable, CaseIterable {
    /// Distilled models: 1 to 4 steps.
    case rcm
    /// Undistilled models, from pure noise.
    case unipc, euler
    /// UniPC on the noise levels and whole timesteps of Wan2.1's own generate.py.
    case wanUniPC = "wan-unipc"
}

/// Which attention the transformer's self-attention uses.
public enum AttentionChoice: String, Codable, Sendable, CaseIterable {
    case original, sla, sagesla
}

/// Arithmetic of activations and dense weights.
public enum Precision: String, Codable, Sendable, CaseIterable {
    case f32, bf16
}

/// The form of the linear layers in the transformer's blocks.
public enum LinearChoice: String, Codable, Sendable, CaseIterable {
    /// As the checkpoint stores them.
    case stored
    /// Plain ones are quantised while loading.
    case int8, fp8
}

/// A LoRA file that is merged into a transformer while it is loaded.
public struct RequestedLoRA: Codable, Sendable, Equatable {
    /// One of two experts.
    public enum Expert: String, Codable, Sendable {
        case highNoise, lowNoise
    }

    public var path: String
    /// Factor of the change; 1 is as it was trained.
    public var strength: Float
    /// nil changes both experts, and the transformer of a model that has but one.
    public var expert: Expert?

    public init(_ path: String, strength: Float = 1, expert: Expert? = nil) {
        self.path = path
        self.strength = strength
        self.expert = expert
    }
}

extension KeyedDecodingContainer {
    /// Requests of earlier versions name no LoRAs.
    func decode(_ type: [RequestedLoRA].Type, forKey key: Key) throws -> [RequestedLoRA] {
        try decodeIfPresent(type, forKey: key) ?? []
    }
}

/// One request for videos. Two runs of an equal request on one device give the same frames.
public struct VideoRequest: Codable, Sendable, Equatable {
    public var prompt: String
    /// What guidance leads away from; nil for the model's default. Only used when `guidance` is not 1.
    public var negativePrompt: String?
    /// In pixels, multiples of 16.
    public var width, height: Int
    /// 4n + 1
    public var frames: Int
    public var framesPerSecond: Int
    public var seed: UInt64
    /// Videos made from one noise draw.
    public var samples: Int

    public var sampler: SamplerChoice
    public var steps: Int
    public var sigmaMax: Double?
    /// rCM without fresh noise.
    public var ode: Bool
    /// Schedule shift of undistilled models' samplers.
    public var shift: Double
    public var guidance: Double

    public var attention: AttentionChoice
    /// Share of key blocks attended exactly by SLA and SageSLA.
    public var topK: Double
    /// The original's fast norms with their variance quirk, instead of the exact ones.
    public var referenceNorms: Bool
    public var precision: Precision
    public var linears: LinearChoice
    /// In the order in which they are added.
    public var loras: [RequestedLoRA]

    /// Image to video: the picture, and the noise level at which the low-noise expert takes over.
    public var image: String?
    public var boundary: Double

    public init(
        prompt: String, negativePrompt: String? = nil, width: Int, height: Int, frames: Int,
        framesPerSecond: Int = 16, seed: UInt64 = 0, samples: Int = 1,
        sampler: SamplerChoice = .rcm, steps: Int = 4, sigmaMax: Double? = 80, ode: Bool = false,
        shift: Double = 5, guidance: Double = 1, attention: AttentionChoice = .sagesla,
        topK: Double = 0.1, referenceNorms: Bool = false, precision: Precision = .bf16,
        linears: LinearChoice = .stored, loras: [RequestedLoRA] = [], image: String? = nil,
        boundary: Double = 0.9
    ) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.width = width
        self.height = height
        self.frames = frames
        self.framesPerSecond = framesPerSecond
        self.seed = seed
        self.samples = samples
        self.sampler = sampler
        self.steps = steps
        self.sigmaMax = sigmaMax
        self.ode = ode
        self.shift = shift
        self.guidance = guidance
        self.attention = attention
        self.topK = topK
        self.referenceNorms = referenceNorms
        self.precision = precision
        self.linears = linears
        self.loras = loras
        self.image = image
        self.boundary = boundary
    }

    /// Latent frames, rows and columns.
    public var latentSize: (t: Int, h: Int, w: Int) {
        (1 + (frames - 1) / 4, height / 8, width / 8)
    }
    /// Tokens of the transformer's sequence.
    public var tokens: Int { latentSize.t * (latentSize.h / 2) * (latentSize.w / 2) }
    /// Whether the model is also asked about the negative prompt.
    public var isGuided: Bool { guidance != 1 }
}

/// A request that cannot be carried out: what was expected, what was found, what to do.
public struct RequestError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

extension VideoRequest {
    /// Longest side in pixels: the rotary tables of the models end at 128 latent patches.
    public static let largestSide = 128 * 16
    /// 128 latent frames.
    public static let mostFrames = 4 * 127 + 1

    /// Throws for anything that no model could do.
    public func validate() throws(RequestError) {
        guard prompt.unicodeScalars.contains(where: { !$0.properties.isWhitespace }) else {
            throw RequestError("the prompt is empty: say in words what the video should show")
        }
        for (name, size) in [("width", width), ("height", height)] {
            guard size > 0, size % 16 == 0 else {
                let nearest = max(16, (size + 8) / 16 * 16)
                throw RequestError(
                    "\(name) must be a multiple of 16, not \(size); nearest: \(nearest)")
            }
            guard size <= Self.largestSide else {
                throw RequestError("\(name) must be at most \(Self.largestSide), not \(size)")
            }
        }
        guard frames > 0, frames % 4 == 1 else {
            let below = max(1, (frames - 1) / 4 * 4 + 1)
            throw RequestError(
                "the number of frames must be 4n + 1, not \(frames); nearest: \(below) or \(below + 4)"
            )
        }
        guard frames <= Self.mostFrames else {
            throw RequestError("at most \(Self.mostFrames) frames, not \(frames)")
        }
        guard (1...240).contains(framesPerSecond) else {
            throw RequestError("frames per second must be 1 to 240, not \(framesPerSecond)")
        }
        guard (1...64).contains(samples) else {
            throw RequestError("the number of samples must be 1 to 64, not \(samples)")
        }
        guard topK > 0, topK <= 1 else {
            throw RequestError("sla_topk must be above 0 and at most 1, not \(topK)")
        }
        guard guidance.isFinite, guidance >= 0 else {
            throw RequestError("guidance must be 0 or more, not \(guidance)")
        }
        if sampler == .rcm, isGuided {
            throw RequestError(
                "distilled models take no guidance: leave --guidance out, or name an undistilled model "
                    + "and --sampler unipc")
        }
        if sampler == .wanUniPC, sigmaMax != nil {
            throw RequestError(
                "wan-unipc begins at a noise level of its own: leave --sigma_max out, or take "
                    + "--sampler unipc")
        }
        for lora in loras where !lora.strength.isFinite {
            throw RequestError("\(lora.path): the strength must be a number, not \(lora.strength)")
        }
        do {
            _ = try makeSampler(roundTimesteps: true)
        } catch {
            throw RequestError(error.description)
        }
    }

    /// - Parameter roundTimesteps: see `RCMSampler`.
    public func makeSampler(roundTimesteps: Bool) throws(SamplerError) -> any Sampler {
        switch sampler {
        case .rcm:
            try RCMSampler(
                count: steps, sigmaMax: sigmaMax ?? 80, solver: ode ? .ode : .sde,
                roundTimesteps: roundTimesteps)
        case .euler:
            EulerSampler(try FlowSchedule(count: steps, shift: shift, sigmaMax: sigmaMax))
        case .unipc:
            UniPCSampler(try FlowSchedule(count: steps, shift: shift, sigmaMax: sigmaMax))
        case .wanUniPC:
            UniPCSampler(try FlowSchedule.wan(count: steps, shift: shift))
        }
    }
}
