/// One device with what making many videos needs: models, encoded captions and noise stay where they are.

import Checkpoints
import Diffusion
import Ground
import Media
import Models
public import Pipelines
import Tensors
import Tokenizers

/// The files that the report is made from.
public struct QualityModels: Sendable {
    /// The student, with the text encoder, tokenizer and autoencoder that both models share.
    public var student: ModelSet
    /// The undistilled transformer; nil where it is not measured.
    public var teacher: String?

    public init(student: ModelSet, teacher: String?) {
        self.student = student
        self.teacher = teacher
    }

    func set(_ model: QualityConfiguration.Model) throws -> ModelSet {
        guard model == .teacher else { return student }
        guard let teacher else { throw RequestError("no teacher was named") }
        var set = student
        set.transformer = teacher
        return set
    }
}

/// Makes videos on a device and a thread of its own. Captions keep their noise: number i starts from stream i
/// whatever the configuration, so that videos of one caption differ by the configuration alone.
actor VideoMaker {
    private nonisolated let thread = DeviceThread()
    private let models: QualityModels
    private let captions: [Caption]
    /// The captions that this maker will be asked for.
    private let share: [Int]
    private let open: @Sendable () throws -> OpenedDevice
    /// The noise of a caption. f32 [steps, 1, 16, T, H, W] in host memory
    private let draw: @Sendable (Int, Shape) throws -> Tensor
    private var opened: OpenedDevice?

    // What stays, and what it was made for.
    private var texts: [Precision: [Int: TextEmbedding]] = [:]
    private var negatives: [Precision: TextEmbedding] = [:]
    private var decoders: [Precision: WanVAE.Decoder] = [:]
    private var noises: [Int: Tensor] = [:]
    private var transformer: (configuration: QualityConfiguration, model: WanTransformer)?
    private var prepared: Prepared?

    /// What does not depend on the caption.
    private struct Prepared {
        let configuration: QualityConfiguration
        let request: VideoRequest
        let model: WanTransformer
        let decoder: WanVAE.Decoder
        /// One for each step.
        let modulations: [Modulation]
        let negative: WanTransformer.Context?
    }

    init(
        _ models: QualityModels, _ captions: [Caption], share: [Int],
        open: @escaping @Sendable () throws -> OpenedDevice,
        draw: @escaping @Sendable (Int, Shape) throws -> Tensor = NoiseStream.draw
    ) {
        self.models = models
        self.captions = captions
        self.share = share
        self.open = open
        self.draw = draw
    }

    nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    /// Opens the device.
    /// - Returns: its name, and which of the configurations it has the arithmetic for.
    func start(_ configurations: [QualityConfiguration]) throws -> (
        name: String, supported: [QualityConfiguration]
    ) {
        let device = try device()
        let supported = configurations.filter { item in
            if item.linears == .fp8, !device.backend.supports(.fp8Rows) { return false }
            return item.attention != .sagesla
                || device.backend.supports(.sage(device.sageArchitecture))
        }
        return (device.backend.name, supported)
    }

    private func device() throws -> OpenedDevice {
        if let opened { return opened }
        let device = try open()
        opened = device
        return device
    }

    // MARK: Before the first video

    /// Loads the models of a configuration and encodes what it needs of the captions.
    func prepare(_ configuration: QualityConfiguration) throws {
        let device = try device().backend
        let set = try models.set(configuration.model)
        let request = configuration.request(captions[0].prompt, set.defaults)
        try request.validate()
        let precision = configuration.linears.precision
        try encodeCaptions(request, on: device)
        try drawNoise(request, on: device)
        if decoders[precision] == nil {
            decoders[precision] = try WanVAE.Decoder(
                set.weights(
                    .decoder, of: try set.checkpoint(.decoder), for: request, on: device),
                statistics: set.statistics)
        }
        let model = try loaded(configuration, set, request)
        let sampler = try request.makeSampler(roundTimesteps: set.defaults.roundTimesteps)
        prepared = Prepared(
            configuration: configuration, request: request, model: model,
            decoder: decoders[precision]!,
            modulations: sampler.steps.map { model.modulation(at: $0.timestep, on: device) },
            negative: request.isGuided
                ? negatives[precision].map {
                    model.prepare($0, size: request.latentSize, on: device)
                } : nil)
        try device.synchronize()
    }

    /// The number of steps does not matter to the transformer: it stays where only that changes.
    private func loaded(
        _ configuration: QualityConfiguration, _ set: ModelSet, _ request: VideoRequest
    ) throws -> WanTransformer {
        var key = configuration
        key.steps = 0
        if let transformer, transformer.configuration == key { return transformer.model }
        // Before the next one takes its memory.
        prepared = nil
        transformer = nil
        let device = try device()
        let model = try set.makeTransformer(
            .transformer, from: try set.checkpoint(.transformer), for: request,
            sage: device.sageArchitecture, on: device.backend)
        transformer = (key, model)
        return model
    }

    private func encodeCaptions(_ request: VideoRequest, on device: any Backend) throws {
        let precision = request.precision
        let set = models.student
        guard texts[precision] == nil else { return }
        let tokenizer = try Tokenizer(path: set.tokenizer)
        let encoder = try UMT5(
            set.weights(
                .textEncoder, of: try set.checkpoint(.textEncoder), for: request, on: device))
        func encode(_ prompt: String) -> TextEmbedding {
            let tokens = tokenizer.encode(prompt: prompt, length: set.defaults.textLength)
            return encoder(
                Array(tokens.ids.prefix(tokens.count)), textLength: set.defaults.textLength,
                on: device)
        }
        negatives[precision] = encode(set.defaults.negativePrompt)
        texts[precision] = Dictionary(
            uniqueKeysWithValues: share.map { ($0, encode(captions[$0].prompt)) })
    }

    /// One tensor for every step that the student may take. f32 [steps, 1, 16, T, H, W]
    private func drawNoise(_ request: VideoRequest, on device: any Backend) throws {
        let size = request.latentSize
        let shape: Shape = [
            QualityConfiguration.mostSteps, 1, 16, size.t, size.h, size.w,
        ]
        for caption in share where noises[caption] == nil {
            noises[caption] = device.place(try draw(caption, shape), as: .f32)
        }
    }

    // MARK: Videos

    /// The video of a caption as `prepare` has said, and how long it took from noise to frames in host memory.
    func make(_ caption: Int) throws -> (video: Video, seconds: Double) {
        try Task.checkCancellation()
        let device = try device().backend
        guard let prepared, let noise = noises[caption],
            let text = texts[prepared.request.precision]?[caption]
        else { programmingError("VideoMaker: caption \(caption) was not prepared") }
        let start = ContinuousClock.now
        let latents = try denoise(noise, text, prepared, on: device)
        let chunks = prepared.decoder(latents[0], on: device).map { device.rgb8($0) }
        let frames = try device.beginRead(device.concatenate(chunks)).wait()
        try device.synchronize()
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        let video = Video(
            width: frames.shape[2], height: frames.shape[1],
            pixels: frames.withElements(UInt8.self) { Array($0) })
        return (video, seconds)
    }

    /// noise: [steps, 1, 16, T, H, W] → latents: f32 [1, 16, T, H, W]
    private func denoise(
        _ noise: Tensor, _ text: TextEmbedding, _ prepared: Prepared, on device: any Backend
    ) throws -> Tensor {
        let (request, model) = (prepared.request, prepared.model)
        let sampler = try request.makeSampler(
            roundTimesteps: models.student.defaults.roundTimesteps)
        let context = model.prepare(text, size: request.latentSize, on: device)
        var drawn = 0
        // What is drawn in the last step counts nothing: any noise will do.
        var denoiser = Denoiser(sampler, noise: noise[0], on: device) {
            drawn += 1
            return noise[drawn % noise.shape[0]]
        }
        while denoiser.next != nil {
            denoiser.advance { state, step in
                model.velocity(
                    [state[0]], prepared.modulations[step.index], context, away: prepared.negative,
                    by: request.guidance, on: device
                ).reshaped(state.shape)
            }
        }
        return denoiser.latents
    }
}
