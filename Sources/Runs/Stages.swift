/// The stages of a run, each a function of the current values, the models, the family and the device.

import Checkpoints
import Diffusion
import Families
import Ground
package import Media
import Models
package import Tensors
import Tokenizers

extension Walk {
    /// Loads a model from its checkpoint. Progress is counted in bytes.
    func load(_ part: ModelPart, tells: Bool = true) throws -> LoadedModel {
        let checkpoint = try run.models.checkpoint(part)
        let total = checkpoint.names.reduce(0) { $0 + (checkpoint.info($1)?.byteCount ?? 0) }
        // A NaN or infinity can disappear (in a maximum, a softmax, a rounding to 8 bits) and still spoil the frames.
        // So weights are checked where that costs little: in files of up to 1 GiB, and in tensors of up to 2^20
        // elements.
        let limit = total <= 1 << 30 ? Int.max : 1 << 20
        if inspectsNumbers, let name = nonFinite(in: checkpoint, elementLimit: limit) {
            throw RunError.notFinite(.load(part), tensor: name)
        }
        var done = 0
        return try device.countingBytes { bytes in
            done += bytes
            guard tells else { return }
            tell(
                .stageProgress(
                    .load(part), fraction: min(1, Double(done) / Double(max(total, 1)))))
        } _: {
            try run.open(part, checkpoint, sage: sage, on: device, isPlanned: isPlanned)
        }
    }

    // MARK: Text and picture

    func encodeText(_ state: RunState) throws -> (TextEmbedding, TextEmbedding?) {
        let encoder = state.textEncoder
        guard let inputs, let prompt = inputs.prompt else {
            programmingError("encodeText without tokens")
        }
        try run.requireVocabulary(of: inputs.vocabularySize, knownTo: encoder.config)
        func encode(_ tokens: Tokens) -> TextEmbedding {
            if tokens.dropped > 0 {
                tell(.notice(.promptCut(kept: tokens.count - 1, dropped: tokens.dropped)))
            }
            return encoder(
                Array(tokens.ids.prefix(tokens.count)), textLength: run.family.textLength,
                on: device)
        }
        let groups = encoder.groups.count * (inputs.negativePrompt == nil ? 1 : 2)
        return device.countingGroups { done in
            tell(.stageProgress(.encodeText, fraction: Double(done) / Double(groups)))
        } _: {
            (encode(prompt), inputs.negativePrompt.map(encode))
        }
    }

    /// The first device of a group encodes the prompts for all of them.
    func sharedText(
        _ encode: () throws -> (positive: TextEmbedding, negative: TextEmbedding?)
    ) throws -> (TextEmbedding, TextEmbedding?) {
        let membership = device.membership
        let own = membership.isFirst ? try encode() : nil
        guard membership.meeting != nil else { return own! }
        func onHost(_ text: TextEmbedding) -> TextEmbedding {
            TextEmbedding(rows: device.read(text.rows), count: text.count)
        }
        let told = membership.share(own.map { (onHost($0.positive), $0.negative.map(onHost)) })
        if let own { return own }
        guard let told else { throw CancellationError() }
        func here(_ text: TextEmbedding) -> TextEmbedding {
            TextEmbedding(rows: device.place(text.rows, as: text.rows.dtype), count: text.count)
        }
        return (here(told.0), told.1.map(here))
    }

    /// What the transformer is given of the picture. → f32 [conditioningChannels, T', H', W']
    func encodeImage(_ state: RunState) throws -> Tensor {
        guard let image = inputs?.image else { programmingError("encodeImage without a picture") }
        let picture = device.place(
            [image.height, image.width, 3], as: run.request.arithmetic.precision.dtype
        ) { normalized(image) }
        let latents = state.imageEncoder.encodeImage(
            picture, frameCount: run.request.frames, on: device
        ) {
            tell(.stageProgress(.encodeImage, fraction: Double($0.done) / Double($0.count)))
        }
        return firstFrameConditioning(
            latents, maskChannels: run.family.geometry.stride.t, on: device)
    }

    /// The texts projected for a transformer, once for all steps.
    func projectText(_ state: RunState, _ part: ModelPart) throws -> (
        WanTransformer.Context, WanTransformer.Context?
    ) {
        guard let texts = state.texts else { programmingError("projectText without a text") }
        let model = state.transformer(part)
        func project(_ text: TextEmbedding) -> WanTransformer.Context {
            model.prepare(text, size: run.latents, on: device)
        }
        let contexts = (project(texts.positive), texts.negative.map(project))
        // Allocates the memory of all blocks now. That can take long, and the first step should not wait for it.
        if run.options.keepsBothExperts { device.require(model.groups.blocks[0]) }
        return contexts
    }

    // MARK: Denoising

    mutating func drawNoise() throws {
        let noise = state.noise.draw(run.latentShape, on: device)
        state.denoiser = Denoiser(try run.sampler, noise: noise, on: device)
    }

    /// One step of the sampler for all samples. The last one sets `latents`, the decoder's input.
    func step(_ state: inout RunState, _ number: Int, of count: Int, _ stage: Stage) throws
        -> DenoisedStep
    {
        guard var denoiser = state.denoiser, let next = denoiser.next else {
            programmingError("step \(number) without noise")
        }
        let part = run.expert(for: next)
        let model = state.transformer(part)
        guard let contexts = state.contexts[part] else {
            programmingError("step \(number) without a text")
        }
        let passes = run.samples * (contexts.negative == nil ? 1 : 2)
        let groups = model.groups.blocks.count * passes
        var noise = state.noise
        device.countingGroups { done in
            tell(.stageProgress(stage, fraction: Double(done) / Double(groups)))
        } _: {
            denoiser.advance(on: device, draw: { noise.draw(run.latentShape, on: device) }) {
                latents, step in
                let modulation = model.modulation(at: step.timestep, on: device)
                let answers = (0..<run.samples).map { sample in
                    let parts =
                        [device.entry(latents, sample)] + (state.conditioning.map { [$0] } ?? [])
                    let answer = model(parts, modulation, contexts.positive, on: device)
                    guard let negative = contexts.negative else { return answer }
                    return guided(
                        answer, away: model(parts, modulation, negative, on: device),
                        by: run.request.sampling.guidance, on: device)
                }
                let velocity = device.reshape(
                    answers.count == 1 ? answers[0] : device.concatenate(answers), latents.shape)
                if run.options.keepsPrediction {
                    // x = (1 - t) x0 + t noise, velocity = noise - x0
                    state.prediction = device.combine(
                        [latents, velocity], [1, -step.t], as: .f32)
                }
                return velocity
            }
        }
        (state.denoiser, state.noise) = (denoiser, noise)
        if denoiser.next == nil {
            state.latents = denoiser.latents(on: device)
            (state.denoiser, state.contexts, state.texts) = (nil, [:], nil)
            state.prediction = nil
        }
        return DenoisedStep(number: number, count: count, from: next.t, to: next.next)
    }

    // MARK: Checks

    /// Throws if a stage has made numbers that are not finite.
    func inspect(_ stage: Stage, _ state: RunState) throws {
        switch stage {
        case .encodeText:
            for text in [state.texts?.positive, state.texts?.negative] {
                try inspect(text?.rows, stage, .textEncoder)
            }
        case .encodeImage: try inspect(state.conditioning, stage, .imageEncoder)
        case .step(let number, let count, let expert) where number == count:
            try inspect(state.latents, stage, expert ?? .transformer)
        default: break
        }
    }

    private func inspect(_ numbers: Tensor?, _ stage: Stage, _ part: ModelPart) throws {
        guard let numbers, !device.read(numbers).allFinite else { return }
        try device.synchronize()  // The numbers of a failed device mean nothing.
        try device.check()
        throw notFinite(stage, part)
    }

    func notFinite(_ stage: Stage, _ part: ModelPart) -> RunError {
        .notFinite(stage, tensor: run.models.firstNonFinite(part))
    }
}

/// The picture as the autoencoder takes it, with values in -1...1. → f32 [height, width, 3]
package func normalized(_ image: RGBImage) -> Tensor {
    Tensor(
        image.pixels.map { (Float($0) / 255 - 0.5) / 0.5 }, [image.height, image.width, 3])
}

/// Channels of a mask that is 1 on the first latent frame and 0 elsewhere, then the picture's latents.
/// latents: f32 [C, T, H, W] → f32 [maskChannels + C, T, H, W]
package func firstFrameConditioning(
    _ latents: Tensor, maskChannels: Int, on device: any Backend
) -> Tensor {
    let frame = latents.shape[2] * latents.shape[3]
    let shape: Shape = [maskChannels, latents.shape[1], latents.shape[2], latents.shape[3]]
    let mask = device.place(shape, as: .f32) {
        var mask = [Float](repeating: 0, count: shape.count)
        for channel in 0..<maskChannels {
            let start = channel * latents.shape[1] * frame
            for index in start..<start + frame { mask[index] = 1 }
        }
        return Tensor(mask, shape)
    }
    return device.concatenate([mask, latents])
}
