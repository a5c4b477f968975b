/// From a request to frames: the stages of text-to-video and image-to-video on one device.

import Checkpoints
import Diffusion
import Media
import Models
import Tensors
import Tokenizers

/// One device with the models of one set. Runs one request at a time:
///
///     let pipeline = VideoPipeline(models) { OpenedDevice(CPUBackend(), sageArchitecture: .sm90) }
///     try await pipeline.begin(request)                        // models, text, image
///     for try await step in pipeline.steps { … }               // denoise
///     for try await chunk in pipeline.frames { … }             // decode
///     let report = await pipeline.report()
///
/// The caller's pace is the run's pace, and a run ends when its task is cancelled or nobody asks for more.
public actor VideoPipeline {
    public nonisolated let models: ModelSet
    private nonisolated let thread = DeviceThread()
    private let open: @Sendable () throws -> OpenedDevice
    private var device: (watched: WatchedBackend, sage: SageArchitecture)?
    private var run: VideoRun?

    // Models that stay from run to run; `settings` says what they were made for.
    private var settings: VideoRequest?
    private var textEncoder: UMT5?
    private var transformers: [ModelRole: WanTransformer] = [:]
    private var decoder: WanVAE.Decoder?

    /// - Parameter open: opens the device; called once, on the device's own thread.
    public init(_ models: ModelSet, open: @escaping @Sendable () throws -> OpenedDevice) {
        self.models = models
        self.open = open
    }

    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        thread.asUnownedSerialExecutor()
    }

    /// The denoising steps of the run that `begin` has prepared.
    public nonisolated var steps: DenoisingSteps { DenoisingSteps(pipeline: self) }

    /// The frames of that run, as they are decoded: one, then four by four, sample after sample.
    public nonisolated var frames: DecodedFrames { DecodedFrames(pipeline: self) }

    /// Carries out a whole request.
    /// - Parameter output: takes the frames as they are made; the next ones are decoded when it returns.
    public nonisolated func generate(
        _ request: VideoRequest, _ options: RunOptions = RunOptions(),
        events: @escaping @Sendable (PipelineEvent) -> Void = { _ in },
        output: (FrameChunk) async throws -> Void
    ) async throws -> RunReport {
        try await begin(request, options, events: events)
        for try await _ in steps {}
        for try await chunk in frames { try await output(chunk) }
        return await report()
    }

    /// What the run has taken so far.
    public func report() -> RunReport {
        run?.report(device: device?.watched.name ?? "")
            ?? RunReport(device: "", stages: [], totalSeconds: 0, hostPeakBytes: 0)
    }

    // MARK: Stages before the first step

    /// Loads models, encodes text and image, and draws the noise. An earlier run is given up.
    public func begin(
        _ request: VideoRequest, _ options: RunOptions = RunOptions(),
        events: @escaping @Sendable (PipelineEvent) -> Void = { _ in }
    ) async throws {
        run = nil
        try request.validate()
        if options.latents == nil { try models.checkExperts() }
        var image: RGBImage?
        if let path = request.image { image = try await readImage(path: path) }
        let (device, _) = try openedDevice()
        guard device.supports(request.linears.format) else {
            throw RequestError(
                "\(device.name) has no arithmetic for \(request.linears.rawValue) linear layers; "
                    + "choose int8")
        }
        forgetModels(unlessMadeFor: request)
        let run = VideoRun(request, options, events: events)
        if let path = options.latents {
            run.latents = device.place(try StoredTensors.readLatents(path), as: .f32)
            self.run = run
            return
        }
        for effect in try models.effects(of: request) { run.tell(.note(effect)) }
        let sampler = try request.makeSampler(roundTimesteps: models.defaults.roundTimesteps)
        let experts = models.experts(for: sampler.steps, of: request)
        if !options.keepsBothExperts, experts.count > 1 { transformers = [:] }
        readAhead(run, experts)
        try await encodeText(run, on: device)
        if let image { try encodeImage(image, run, on: device) }
        for role in experts where role == experts[0] || !comesLate(role, run) {
            try load(role, run, on: device)
        }
        var generator = PhiloxNoise(seed: request.seed)
        let size = request.latentSize
        let shape: Shape = [request.samples, 16, size.t, size.h, size.w]
        // Drawn as the original draws: one tensor for all samples, then one more for every step.
        let noise = device.noise(shape, generator: &generator)
        run.denoiser = Denoiser(sampler, noise: noise, on: device) {
            device.noise(shape, generator: &generator)
        }
        try Task.checkCancellation()
        self.run = run
    }

    /// Whether there is no room for the second expert before the first one leaves: where LoRAs are merged in, its
    /// weights are in no file and come at once. Others take next to no memory until they are required.
    private func comesLate(_ role: ModelRole, _ run: VideoRun) -> Bool {
        !run.options.keepsBothExperts && !run.request.loras(for: role).isEmpty
    }

    /// Has the files read that this run will want, in the order of their use.
    private func readAhead(_ run: VideoRun, _ experts: [ModelRole]) {
        let needsText = textEncoder == nil && run.options.textEmbedding == nil
        let roles =
            (needsText ? [.textEncoder] : []) + experts.filter { transformers[$0] == nil }
            + (decoder == nil ? [.decoder] : [])
        run.readAhead = ReadAhead(roles.map(models.path))
    }

    private func openedDevice() throws -> (WatchedBackend, SageArchitecture) {
        if let device { return device }
        let opened = try open()
        let made = (WatchedBackend(opened.backend), opened.sageArchitecture)
        device = made
        return made
    }

    /// Models depend on precision, attention, norms, LoRAs and the form of the linear layers.
    private func forgetModels(unlessMadeFor request: VideoRequest) {
        defer { settings = request }
        guard let settings else { return }
        if settings.precision != request.precision {
            textEncoder = nil
            decoder = nil
            transformers = [:]
        }
        if settings.attention != request.attention || settings.topK != request.topK
            || settings.linears != request.linears || settings.loras != request.loras
            || settings.referenceNorms != request.referenceNorms
        {
            transformers = [:]
        }
    }

    private func encodeText(_ run: VideoRun, on device: WatchedBackend) async throws {
        let request = run.request
        let length = models.defaults.textLength
        if let path = run.options.textEmbedding {
            run.texts = try storedText(path, run, on: device)
            return
        }
        // A vocabulary of 256,000 pieces takes a while to read: as long as the encoder does to come.
        async let reading = Tokenizer(path: models.tokenizer)
        if textEncoder == nil {
            textEncoder = try loading(.textEncoder, run, on: device) { checkpoint in
                try UMT5(models.weights(.textEncoder, of: checkpoint, for: request, on: device))
            }
        }
        let tokenizer = try await reading
        guard let encoder = textEncoder,
            encoder.config.vocabulary >= tokenizer.vocabularySize
        else {
            let known = textEncoder?.config.vocabulary ?? 0
            textEncoder = nil
            throw RequestError(
                "\(models.tokenizer) has \(tokenizer.vocabularySize) tokens, "
                    + "\(models.textEncoder) knows \(known): they do not belong together")
        }
        func encode(_ prompt: String) -> TextEmbedding {
            let tokens = tokenizer.encode(prompt: prompt, length: length)
            if tokens.dropped > 0 {
                run.tell(.promptCut(kept: tokens.count - 1, dropped: tokens.dropped))
            }
            return encoder(
                Array(tokens.ids.prefix(tokens.count)), textLength: length, on: device)
        }
        run.texts = try run.measure(.textEncoder, on: device) {
            let positive = encode(request.prompt)
            let negative =
                request.isGuided
                ? encode(request.negativePrompt ?? models.defaults.negativePrompt) : nil
            return (positive, negative)
        }
        if !run.options.keepsTextEncoder { textEncoder = nil }
        for text in [run.texts?.positive, run.texts?.negative].compactMap({ $0 })
        where !device.read(text.rows).isFinite {
            try device.synchronize()  // A failed device reads as anything.
            throw NonFiniteError(stage: .textEncoder, tensor: models.firstNonFinite(.textEncoder))
        }
        if let path = run.options.saveTextEmbedding { try saveText(run, to: path, on: device) }
    }

    private func storedText(_ path: String, _ run: VideoRun, on device: any Backend) throws -> (
        TextEmbedding, TextEmbedding?
    ) {
        let checkpoint = try models.checkpoint(.transformer)
        guard case .wanTransformer(let sizes) = DetectedModel(checkpoint) else {
            throw RequestError("\(models.transformer) is not a Wan transformer")
        }
        func read(_ name: String) throws -> TextEmbedding? {
            try StoredTensors.readEmbedding(
                path, name, textLength: models.defaults.textLength, textDim: sizes.textDim
            ).map {
                TextEmbedding(
                    rows: device.place($0.rows, as: run.request.precision.dtype), count: $0.count)
            }
        }
        guard let positive = try read(StoredTensors.embedding) else {
            throw RequestError("\(path) holds no text embedding")
        }
        guard run.request.isGuided else { return (positive, nil) }
        guard let negative = try read(StoredTensors.negativeEmbedding) else {
            throw RequestError(
                "\(path) has no '\(StoredTensors.negativeEmbedding)', which guidance needs; "
                    + "save the embedding again with --guidance")
        }
        return (positive, negative)
    }

    private func saveText(_ run: VideoRun, to path: String, on device: any Backend) throws {
        guard let texts = run.texts else { return }
        func rows(_ text: TextEmbedding) -> Tensor { device.read(text.rows.slice(0..<text.count)) }
        var tensors = [(StoredTensors.embedding, rows(texts.positive))]
        if let negative = texts.negative {
            tensors.append((StoredTensors.negativeEmbedding, rows(negative)))
        }
        try StoredTensors.write(tensors, to: path, metadata: ["prompt": run.request.prompt])
    }

    private func encodeImage(_ image: RGBImage, _ run: VideoRun, on device: WatchedBackend) throws {
        let request = run.request
        let encoder = try loading(.imageEncoder, run, on: device) { checkpoint in
            try WanVAE.Encoder(
                models.weights(.imageEncoder, of: checkpoint, for: request, on: device),
                statistics: models.statistics)
        }
        run.conditioning = try run.measure(.imageEncoder, on: device) {
            let still = resize(image, width: request.width, height: request.height)
            let pixels = still.pixels.map { (Float($0) / 255 - 0.5) / 0.5 }
            let picture = device.place(
                Tensor(pixels, [request.height, request.width, 3]), as: request.precision.dtype)
            let latents = encoder.encodeImage(
                picture, frameCount: request.frames, on: device
            ) { run.tell(.progress(.imageEncoder, Double($0.done) / Double($0.count))) }
            return imageConditioning(latents, on: device)
        }
        if let conditioning = run.conditioning, !device.read(conditioning).isFinite {
            try device.synchronize()  // A failed device reads as anything.
            throw NonFiniteError(
                stage: .imageEncoder, tensor: models.firstNonFinite(.imageEncoder))
        }
    }

    // MARK: Loading

    /// Opens a checkpoint and makes a model of it, with progress by bytes.
    private func loading<Model>(
        _ role: ModelRole, _ run: VideoRun, on device: WatchedBackend,
        _ make: (any Checkpoint) throws -> Model
    ) throws -> Model {
        try run.measure(.load(role), on: device) {
            let checkpoint = try models.checkpoint(role)
            let total = checkpoint.names.reduce(0) {
                $0 + (checkpoint.info($1)?.byteCount ?? 0)
            }
            var done = 0
            device.afterPlacing = { bytes in
                done += bytes
                run.tell(.progress(.load(role), min(1, Double(done) / Double(max(total, 1)))))
            }
            defer { device.afterPlacing = nil }
            // A number that is not finite may be lost on its way (a maximum, a softmax, a rounding to 8 bits) and
            // still spoil the frames. Small tensors cost nothing to look at, nor do small files.
            let limit = total <= 1 << 30 ? Int.max : 1 << 20
            if let name = models.nonFinite(in: checkpoint, elementLimit: limit) {
                throw NonFiniteError(stage: .load(role), tensor: name)
            }
            return try make(checkpoint)
        }
    }

    /// Opens a transformer and shows it the texts. Its weights come when they are required.
    private func load(_ role: ModelRole, _ run: VideoRun, on device: WatchedBackend) throws {
        guard let sage = self.device?.sage, let texts = run.texts else { return }
        let model =
            try transformers[role]
            ?? loading(role, run, on: device) { checkpoint in
                try models.makeTransformer(
                    role, from: models.adapted(checkpoint, role, for: run.request).checkpoint,
                    for: run.request, sage: sage, on: device)
            }
        transformers[role] = model
        if run.contexts[role] != nil { return }
        let size = run.request.latentSize
        run.contexts[role] = try run.measure(.textProjection(role), on: device) {
            let contexts = (
                model.prepare(texts.positive, size: size, on: device),
                texts.negative.map { model.prepare($0, size: size, on: device) }
            )
            // Takes the memory of all blocks, which may last, so that the first step does not wait for it.
            if run.options.keepsBothExperts { device.require(model.groups.blocks[0]) }
            return contexts
        }
    }

    // MARK: Denoising

    /// Takes one step; nil when there is none left.
    func advance() throws -> DenoisedStep? {
        guard let run, let (device, _) = device, let step = run.denoiser?.next else { return nil }
        let count = run.denoiser!.stepCount
        let role = models.expert(for: step, of: run.request)
        let stage = Stage.denoise(
            step: step.index + 1, of: count,
            expert: models.lowNoiseTransformer == nil ? nil : role)
        try enter(role, run, on: device)
        guard let model = transformers[role], let contexts = run.contexts[role] else { return nil }
        let request = run.request
        let groups = model.groups.blocks.count * request.samples * (request.isGuided ? 2 : 1)

        try run.measure(stage, on: device) {
            device.afterGroup = { run.tell(.progress(stage, Double($0) / Double(groups))) }
            defer { device.afterGroup = nil }
            run.denoiser!.advance { latents, step in
                let modulation = model.modulation(at: step.timestep, on: device)
                let answers = (0..<request.samples).map { sample in
                    let parts = [latents[sample]] + (run.conditioning.map { [$0] } ?? [])
                    return model.velocity(
                        parts, modulation, contexts.positive, away: contexts.negative,
                        by: request.guidance, on: device)
                }
                return answers.count == 1
                    ? answers[0].reshaped(latents.shape)
                    : device.concatenate(answers).reshaped(latents.shape)
            }
        }
        if run.denoiser!.next == nil { try finishDenoising(run, stage, role, on: device) }
        return DenoisedStep(number: step.index + 1, count: count, from: step.t, to: step.next)
    }

    /// Makes `role` the transformer that runs: the one before leaves where there is no room for both, and in its
    /// memory the weights of this one come behind its own first step.
    private func enter(_ role: ModelRole, _ run: VideoRun, on device: WatchedBackend) throws {
        if let active = run.active, active != role {
            run.contexts[active] = nil
            if !run.options.keepsBothExperts { transformers[active] = nil }
        }
        run.active = role
        try load(role, run, on: device)
    }

    private func finishDenoising(
        _ run: VideoRun, _ stage: Stage, _ role: ModelRole, on device: WatchedBackend
    ) throws {
        let latents = run.denoiser!.latents
        run.latents = latents
        run.denoiser = nil
        run.contexts = [:]
        run.texts = nil
        if !run.options.keepsTransformer { transformers = [:] }
        let host = device.read(latents)
        guard host.isFinite else {
            try device.synchronize()  // A failed device reads as anything.
            throw NonFiniteError(stage: stage, tensor: models.firstNonFinite(role))
        }
        if let path = run.options.saveLatents {
            try StoredTensors.write(
                [(StoredTensors.latents, host)], to: path,
                metadata: ["prompt": run.request.prompt, "seed": "\(run.request.seed)"])
        }
    }

    // MARK: Decoding

    /// The next frames; nil after the last.
    func decodeNext() throws -> FrameChunk? {
        guard let run, let (device, _) = device, let latents = run.latents else { return nil }
        if decoder == nil {
            decoder = try loading(.decoder, run, on: device) { checkpoint in
                try WanVAE.Decoder(
                    models.weights(.decoder, of: checkpoint, for: run.request, on: device),
                    statistics: models.statistics)
            }
        }
        try Task.checkCancellation()
        let start = ContinuousClock.now
        if run.decoding == nil {
            run.tell(.started(.decode))
            device.resetPeak()
            run.decoding = FrameDecoding(
                latents, decoder!, as: run.options.pixelFormat, on: device)
        }
        guard let chunk = run.decoding!.next() else {
            run.latents = nil
            run.decoding = nil
            run.finish(
                StageReport(
                    stage: .decode, seconds: run.decodeSeconds, peakBytes: run.decodePeak))
            return nil
        }
        let frames = try chunk.frames()
        try Task.checkCancellation()
        guard try chunk.isFinite() else {
            throw NonFiniteError(stage: .decode, tensor: models.firstNonFinite(.decoder))
        }
        run.decodeSeconds += (ContinuousClock.now - start) / .seconds(1)
        run.decodePeak = max(run.decodePeak, device.memory.peak)
        run.tell(.progress(.decode, run.decoding!.progress))
        return frames
    }
}

/// The denoising loop, one step for each element.
public struct DenoisingSteps: AsyncSequence, Sendable {
    let pipeline: VideoPipeline

    public func makeAsyncIterator() -> Iterator { Iterator(pipeline: pipeline) }

    public struct Iterator: AsyncIteratorProtocol {
        let pipeline: VideoPipeline
        public mutating func next() async throws -> DenoisedStep? { try await pipeline.advance() }
    }
}

/// Finished frames, chunk by chunk.
public struct DecodedFrames: AsyncSequence, Sendable {
    let pipeline: VideoPipeline

    public func makeAsyncIterator() -> Iterator { Iterator(pipeline: pipeline) }

    public struct Iterator: AsyncIteratorProtocol {
        let pipeline: VideoPipeline
        public mutating func next() async throws -> FrameChunk? {
            try await pipeline.decodeNext()
        }
    }
}
