/// From options to a request: a pure function of the options, the model's family, and a repeated video's request.

import Catalog
import Devices
import Families
import Media
import Runs
import Tensors

/// The options of t2v or i2v, to be turned into a request.
struct RequestBuilder {
    var options: GenerationOptions
    /// The options that only one of the two commands has.
    var image: String?
    var boundary: Double?
    /// Width and height of the picture whose shape the video takes.
    var pictureSize: (width: Int, height: Int)?
    var draw: () -> UInt64 = { UInt64.random(in: 0...UInt64(UInt32.max)) }

    /// - Parameters:
    ///   - base: the request to change; nil: one with the family's defaults.
    ///   - resolution: the model's named resolution, for an aspect ratio that is given without one.
    /// - Throws: `UserError` for options that exclude each other, `MediaError` for a resolution that does not exist.
    func request(for family: Family, base: Request? = nil, resolution: String? = nil) throws
        -> Request
    {
        var request = base ?? Request("", for: family)
        try setContent(&request, resolution)
        if let image { request.image = image }
        if let boundary { request.boundary = boundary }
        try setSampling(&request, family, isNew: base == nil)
        try setArithmetic(&request.arithmetic)
        let model = options.model
        let loras: [([LoRAArgument], RequestedLoRA.Expert?)] = [
            (model.loras, nil), (model.highNoiseLoras, .highNoise),
            (model.lowNoiseLoras, .lowNoise),
        ]
        let named = loras.flatMap { arguments, expert in
            arguments.map { RequestedLoRA($0.path, strength: $0.strength, expert: expert) }
        }
        if !named.isEmpty { request.loras = named }
        return request
    }

    // MARK: What to make

    private func setContent(_ request: inout Request, _ resolution: String?) throws {
        let content = options.content
        if let prompt = try options.prompt {
            request.prompt = prompt
        } else if request.prompt.isEmpty, let latents = options.stages.latents {
            request.prompt = "latents of \(latents)"
        }
        request.negativePrompt = content.negativePrompt ?? request.negativePrompt
        request.frames = content.numFrames ?? request.frames
        request.framesPerSecond = content.fps ?? request.framesPerSecond
        request.samples = content.numSamples ?? request.samples
        switch content.seed {
        case .number(let seed): request.seed = seed
        case .random: request.seed = draw()
        case nil: break
        }
        if let size = try size(request, resolution) {
            (request.width, request.height) = (size.width, size.height)
        }
    }

    /// The size in pixels that the options ask for; nil: the request's own.
    private func size(_ request: Request, _ resolution: String?) throws -> (
        width: Int, height: Int
    )? {
        let content = options.content
        // Also where it has no effect.
        if let ratio = content.aspectRatio { try Resolution.place(ofAspectRatio: ratio) }
        var size: (width: Int, height: Int)?
        if let pixels = content.pixels {
            // Taken as given: a size that the model cannot make is refused later, not silently replaced.
            size = pixels
        } else if let name = content.resolution ?? (content.aspectRatio == nil ? nil : resolution) {
            let named = try Resolution(name, aspectRatio: content.aspectRatio ?? "16:9")
            size = (named.width, named.height)
        }
        guard let pictureSize else { return size }
        let base = size ?? (request.width, request.height)
        let adapted = try Resolution(width: base.width, height: base.height).adapted(
            toImageWidth: pictureSize.width, height: pictureSize.height)
        return (adapted.width, adapted.height)
    }

    // MARK: How

    private func setSampling(_ request: inout Request, _ family: Family, isNew: Bool) throws {
        let options = options.sampling
        var isOwn = !isNew
        if let sampler = options.sampler {
            if case .distilled = request.sampling { isOwn = false }
            request.sampling.use(sampler.solver, of: family.defaults)
        }
        if let steps = options.numSteps { request.sampling.steps = steps }
        switch request.sampling {
        case .distilled(var settings):
            if let guidance = options.guidance, guidance != 1 {
                throw UserError(
                    "request.conflict",
                    "distilled models take no guidance: leave --guidance out, or name an undistilled model "
                        + "and --sampler unipc")
            }
            // Also where it has no effect.
            if let shift = options.shift {
                try RequestError.check(.shift, shift, Sampling.shiftRange)
            }
            settings.sigmaMax = options.sigmaMax ?? settings.sigmaMax
            settings.ode = settings.ode || options.ode
            request.sampling = .distilled(settings)
        case .flow(var settings):
            settings.sigmaMax = options.sigmaMax ?? settings.sigmaMax
            settings.guidance = options.guidance ?? settings.guidance
            // As in Wan's own generate.py, for small videos that start with a picture.
            let isSmall = Double(request.width) * Double(request.height) <= 832 * 480
            if family.conditioning == .firstFrame, isSmall, !isOwn { settings.shift = 3 }
            settings.shift = options.shift ?? settings.shift
            request.sampling = .flow(settings)
        }
    }

    private func setArithmetic(_ arithmetic: inout Arithmetic) throws {
        let options = options.arithmetic
        if options.defaultNorm, options.norms == .reference {
            throw UserError(
                "request.conflict", "--default_norm and --norms reference exclude each other")
        }
        if options.defaultNorm { arithmetic.norms = .exact }
        if let norms = options.norms { arithmetic.norms = norms == .exact ? .exact : .reference }
        if options.quantLinear { arithmetic.linears = .int8 }
        arithmetic.linears = options.linears ?? arithmetic.linears
        arithmetic.attention = options.attentionType ?? arithmetic.attention
        arithmetic.topK = options.slaTopk ?? arithmetic.topK
        arithmetic.precision = options.precision ?? arithmetic.precision
    }
}

extension ContentOptions {
    /// `WIDTHxHEIGHT`.
    var pixels: (width: Int, height: Int)? {
        resolution.flatMap { pair($0) }
    }
}

extension GenerationOptions {
    /// The prompt, given as an argument or as an option.
    var prompt: String? {
        get throws {
            if let argument = content.promptArgument, let option = content.prompt,
                argument != option
            {
                throw UserError(
                    "request.conflict",
                    "two prompts: '\(argument)' and '\(option)'; a prompt of several words needs quotes"
                )
            }
            return content.prompt ?? content.promptArgument
        }
    }

    func runOptions() throws -> RunOptions {
        var run = RunOptions()
        if let text = stages.textEmbedding, let cached = stages.cachedEmbedding, text != cached {
            throw UserError(
                "request.conflict", "--text_embedding and --cached_embedding name different files")
        }
        run.start.text = stages.textEmbedding ?? stages.cachedEmbedding
        if stages.skipT5, run.start.text == nil {
            throw UserError("request.missing", "--skip_t5 needs --cached_embedding FILE")
        }
        run.start.conditioning = stages.conditioning
        run.start.latents = stages.latents
        run.save.text = stages.saveTextEmbedding
        run.save.conditioning = stages.saveConditioning
        run.save.latents = stages.saveLatents
        run.replacesSaved = output.force
        // Who names latents and no video wants no video.
        run.makesFrames =
            output.savePath != nil || stages.saveLatents == nil || stages.latents != nil
        run.keepsTransformer = !execution.offloadDit
        return run
    }
}

// MARK: - Options without effect

extension GenerationOptions {
    /// One line for each option that was given but changes nothing, with the reason.
    /// - Parameter own: the command's own options, and whether they were given.
    func withoutEffect(
        on run: Run, format: VideoFormat?, resolution: String?,
        own: [(option: String, isGiven: Bool)] = []
    ) -> [String] {
        let (request, start) = (run.request, run.options.start)
        var lines: [String] = []
        func note(_ option: String, _ isGiven: Bool, _ reason: String?) {
            if isGiven, let reason { lines.append("\(option) has no effect: \(reason)") }
        }
        note("--card", !execution.cards.isEmpty, execution.dryRun ? nil : "it is for --dry_run")
        note(
            "--threads", execution.threads != nil,
            execution.machines.isGPU ? "a GPU computes" : nil)
        if start.latents != nil {
            let given: [(option: String, isGiven: Bool)] = [
                ("--lora", !model.loras.isEmpty),
                ("--high_noise_lora", !model.highNoiseLoras.isEmpty),
                ("--low_noise_lora", !model.lowNoiseLoras.isEmpty),
                ("--seed", content.seed != nil), ("--num_frames", content.numFrames != nil),
                ("--num_samples", content.numSamples != nil),
                ("--resolution", content.resolution != nil),
                ("--negative_prompt", content.negativePrompt != nil),
                ("--text_embedding", start.text != nil),
                ("--conditioning", start.conditioning != nil),
                ("--num_steps", sampling.numSteps != nil),
                ("--sampler", sampling.sampler != nil),
                ("--sigma_max", sampling.sigmaMax != nil),
                ("--shift", sampling.shift != nil), ("--guidance", sampling.guidance != nil),
                ("--save_text_embedding", stages.saveTextEmbedding != nil),
                ("--save_conditioning", stages.saveConditioning != nil),
                ("--save_latents", stages.saveLatents != nil),
            ]
            let idle = (own + given).filter(\.isGiven).map(\.option)
            note(
                idle.joined(separator: ", "), !idle.isEmpty, "the video is decoded from --latents"
            )
            return lines
        }
        let isDistilled = if case .distilled = request.sampling { true } else { false }
        note("--shift", sampling.shift != nil, isDistilled ? "distilled models have no shift" : nil)
        note("--ode", sampling.ode, isDistilled ? nil : "only distilled models have it")
        note(
            "--negative_prompt", content.negativePrompt != nil,
            request.sampling.isGuided ? nil : "there is no guidance")
        note(
            "--sla_topk", arithmetic.slaTopk != nil,
            request.arithmetic.attention == .original ? "--attention_type is original" : nil)
        note(
            "--quant_linear", arithmetic.quantLinear,
            request.arithmetic.linears == .int8 ? nil : "--linears says otherwise")
        let isNamed = content.resolution == nil ? resolution != nil : content.pixels == nil
        note(
            "--aspect_ratio", content.aspectRatio != nil,
            isNamed ? nil : "there is no named resolution")
        note(
            "--save_text_embedding", stages.saveTextEmbedding != nil,
            start.text == nil ? nil : "the text embedding comes from a file")
        let takesPicture = run.family.conditioning != .none
        for (option, isGiven) in [
            ("--conditioning", stages.conditioning != nil),
            ("--save_conditioning", stages.saveConditioning != nil),
        ] { note(option, isGiven, takesPicture ? nil : "the model takes no picture") }
        note(
            "--save_conditioning", stages.saveConditioning != nil && takesPicture,
            start.conditioning == nil ? nil : "the conditioning comes from a file")
        let isDecoded = run.options.makesFrames
        let undecoded = "no video is made without --save_path"
        let takesCRF = format == nil || format == .mp4 || format == .webm
        note(
            "--crf", output.crf != nil,
            !isDecoded ? undecoded : takesCRF ? nil : "only .mp4 and .webm have it")
        note("--fps", content.fps != nil, isDecoded ? nil : undecoded)
        return lines
    }
}
