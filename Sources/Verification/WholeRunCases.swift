/// Whole runs: from a prompt, or a prompt and a picture, to frames. They are the program's own runs with the noise of
/// the case, checked after each stage.

import Catalog
import Checkpoints
import Diffusion
import Families
import Glibc
import Ground
import Media
import Models
import Runs
import SystemPackage
import Tensors
import Tokenizers

extension Walk {
    /// Goes on to the end, or up to a stage, which is not begun.
    /// - Parameter look: called after each instruction with its stage, the walk and what the instruction yielded.
    mutating func advance(
        to end: Stage? = nil, _ look: (Stage?, Walk, Yield?) throws -> Void
    ) throws {
        while !isDone, end == nil || upcoming != end {
            let stage = upcoming
            let yield = try advance()
            try look(stage, self, yield)
        }
    }
}

/// Keeps the frames that are converted to bytes. [T, H, W, 3] each
private final class VideoRecorder: ForwardingBackend {
    private(set) var videos: [Tensor] = []

    override func run(_ operation: Operation) -> [Tensor] {
        if case .rgb8(let o) = operation { videos.append(o.x) }
        return super.run(operation)
    }
}

// MARK: - Small models

/// The models of an end-to-end case.
private struct SmallModels: ModelSource, Sendable {
    let weights: CaseWeights
    let family: Family
    let experts: [ModelPart]
    let tokenizer: String

    /// - Parameter experts: with two, the low-noise one is the other one with its head halved.
    init(_ fixture: Fixture, _ conditioning: Family.Conditioning, experts: [ModelPart]) {
        weights = fixture.weights
        family = Family(
            name: fixture.name, conditioning: conditioning,
            heads: fixture.config["dit"]?["num_heads"]?.int)
        self.experts = experts
        let folder = fixture.config["tokenizer"]?.string ?? "tokenizer/umt5"
        tokenizer = fixture.folder.absolute(folder) + "/tokenizer.json"
    }

    func path(_ part: ModelPart) -> String { part.rawValue }

    func file(_ part: ModelPart) throws -> OpenedModel {
        let stored =
            switch part {
            case .textEncoder: try weights.open("umt5")
            case .imageEncoder, .decoder: try weights.open("vae")
            case .transformer: try weights.open(experts.count == 1 ? "dit" : "dit_high")
            case .lowNoiseTransformer: halvedHead(try weights.open("dit_high"))
            }
        return try modelFile(stored, part.kind, heads: part.isTransformer ? family.heads : nil)
    }
}

/// An end-to-end case being run.
private struct SmallRun {
    let fixture: Fixture
    let device: any Backend
    let checks: Checks
    let run: Run
    let tokens: Tokens

    init(
        _ fixture: Fixture, _ models: SmallModels, _ precision: Precision,
        on device: any Backend, _ checks: Checks
    ) throws {
        guard let prompt = fixture.config["prompt"]?.string else {
            throw FixtureError("config lacks 'prompt'")
        }
        (self.fixture, self.device, self.checks) = (fixture, device, checks)
        tokens = try Tokenizer(path: models.tokenizer).encode(prompt: prompt)
        var request = Request(prompt, for: models.family)
        (request.width, request.height) = (try fixture.int("width"), try fixture.int("height"))
        request.frames = try fixture.int("num_frames")
        request.image = models.family.conditioning == .none ? nil : "in.image_hwc"
        request.sampling = .distilled(
            .init(
                steps: try fixture.int("num_steps"), sigmaMax: try fixture.double("sigma_max"),
                ode: fixture.config["ode"]?.bool == true))
        let isFast = fixture.config["dit"]?["fast_norm"]?.bool == true
        request.arithmetic = Arithmetic(
            precision: precision, attention: .original, norms: isFast ? .reference : .exact)
        request.boundary = fixture.config["boundary"]?.double ?? request.boundary
        run = try Run(request, models, noise: .given(try fixture.noises.map { $0.floats() }))
    }

    /// Carries out the run.
    /// - Parameter look: called with the walk after each stage.
    /// - Returns: the sampler's states, the decoder's videos and the frames.
    func finish(
        image: RGBImage? = nil, _ look: (Stage?, Walk) throws -> Void = { _, _ in }
    ) throws -> (states: [[Double]], video: [Double], frames: [Double]) {
        let recorder = VideoRecorder(device)
        var walk = try Walk(run, on: OpenedDevice(recorder, sageArchitecture: .sm90))
        walk.inputs = RunInputs(prompt: tokens, image: image)
        var states: [[Double]] = []
        var frames: [Double] = []
        try walk.advance { stage, walk, yield in
            try look(stage, walk)
            if case .frames(let chunk)? = yield { frames += chunk.bytes.map { Double($0) } }
            // The initial noise, the states between steps, and the sample after the last step.
            if let denoiser = walk.state.denoiser {
                guard denoiser.count == states.count else { return }
                states.append(device.read(denoiser.state).doubles())
            } else if case .step? = yield, let latents = walk.state.latents {
                states.append(device.read(latents).doubles())
            }
        }
        return (states, recorder.videos.flatMap { device.read($0).doubles() }, frames)
    }

    /// Latents and frames in the layouts of the case: video [3, T, H, W], frames u8 [T, H, W, 3].
    func compare(_ found: (states: [[Double]], video: [Double], frames: [Double])) throws {
        try Verification.compare(found.states, output: "out.latent_fp32", in: fixture, checks)
        if fixture.has("out.video_fp32") {
            try checks.compare(
                "out.video_fp32", channelsFirst(found.video, channels: 3), in: fixture)
        }
        try checks.compare("out.frames_u8", found.frames, in: fixture)
    }

    func compareIDs() throws {
        try checks.compare(
            "mid.ids", tokens.ids.prefix(tokens.count).map { Double($0) }, in: fixture)
    }
}

func checkTextToVideo(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let models = SmallModels(fixture, .none, experts: [.transformer])
    let run = try SmallRun(fixture, models, .f32, on: device, checks)
    try run.compareIDs()
    try checks.compare("mid.model_t", try run.run.sampler.steps.map(\.timestep), in: fixture)
    let found = try run.finish { stage, walk in
        guard stage == .encodeText, let text = walk.state.texts?.positive else { return }
        try checks.compare(
            "mid.embed_fp32", device.read(text.rows.slice(0..<text.count)), in: fixture)
    }
    try run.compare(found)
    guard fixture.has("out.frames_u8_bf16ref") else { return }
    let rounded = try SmallRun(fixture, models, .bf16, on: device, checks).finish()
    try checks.compare("out.frames_u8_bf16ref", rounded.frames, in: fixture)
}

func checkImageToVideo(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let models = SmallModels(
        fixture, .firstFrame, experts: [.transformer, .lowNoiseTransformer])
    let run = try SmallRun(fixture, models, .f32, on: device, checks)
    try run.compareIDs()
    let (width, height) = (run.run.request.width, run.run.request.height)
    let image = resize(try picture(fixture), width: width, height: height)
    try checks.compare(
        "mid.image_chw", channelsFirst(normalized(image).doubles(), channels: 3), in: fixture)
    var lowNoise: [Double] = []
    let found = try run.finish(image: image) { stage, walk in
        if case .step(_, _, let expert) = stage {
            lowNoise.append(expert == .lowNoiseTransformer ? 1 : 0)
        }
        guard stage == .encodeImage, let conditioning = walk.state.conditioning else { return }
        let maskChannels = models.family.geometry.stride.t
        let encoded = conditioning.slice(maskChannels..<conditioning.shape[0])
        try checks.compare("mid.encoded", device.read(encoded), in: fixture)
        try checks.compare("mid.y", device.read(conditioning), in: fixture)
    }
    compareExperts(lowNoise, expected: fixture.config["low_noise_used"]?.doubles, checks)
    try run.compare(found)
}

// MARK: - nano

/// Runs of a whole model folder: ids, text embedding, noise, latents after each step and frames of several prompts,
/// all in f32 with exact attention.
func checkWholeRuns(
    _ path: String, _ folder: String, _ device: any Backend, _ checks: Checks
) throws {
    let run = WholeRun(
        file: try openCheckpoint(path), device: device, checks: checks,
        models: try modelSet(near: folder))
    let captions = try? JSON(path: folder + "/captions_eval.json").array
    var index = 0
    while run.file.info("\(index).ids") != nil {
        try run.check(index, prompt: captions?[index]["prompt"]?.string)
        index += 1
    }
    checks.expect(index > 0, "runs", "\(path) contains none")
}

/// The model in `folder` itself, or nano in a Models folder beside it or beside one of its parents, with the distilled
/// transformer in full precision.
private func modelSet(near folder: String) throws -> ModelSet {
    var models: ModelSet
    if FilePath(folder + "/config.json").exists {
        models = try Catalog.modelSet(folder: folder)
    } else {
        var (places, path) = ([folder], FilePath(folder))
        while path.removeLastComponent() { places.append(path.isEmpty ? "." : path.string) }
        models = try Catalog(entries: Catalog.published.entries, places: places)
            .open(ModelChoice("nano"))
    }
    models.transformer = models.transformer.replacingSuffix("_quant.pth", by: ".safetensors")
    // The reference did not round timesteps, whatever the folder says.
    models.family.roundsTimesteps = false
    return models
}

private struct WholeRun {
    let file: any Checkpoint
    let device: any Backend
    let checks: Checks
    let models: ModelSet

    /// The limits of a run in f32: errors accumulate over four steps through ten layers.
    private let latentTolerance = Tolerance(relativeL2: 1e-3)
    private let leastPSNR = 40.0

    private func tensor(_ name: String) throws -> Tensor {
        guard let tensor = try file.tensor(name) else {
            throw FixtureError("\(file.path) has no tensor \(name)")
        }
        return tensor
    }

    func check(_ index: Int, prompt: String?) throws {
        let ids = try tensor("\(index).ids").doubles()
        if let prompt {
            let tokens = try Tokenizer(path: models.tokenizer).encode(
                prompt: prompt, length: models.family.textLength)
            checks.compare(
                "\(index).ids", tokens.ids.prefix(tokens.count).map { Double($0) }, ids, .exact)
        }
        let noises = file.info("\(index).noise") == nil ? nil : try tensor("\(index).noise")
        var walk = try Walk(
            try run(noises), on: OpenedDevice(device, sageArchitecture: .sm90))
        walk.inputs = RunInputs(prompt: Tokens(ids.map { Int32($0) }))

        try walk.advance(to: .load(.transformer)) { stage, walk, _ in
            guard stage == .encodeText, let text = walk.state.texts?.positive else { return }
            checks.compare(
                "\(index).text_embedding",
                device.read(text.rows.slice(0..<text.count)).doubles(),
                try tensor("\(index).text_embedding").doubles(), Tolerance(relativeL2: 2e-5))
        }
        if noises != nil {
            if FilePath(models.transformer).exists {
                try checkLatents(index, &walk)
            } else {
                checks.skip(
                    "\(index).latents",
                    "no transformer in full precision: \(models.transformer)")
            }
        }
        walk.skip(to: .load(.decoder))
        try checkFrames(index, &walk)
    }

    /// - Parameter noises: [steps, C, T, H, W], without the last draw of a run, which has no effect.
    private func run(_ noises: Tensor?) throws -> Run {
        var request = Request("given by its ids", for: models.family)
        request.arithmetic.precision = .f32
        guard let noises else { return try Run(request, models) }
        request.sampling.steps = noises.shape[0]
        return try Run(
            request, models, noise: .given((0..<noises.shape[0]).map { noises[$0].floats() }))
    }

    private func checkLatents(_ index: Int, _ walk: inout Walk) throws {
        try walk.advance(to: .load(.decoder)) { stage, walk, _ in
            guard case .step(let number, _, _) = stage, let latents = walk.currentLatents else {
                return
            }
            let name = "\(index).latent_\(number)"
            checks.compare(
                name, device.read(latents).doubles(), try tensor(name).doubles(),
                latentTolerance)
        }
    }

    /// Decodes the file's last latents and compares the frames.
    private func checkFrames(_ index: Int, _ walk: inout Walk) throws {
        let last = file.names.filter { $0.hasPrefix("\(index).latent_") }.max()
        let latents = try tensor(last ?? "\(index).latent_1")
        walk.state.latents = device.place(
            latents.reshaped(Shape([1] + latents.shape.dimensions.suffix(4))), as: .f32)
        var frames: [Double] = []
        try walk.advance { _, _, yield in
            if case .frames(let chunk)? = yield { frames += chunk.bytes.map { Double($0) } }
        }
        if file.info("\(index).frame_indices") != nil {
            let size = try tensor("\(index).frames").shape.tail.count
            frames = try tensor("\(index).frame_indices").doubles().flatMap {
                frames[Int($0) * size..<(Int($0) + 1) * size]
            }
        }
        let expected = try tensor("\(index).frames").doubles()
        guard frames.count == expected.count else {
            return checks.fail(
                "\(index).frames", "\(frames.count) numbers, expected \(expected.count)")
        }
        let psnr = peakSignalToNoise(frames, expected)
        checks.expect(
            psnr >= leastPSNR, "\(index).frames", "PSNR \(brief(psnr)) dB, expected at least 40")
    }
}

/// PSNR of 8-bit numbers in dB; infinite if they are equal.
func peakSignalToNoise(_ a: [Double], _ b: [Double]) -> Double {
    var sum = 0.0
    for (x, y) in zip(a, b) { sum += (x - y) * (x - y) }
    return sum == 0 ? .infinity : 10 * log10(255 * 255 * Double(a.count) / sum)
}

extension String {
    fileprivate func replacingSuffix(_ suffix: String, by replacement: String) -> String {
        hasSuffix(suffix) ? dropLast(suffix.count) + replacement : self
    }
}
