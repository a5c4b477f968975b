/// Whole runs: from a prompt, or a prompt and a picture, to frames.

import Checkpoints
import Diffusion
import FoundationEssentials
import Glibc
import Media
import Models
import Pipelines
import Tensors
import Tokenizers

/// The models of an end-to-end case in one precision.
private struct SmallModels {
    let fixture: Fixture
    let device: any Backend
    let activations: DType

    var tokens: Tokens {
        get throws {
            let folder = fixture.config["tokenizer"]?.string ?? "tokenizer/umt5"
            let tokenizer = try Tokenizer(
                path: fixture.folder.absolute(folder) + "/tokenizer.json")
            guard let prompt = fixture.config["prompt"]?.string else {
                throw FixtureError("config lacks 'prompt'")
            }
            return tokenizer.encode(prompt: prompt)
        }
    }

    func encode(_ tokens: Tokens) throws -> TextEmbedding {
        let encoder = try UMT5(
            Weights(try fixture.weights("umt5"), on: device, activations: activations))
        return encoder(Array(tokens.ids.prefix(tokens.count)), on: device)
    }

    func transformer(_ checkpoint: any Checkpoint) throws -> SmallTransformer {
        try SmallTransformer(fixture, checkpoint, on: device, activations: activations)
    }

    /// latents: f32 [1, C, T, H, W] → video [T, H, W, 3] in the precision of the run
    func decode(_ latents: Tensor) throws -> [Tensor] {
        let decoder = try WanVAE.Decoder(
            Weights(try fixture.weights("vae"), on: device, activations: activations))
        return Array(decoder(latents[0], on: device))
    }

    /// Frames in the layouts of the case: [3, T, H, W], and u8 [T, H, W, 3].
    func compareFrames(_ chunks: [Tensor], _ checks: Checks) throws {
        if fixture.has("out.video_fp32") {
            let video = chunks.flatMap { device.read($0).doubles() }
            try checks.compare(
                "out.video_fp32", channelsFirst(video, channels: 3), in: fixture)
        }
        try checks.compare("out.frames_u8", pixels(chunks), in: fixture)
    }

    func pixels(_ chunks: [Tensor]) -> [Double] {
        chunks.flatMap { device.read(device.rgb8($0)).doubles() }
    }
}

func checkTextToVideo(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    for (activations, isReference) in [(DType.f32, true), (.bf16, false)]
    where isReference || fixture.has("out.frames_u8_bf16ref") {
        let models = SmallModels(fixture: fixture, device: device, activations: activations)
        let tokens = try models.tokens
        let text = try models.encode(tokens)
        let sampler = try rcmSampler(fixture, roundTimesteps: true)
        let net = try models.transformer(try fixture.weights("dit"))
        let noise = try fixture.tensor("in.init_noise")
        let size = net.size(noise[0])
        let context = net.model.prepare(text, size: size, on: device)
        var last: Tensor?
        let states = try sample(fixture, sampler, on: device) { state, step in
            let v = net.model([state[0]], timestep: step.timestep, context, on: device)
            return v.reshaped(state.shape)
        }
        last = Tensor(states.last!.map { Float($0) }, noise.shape)
        let latents = device.place(last!, as: .f32)
        let chunks = try models.decode(latents)
        guard isReference else {
            try checks.compare("out.frames_u8_bf16ref", models.pixels(chunks), in: fixture)
            continue
        }
        try checks.compare(
            "mid.ids", tokens.ids.prefix(tokens.count).map { Double($0) }, in: fixture)
        try checks.compare(
            "mid.embed_fp32", device.read(text.rows.slice(0..<text.count)), in: fixture)
        try checks.compare("mid.model_t", sampler.steps.map(\.timestep), in: fixture)
        try compare(states, output: "out.latent_fp32", in: fixture, checks)
        try models.compareFrames(chunks, checks)
    }
}

func checkImageToVideo(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let models = SmallModels(fixture: fixture, device: device, activations: .f32)
    let tokens = try models.tokens
    try checks.compare(
        "mid.ids", tokens.ids.prefix(tokens.count).map { Double($0) }, in: fixture)
    let (width, height) = (try fixture.int("width"), try fixture.int("height"))
    let image = resize(try picture(fixture), width: width, height: height)
    let planes = image.normalizedPlanes()
    try checks.compare("mid.image_chw", planes.map { Double($0) }, in: fixture)
    let encoder = try WanVAE.Encoder(
        Weights(try fixture.weights("vae"), on: device, activations: .f32))
    let still = channelsLast(Tensor(planes, [3, 1, height, width]))
        .reshaped([height, width, 3])
    let encoded = encoder.encodeImage(
        device.place(still, as: .f32), frameCount: try fixture.int("num_frames"), on: device)
    try checks.compare("mid.encoded", device.read(encoded), in: fixture)
    let conditioning = imageConditioning(encoded, on: device)
    try checks.compare("mid.y", device.read(conditioning), in: fixture)

    let text = try models.encode(tokens)
    let sampler = try rcmSampler(fixture, roundTimesteps: true)
    let boundary = try fixture.double("boundary")
    checkExperts(
        sampler, boundary: boundary, expected: fixture.config["low_noise_used"]?.doubles, checks)
    let weights = try fixture.weights("dit_high")
    let high = try models.transformer(weights)
    let low = try models.transformer(halvedHead(weights))
    let size = high.size(encoded)
    let contexts = (
        high: high.model.prepare(text, size: size, on: device),
        low: low.model.prepare(text, size: size, on: device)
    )
    let states = try sample(fixture, sampler, on: device) { state, step in
        let isLow = usesLowNoiseExpert(at: step.t, boundary: boundary)
        let v = (isLow ? low : high).model(
            [state[0], conditioning], timestep: step.timestep,
            isLow ? contexts.low : contexts.high, on: device)
        return v.reshaped(state.shape)
    }
    try compare(states, output: "out.latent_fp32", in: fixture, checks)
    let shape = try fixture.tensor("in.init_noise").shape
    let latents = Tensor(states.last!.map { Float($0) }, shape)
    try models.compareFrames(try models.decode(device.place(latents, as: .f32)), checks)
}

// MARK: - nano

/// Runs of a whole model folder: ids, text embedding, noise, latents after each step and frames of several prompts,
/// all in f32 with exact attention.
func checkWholeRuns(
    _ path: String, _ folder: String, _ device: any Backend, _ checks: Checks
) throws {
    let file = try openCheckpoint(path)
    let run = WholeRun(
        file: file, device: device, checks: checks, models: try modelSet(near: folder))
    let captions = try? JSON(path: folder + "/captions_eval.json").array
    var index = 0
    while file.info("\(index).ids") != nil {
        try run.check(index, prompt: captions?[index]["prompt"]?.string)
        index += 1
    }
    checks.expect(index > 0, "runs", "\(path) holds none")
}

/// The model in `folder` itself, or the built-in one in a Models folder beside it or beside its parents.
private func modelSet(near folder: String) throws -> ModelSet {
    if FileManager.default.fileExists(atPath: folder + "/config.json") {
        return try ModelSet(folder: folder)
    }
    return try ModelSet.open("nano", executable: folder + "/.")
}

private struct WholeRun {
    let file: any Checkpoint
    let device: any Backend
    let checks: Checks
    let models: ModelSet

    /// The limits of a run in f32: the sums of four steps through ten layers.
    private let latentTolerance = Tolerance(relativeL2: 1e-3)
    private let leastPSNR = 40.0

    private func tensor(_ name: String) throws -> Tensor {
        guard let tensor = try file.tensor(name) else {
            throw FixtureError("\(file.path) has no tensor \(name)")
        }
        return tensor
    }

    private func weights(_ path: String) throws -> Weights {
        Weights(try openCheckpoint(path), on: device, activations: .f32)
    }

    func check(_ index: Int, prompt: String?) throws {
        let ids = try tensor("\(index).ids").doubles()
        if let prompt {
            let tokens = try Tokenizer(path: models.tokenizer).encode(
                prompt: prompt, length: models.defaults.textLength)
            checks.compare(
                "\(index).ids", tokens.ids.prefix(tokens.count).map { Double($0) }, ids, .exact)
        }
        let encoder = try UMT5(weights(models.textEncoder))
        let text = encoder(
            ids.map { Int32($0) }, textLength: models.defaults.textLength, on: device)
        checks.compare(
            "\(index).text_embedding", device.read(text.rows.slice(0..<text.count)).doubles(),
            try tensor("\(index).text_embedding").doubles(), Tolerance(relativeL2: 2e-5))
        if file.info("\(index).noise") != nil { try checkLatents(index, text) }
        try checkFrames(index)
    }

    /// The student in full precision, where its file is there.
    private func checkLatents(_ index: Int, _ text: TextEmbedding) throws {
        let path = models.transformer.replacingSuffix("_quant.pth", by: ".safetensors")
        guard FileManager.default.fileExists(atPath: path) else {
            return checks.skip("\(index).latents", "no transformer in full precision: \(path)")
        }
        let spec = SparseAttention(topK: models.defaults.topK, arithmetic: .exact)
        let net = try WanTransformer(
            weights(path),
            WanTransformerOptions(attention: .sparse(spec), heads: models.defaults.heads))
        let noises = try tensor("\(index).noise")
        let shape = Shape([1] + noises.shape.tail.dimensions)
        let context = net.prepare(
            text, size: (shape[2], shape[3], shape[4]), on: device)
        var drawn = 0
        func draw() -> Tensor {
            drawn += 1
            // The last draw counts nothing, and the file leaves it out.
            return device.place(
                noises[drawn % noises.shape[0]].reshaped(shape), as: .f32)
        }
        let sampler = try RCMSampler(
            count: noises.shape[0], sigmaMax: models.defaults.sigmaMax,
            roundTimesteps: false)
        var denoiser = Denoiser(
            sampler, noise: device.place(noises[0].reshaped(shape), as: .f32), on: device,
            draw: draw)
        while denoiser.next != nil {
            denoiser.advance { state, step in
                net([state[0]], timestep: step.timestep, context, on: device)
                    .reshaped(state.shape)
            }
            let name = "\(index).latent_\(denoiser.count)"
            checks.compare(
                name, device.read(denoiser.latents).doubles(), try tensor(name).doubles(),
                latentTolerance)
        }
    }

    /// The frames of the last latents.
    private func checkFrames(_ index: Int) throws {
        let defaults = models.defaults
        let statistics =
            if let mean = defaults.latentMean, let std = defaults.latentStd {
                LatentStatistics(mean: mean, std: std)
            } else { LatentStatistics.wan }
        let decoder = try WanVAE.Decoder(weights(models.vae), statistics: statistics)
        let last = file.names.filter { $0.hasPrefix("\(index).latent_") }.max()
        let latents = device.place(try tensor(last ?? "\(index).latent_1"), as: .f32)
        var frames = decoder(latents, on: device).flatMap {
            device.read(device.rgb8($0)).doubles()
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
            psnr >= leastPSNR, "\(index).frames", "PSNR \(brief(psnr)) dB, at least 40 demanded")
    }
}

/// PSNR of 8-bit numbers in dB; infinite where they are equal.
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
