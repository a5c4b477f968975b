/// A run as a value: a request, the models that carry it out, and the list of what is to be done.

package import Diffusion
public import Families
public import Tensors

/// Everything about a run, decided before its first stage. Computes nothing by itself.
public struct Run: Sendable {
    public let request: Request
    public let models: any ModelSource & Sendable
    public var options: RunOptions
    public var noise: NoiseSource
    /// Videos, and the latents of each: as the request says, or as the file has them that the run starts from.
    public let samples: Int
    public let latents: Extent

    public var family: Family { models.family }
    /// Of each frame, in pixels, and how many there are.
    public var video: Extent { family.geometry.video(of: latents) }
    /// [samples, C, T', H', W']
    var latentShape: Shape { [samples, family.geometry.channels, latents.t, latents.h, latents.w] }

    /// - Throws: ``RequestError`` for a request that no model of the family could carry out; ``RunError`` or
    ///   `CheckpointError` where the latents that it starts from cannot be used. Only headers are read.
    public init(
        _ request: Request, _ models: any ModelSource & Sendable,
        _ options: RunOptions = RunOptions(), noise: NoiseSource? = nil
    ) throws {
        self.request = request
        self.models = models
        self.options = options
        self.noise = noise ?? .seeded(PhiloxNoise(seed: request.seed))
        let geometry = models.family.geometry
        if let path = options.start.latents {
            (samples, latents) = try StoredTensors.latentExtent(path, channels: geometry.channels)
        } else {
            try request.validate(
                for: models.family, hasConditioning: options.start.conditioning != nil)
            samples = request.samples
            latents = geometry.latents(
                of: Extent(t: request.frames, h: request.height, w: request.width))
        }
    }

    package var sampler: any Sampler {
        get throws(RequestError) { try request.sampler(roundTimesteps: family.roundsTimesteps) }
    }

    /// The transformer that takes a step.
    func expert(for step: DenoisingStep) -> ModelPart {
        models.experts.count > 1 && usesLowNoiseExpert(at: step.t, boundary: request.boundary)
            ? .lowNoiseTransformer : .transformer
    }

    /// The transformers that take part, in the order of their use.
    var experts: [ModelPart] {
        get throws(RequestError) {
            try sampler.steps.map(expert).reduce(into: []) {
                if !$0.contains($1) { $0.append($1) }
            }
        }
    }

    /// The models that the run loads, in the order of their use.
    public var parts: [ModelPart] {
        get throws {
            try program.compactMap {
                if case .perform(.load(let part)) = $0 { part } else { nil }
            }
        }
    }
}

/// What a run can hand on as a file.
public enum Product: Sendable, Hashable { case text, conditioning, latents }

/// One line of a run's program.
enum Instruction: Sendable, Hashable {
    /// A stage; the decoder's is carried out chunk by chunk.
    case perform(Stage)
    /// Takes a product from the file that the options name.
    case read(Product)
    /// Writes a product to the file that the options name.
    case write(Product)
    /// Draws the noise that the first step starts from.
    case drawNoise
    /// A transformer has taken its last step: the texts as it sees them go.
    case forgetText(ModelPart)
    /// A model leaves the device.
    case release(ModelPart)
}

extension Run {
    /// All that is to be done, in order.
    var program: [Instruction] {
        get throws(RequestError) {
            var list: [Instruction] = []
            if options.start.latents == nil {
                list += textInstructions + imageInstructions
                list += try denoisingInstructions()
            } else {
                list.append(.read(.latents))
            }
            if !options.makesFrames, options.start.latents == nil { return list }
            return list + [.perform(.load(.decoder)), .perform(.decode)]
        }
    }

    private var textInstructions: [Instruction] {
        if options.start.text != nil { return [.read(.text)] }
        return [.perform(.load(.textEncoder)), .perform(.encodeText)]
            + (options.keepsTextEncoder ? [] : [.release(.textEncoder)])
            + (options.save.text == nil ? [] : [.write(.text)])
    }

    private var imageInstructions: [Instruction] {
        if family.conditioning == .none { return [] }
        if options.start.conditioning != nil { return [.read(.conditioning)] }
        return [
            .perform(.load(.imageEncoder)), .perform(.encodeImage), .release(.imageEncoder),
        ] + (options.save.conditioning == nil ? [] : [.write(.conditioning)])
    }

    /// Both experts are opened and shown the text before the first step. Weights come when they are required, so that
    /// this takes next to no memory; those that LoRAs change are computed and come at once, and where there is no room
    /// for two, such a second expert comes when the first one has left.
    private func denoisingInstructions() throws(RequestError) -> [Instruction] {
        func enter(_ part: ModelPart) -> [Instruction] {
            [.perform(.load(part)), .perform(.projectText(part))]
        }
        func comesLate(_ part: ModelPart) -> Bool {
            !options.keepsBothExperts && !request.loras(for: part).isEmpty
        }
        let experts = try experts
        var list = experts.filter { $0 == experts[0] || !comesLate($0) }.flatMap(enter)
        list.append(.drawNoise)
        let steps = try sampler.steps
        var active = experts[0]
        for step in steps {
            let part = expert(for: step)
            if part != active {
                list.append(.forgetText(active))
                if !options.keepsBothExperts { list.append(.release(active)) }
                if comesLate(part) { list += enter(part) }
                active = part
            }
            list.append(
                .perform(
                    .step(
                        number: step.index + 1, of: steps.count,
                        expert: models.experts.count > 1 ? part : nil)))
        }
        if !options.keepsTransformer { list += experts.map(Instruction.release) }
        if options.save.latents != nil { list.append(.write(.latents)) }
        return list
    }
}
