/// What a training run makes now and then of some prompts, beside what its teacher makes of them.

import Checkpoints
import Diffusion
import Families
import Glibc
import Ground
import Media
import Models
import Quality
import SystemPackage
import Tensors
import Training

/// Samples the trained net with equal noise each time.
final class Validation {
    private let samples: [Sample]
    private let prompts: [String]
    private let sampling: Sampling
    private let teacherSampling: Sampling
    private let inputs: TrainingInputs
    private let settings: TrainingSettings
    private let decoder: WanVAE.Decoder
    private let device: any Backend
    private let classifier: AttributeClassifier?
    /// For each prompt, where it is known what it asks for.
    private let captions: [Caption?]
    private var teacher: [Video]?
    private var hasAccompanied = false
    private var writesVideos = true

    init(
        _ options: TrainOptions, _ settings: TrainingSettings, _ inputs: TrainingInputs,
        on device: any Backend
    ) throws {
        let count = min(options.validateSamples, inputs.samples.count)
        self.inputs = inputs
        self.settings = settings
        self.device = device
        samples = try (0..<count).map(inputs.samples.sample)
        let (shape, text) = (samples[0].latents.shape, samples[0].text.rows.shape)
        guard samples.allSatisfy({ $0.latents.shape == shape && $0.text.rows.shape == text }) else {
            throw UserError(
                "train.validation",
                "the first \(count) samples of the data set have different sizes: "
                    + "--validate-samples 1 takes the first one")
        }
        prompts = try (0..<count).map(inputs.samples.prompt)
        let defaults = inputs.set.family.defaults
        var flow = defaults.flow
        // Few steps are the distilled student's own.
        flow.steps = settings.recipe == .rcm ? 20 : options.validateSteps ?? 20
        if samples.contains(where: { $0.negative == nil }) { flow.guidance = 1 }
        teacherSampling = .flow(flow)
        if settings.recipe == .rcm {
            var distilled = defaults.distilled
            distilled.steps = options.validateSteps ?? 4
            sampling = .distilled(distilled)
        } else {
            sampling = .flow(flow)
        }
        _ = try sampling.sampler(roundTimesteps: inputs.set.family.roundsTimesteps)
        decoder = try WanVAE.Decoder(
            Weights(
                try inputs.set.file(.decoder).checkpoint, on: device,
                activations: settings.isHalf ? .bf16 : .f32),
            statistics: inputs.set.family.statistics)
        let known = try options.captions.map { try Caption.read($0) } ?? []
        captions = prompts.map { prompt in known.first { $0.prompt == prompt } }
        classifier = try options.classifier.map {
            try AttributeClassifier(try openCheckpoint($0), on: device)
        }
        if let classifier {
            guard captions.contains(where: { $0 != nil }) else {
                throw UserError(
                    "train.captions",
                    "\(options.captions ?? "") tells of none of the first \(count) prompts of the data "
                        + "set: their texts must be equal")
            }
            let stride = inputs.set.family.geometry.stride
            try classifier.check(
                frames: (shape[1] - 1) * stride.t + 1, width: shape[3] * stride.w,
                height: shape[2] * stride.h)
        }
    }

    /// Makes the videos, writes them into the run's folder and compares them.
    /// - Returns: figures by name; nil where one is not known.
    func run(_ trainer: Trainer, in folder: RunFolder) async throws -> [(
        name: String, value: Double?
    )] {
        let place = folder.path.appending("samples")
        try place.makeFolders()
        let wanted: [Video]
        if let teacher {
            wanted = teacher
        } else {
            wanted = try latents(trainer.teacher, teacherSampling, trainer).map(decoded)
            try await write(wanted, "teacher", in: place)
            teacher = wanted
        }
        let made = try latents(trainer.student.net, sampling, trainer).map(decoded)
        try await write(made, RunFolder.name(trainer.iteration), in: place)
        let error =
            zip(made, wanted).reduce(0.0) {
                $0 + FrameDistance.between($1.0, $1.1).meanSquaredError
            }
            / Double(made.count)
        var figures: [(name: String, value: Double?)] = [("psnr", FrameDistance.psnr(error))]
        if classifier != nil {
            figures.append(("score", score(made)))
            figures.append(("teacher_score", score(wanted)))
        }
        return figures
    }

    /// Takes part in what the first process validates, where nets are split over the processes.
    func accompany(_ trainer: Trainer) throws {
        if !hasAccompanied { _ = try latents(trainer.teacher, teacherSampling, trainer) }
        hasAccompanied = true
        _ = try latents(trainer.student.net, sampling, trainer)
    }

    /// Per cent of the attributes that the videos show as asked for.
    private func score(_ videos: [Video]) -> Double? {
        guard let classifier else { return nil }
        var answers: [Bool] = []
        for (video, caption) in zip(videos, captions) {
            if let caption { answers += classifier.agreement(of: video, with: caption) }
        }
        return 100 * Double(answers.count { $0 }) / Double(max(1, answers.count))
    }

    // MARK: Videos

    /// → f32 [C, T, H, W] of each sample
    private func latents(_ net: Net, _ sampling: Sampling, _ trainer: Trainer) throws -> [Tensor] {
        if settings.shard == .full { try trainer.meet() }
        // Whole samples: the other processes do not sample, or do all of it, too.
        trainer.isApart = true
        defer { trainer.isApart = false }
        let made = try samples.enumerated().map { index, sample in
            let draws = SeededDraws(seed: settings.seed, iteration: .max, part: index)
            let shape = sample.latents.shape
            func noise() -> Tensor { draws.noise(1, shape)[0].tensor.reshaped([1] + shape) }
            let sampler = try sampling.sampler(
                roundTimesteps: inputs.set.family.roundsTimesteps)
            var denoiser = Denoiser(sampler, noise: device.place(noise(), as: .f32), on: device)
            while denoiser.next != nil {
                try denoiser.advance(on: device, draw: { device.place(noise(), as: .f32) }) {
                    latents, step in
                    let x = device.read(latents).reshaped(shape)
                    func velocity(_ text: Text) throws -> Tensor {
                        device.place(
                            try net.velocity(
                                x, at: step.timestep, text, conditioning: sample.conditioning),
                            as: .f32)
                    }
                    let positive = try velocity(sample.text)
                    guard sampling.isGuided, let negative = sample.negative else {
                        return device.reshape(positive, latents.shape)
                    }
                    return device.reshape(
                        guided(
                            positive, away: try velocity(negative), by: sampling.guidance,
                            on: device), latents.shape)
                }
            }
            return device.reshape(denoiser.latents(on: device), shape)
        }
        try trainer.checkProcesses()
        return made
    }

    /// latents: f32 [C, T, H, W]
    private func decoded(_ latents: Tensor) throws -> Video {
        var pixels: [UInt8] = []
        var size: Shape = []
        for chunk in decoder(latents, on: device) {
            let frames = device.read(device.rgb8(chunk))
            size = frames.shape.tail
            frames.withElements(UInt8.self) { pixels += $0 }
        }
        try device.synchronize()
        return Video(width: size[1], height: size[0], pixels: pixels)
    }

    // MARK: Files

    /// A picture with a row for each video, and the videos themselves where there is FFmpeg.
    private func write(_ videos: [Video], _ name: String, in folder: FilePath) async throws {
        let columns = min(5, videos[0].count)
        let (width, height) = (videos[0].width, videos[0].height)
        var picture = RGBImage(
            width: columns * width, height: videos.count * height, red: 0, green: 0, blue: 0)
        for (row, video) in videos.enumerated() {
            for column in 0..<columns {
                let frame = columns == 1 ? 0 : column * (video.count - 1) / (columns - 1)
                for line in 0..<height {
                    let from = ((frame * height + line) * width) * 3
                    let to = ((row * height + line) * columns + column) * width * 3
                    picture.pixels.replaceSubrange(
                        to..<to + 3 * width, with: video.pixels[from..<from + 3 * width])
                }
            }
        }
        try PendingFile.write(picture.png, to: folder.appending("\(name).png"), overwrite: true)
        guard writesVideos else { return }
        for (index, video) in videos.enumerated() {
            do {
                let writer = try VideoWriter(
                    VideoWriter.Options(
                        path: folder.appending("\(name)_\(index).mp4").string, replaces: true,
                        width: width, height: height,
                        framesPerSecond: Double(inputs.set.family.defaults.framesPerSecond)))
                try await writer.append(video.pixels)
                _ = try await writer.finish()
            } catch MediaError.ffmpegMissing {
                // Pictures are enough to see how a run gets on.
                writesVideos = false
                return
            }
        }
    }
}
