/// A run as a value: a request, the models that carry it out, and the list of instructions.

package import Diffusion
public import Families
public import Tensors

/// Everything about a run, decided before its first stage. It computes nothing itself.
public struct Run: Sendable {
    /// Of a run that starts from latents, the size is theirs.
    public let request: Request
    /// What is opened of them stays open as long as the run or a copy of it exists.
    public let models: OpenedModels
    public var options: RunOptions
    public var noise: NoiseSource
    /// The number of videos, and the size of each one's latents: from the request, or from the file of latents that the
    /// run starts from.
    public let samples: Int
    public let latents: Extent

    public var family: Family { models.family }
    /// The size of each video, in frames and pixels.
    public var video: Extent { family.geometry.video(of: latents) }
    /// [samples, C, T', H', W']
    var latentShape: Shape { [samples, family.geometry.channels, latents.t, latents.h, latents.w] }

    /// Checks the request. Reads at most the header of a file of latents.
    /// - Throws: ``RequestError`` for a request that no model of the family can carry out; ``RunError`` or
    ///   `CheckpointError` if the latents that the run starts from cannot be used.
    public init(
        _ request: Request, _ models: any ModelSource & Sendable,
        _ options: RunOptions = RunOptions(), noise: NoiseSource? = nil
    ) throws {
        self.models = OpenedModels(models)
        self.options = options
        self.noise = noise ?? .seeded(PhiloxNoise(seed: request.seed))
        let geometry = models.family.geometry
        if let path = options.start.latents {
            (samples, latents) = try StoredTensors.latentExtent(path, channels: geometry.channels)
            let video = geometry.video(of: latents)
            var request = request
            (request.width, request.height, request.frames) = (video.w, video.h, video.t)
            request.samples = samples
            self.request = request
        } else {
            try request.validate(
                for: models.family, hasConditioning: options.start.conditioning != nil)
            samples = request.samples
            latents = geometry.latents(
                of: Extent(t: request.frames, h: request.height, w: request.width))
            self.request = request
        }
    }

    package var sampler: any Sampler {
        get throws(RequestError) { try request.sampler(roundTimesteps: family.roundsTimesteps) }
    }

    /// The transformer that computes a step.
    func expert(for step: DenoisingStep) -> ModelPart {
        models.experts.count > 1 && usesLowNoiseExpert(at: step.t, boundary: request.boundary)
            ? .lowNoiseTransformer : .transformer
    }

    /// The transformers that the run uses, in the order of their first step.
    var experts: [ModelPart] {
        get throws(RequestError) {
            try sampler.steps.map(expert).reduce(into: []) {
                if !$0.contains($1) { $0.append($1) }
            }
        }
    }

    /// What the request asks beyond the training of a small model.
    var requestNotices: [Notice] {
        guard let training = family.training, options.start.latents == nil else { return [] }
        let excess = training.excess(
            prompt: options.start.text == nil ? request.prompt : "", width: request.width,
            height: request.height, frames: request.frames)
        if excess.isEmpty { return [] }
        let size = "\(training.width)x\(training.height), \(training.frames) frames"
        return [
            .untrained(
                model: family.name, subject: "\(training.subject), \(size)", excess: excess,
                page: training.page)
        ]
    }

    /// The files that the run opens beside those of its models.
    public var inputFiles: [String] {
        let start = options.start
        if let latents = start.latents { return [latents] }
        let picture = start.conditioning == nil ? request.image : nil
        return [start.text, start.conditioning, picture].compactMap { $0 }
            + request.loras.map(\.path)
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

/// An intermediate result that can be read from a file or written to one.
public enum Product: Sendable, Hashable { case text, conditioning, latents }

/// One instruction of a run's program.
enum Instruction: Sendable, Hashable {
    /// Executes a stage; decoding is executed chunk by chunk.
    case perform(Stage)
    /// Reads a product from the file named in the options.
    case read(Product)
    /// Writes a product to the file named in the options.
    case write(Product)
    /// Draws the noise that the first step starts from.
    case drawNoise
    /// Drops the projected texts of a transformer that has computed its last step.
    case forgetText(ModelPart)
    /// Removes a model from the device.
    case release(ModelPart)
}

extension Run {
    /// All instructions, in order.
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
            .perform(.load(.imageEncoder)), .perform(.encodeImage),
        ] + (options.keepsImageEncoder ? [] : [.release(.imageEncoder)])
            + (options.save.conditioning == nil ? [] : [.write(.conditioning)])
    }

    /// Both experts are opened, and the text is projected for them, before the first step. Their weights are loaded
    /// when first required, so this takes almost no memory. Weights that LoRAs change are an exception, because they
    /// are computed and loaded at once: without room for both, such a second expert is opened when the first has left.
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
