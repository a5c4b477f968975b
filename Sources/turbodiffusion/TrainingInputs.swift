/// What a training run reads: models and samples.

import Catalog
import Checkpoints
import Families
import Ground
import Models
import Runs
import Tensors
import Training

/// The models, the family and the samples of a run.
final class TrainingInputs {
    let models: TrainingModels
    let set: ModelSet
    let samples: ShardSamples
    private let settings: TrainingSettings

    init(_ files: TrainingFiles, _ settings: TrainingSettings) throws {
        self.settings = settings
        let part: ModelPart = settings.expert == .low ? .lowNoiseTransformer : .transformer
        var choice = ModelChoice(files.model ?? "nano")
        if let teacher = files.teacher {
            choice.files[part == .transformer ? .transformer : .lowNoiseTransformer] = teacher
        }
        set = try Catalog.published.open(choice)
        let family = set.family
        guard family.conditioning == .none || settings.recipe == .lora else {
            throw UserError(
                "train.model",
                "\(set.name) takes a picture: adapters are trained for such models (train lora), "
                    + "other recipes take text-to-video models")
        }
        if settings.expert != nil, set.lowNoiseTransformer == nil {
            throw UserError(
                "train.expert", "\(set.name) has one transformer: --expert is for models with two")
        }
        if settings.expert == nil, set.lowNoiseTransformer != nil {
            throw UserError(
                "train.expert",
                "\(set.name) has two transformers: train lora --expert high, low or both "
                    + "trains adapters for one of them, or for both")
        }
        func open(_ path: String) throws -> OpenedModel {
            try openModel(
                path, .wanTransformer, heads: family.heads, patch: family.geometry.patch)
        }
        let place = set.path(part)
        let teacher = try open(place)
        guard case .wanTransformer(let sizes) = teacher.model else {
            throw UserError("train.model", "\(place) is no transformer")
        }
        let base = try files.base.map { path in
            let base = try open(path)
            guard case .wanTransformer(let own) = base.model,
                own.inputChannels == sizes.inputChannels,
                own.outputChannels == sizes.outputChannels, own.textDim == sizes.textDim,
                own.heads == sizes.heads, own.patch == sizes.patch
            else {
                throw UserError(
                    "train.base",
                    "\(path) and \(place) are of different models: --base needs the "
                        + "teacher's channels, width of text and heads")
            }
            return try base.used
        }
        models = TrainingModels(
            // Whatever else lies in the file is neither trained nor exported.
            teacher: try teacher.used, student: base,
            options: WanTransformerOptions(heads: sizes.heads, patch: family.geometry.patch),
            roundsTimesteps: family.roundsTimesteps,
            linearFormat: settings.hasInt8Base ? .int8Blocks : .plain)
        samples = try Self.samples(files, settings, sizes, family)
    }

    private static func samples(
        _ files: TrainingFiles, _ settings: TrainingSettings,
        _ sizes: WanTransformerArchitecture, _ family: Family
    ) throws -> ShardSamples {
        guard let dataset = files.dataset, !dataset.isEmpty else {
            throw UserError("train.data", "--dataset SHARD… is needed: 'dataset make' makes one")
        }
        var negative: Text?
        if let path = files.negativeEmbedding {
            let isTorch = !path.hasSuffix(".safetensors")
            let rows = try isTorch ? readTorchTensor(path) : only(path)
            guard rows.shape.rank == 2, rows.shape[1] == sizes.textDim else {
                throw UserError(
                    "train.negative",
                    "\(path) holds \(rows), expected an embedding of [rows, \(sizes.textDim)]")
            }
            // The teacher would see it in every sample: no step could be made.
            guard rows.allFinite else {
                throw UserError(
                    "train.negative", "\(path) holds numbers that are not finite (NaN or infinity)")
            }
            negative = try Text(rows).padded(to: family.textLength)
        }
        if settings.recipe == .rcm, settings.rcm.guidance > 1, negative == nil {
            throw UserError(
                "train.negative",
                "the teacher's guidance needs --negative-embedding FILE (or --guidance 1)")
        }
        let samples = ShardSamples(
            try TarShards(dataset), frames: settings.frames, textLength: family.textLength,
            negative: negative)
        // The first sample stands for all: what does not fit is told before work begins.
        let first = try samples.sample(0)
        let shape = first.latents.shape
        guard shape[0] == sizes.outputChannels, shape[2] % sizes.patch == 0,
            shape[3] % sizes.patch == 0, first.text.rows.shape[1] == sizes.textDim
        else {
            throw UserError(
                "train.data",
                "the data set's latents are \(shape) and its text \(first.text.rows.shape): "
                    + "expected \(sizes.outputChannels) channels, heights and widths that are "
                    + "multiples of \(sizes.patch), and text of width \(sizes.textDim)")
        }
        return samples
    }

    private static func only(_ path: String) throws -> Tensor {
        let file = try openCheckpoint(path)
        guard file.names.count == 1, let tensor = try file.tensor(file.names[0]) else {
            throw UserError(
                "train.negative", "\(path) holds \(file.names.count) tensors, expected 1")
        }
        return tensor
    }

    /// The first sample as the transformer will be given it, for a plan: only its sizes count.
    func outlined() throws -> Sample {
        var sample = try samples.sample(0)
        if set.family.conditioning == .firstFrame {
            let shape = sample.latents.shape
            sample.conditioning = .zeros(
                [set.family.conditioningChannels, shape[1], shape[2], shape[3]], .f32)
        }
        return sample
    }

    /// Has every sample pass through the autoencoder, where the run or the family wants that.
    func prepare(on device: any Backend) throws {
        let (family, roundTrip) = (set.family, settings.hasRoundTrip)
        let takesPicture = family.conditioning == .firstFrame
        guard roundTrip || takesPicture else { return }
        let dtype: DType = settings.isHalf ? .bf16 : .f32
        func weights(_ part: ModelPart) throws -> Weights {
            Weights(try set.file(part).checkpoint, on: device, activations: dtype)
        }
        let decoder = try WanVAE.Decoder(try weights(.decoder), statistics: family.statistics)
        let encoder = try WanVAE.Encoder(
            try weights(.imageEncoder), statistics: family.statistics)
        /// Frames in -1...1, on the host. latents: [C, T, h, w] → [frames, H, W, 3]
        func frames(_ latents: Tensor) -> Tensor {
            var (values, size): ([Float], Shape) = ([], [])
            for chunk in decoder(device.place(latents, as: .f32), on: device) {
                let read = device.read(chunk)
                values += read.floats().map { min(max($0, -1), 1) }
                size = read.shape.tail
            }
            return Tensor(values, Shape([values.count / size.count] + size.dimensions))
        }
        samples.prepare = { sample in
            var sample = sample
            if roundTrip {
                let video = device.place(frames(sample.latents.tensor), as: dtype)
                sample.latents = LatentValues(device.read(encoder(video, on: device)))
            }
            if takesPicture {
                // The autoencoder is causal: the first latent frame is the first frame.
                let first = frames(sample.latents.prefix(frames: 1).tensor)
                let picture = encoder.encodeImage(
                    device.place(first[0], as: dtype),
                    frameCount: (sample.latents.shape[1] - 1) * family.geometry.stride.t + 1,
                    on: device)
                sample.conditioning = device.read(
                    firstFrameConditioning(
                        picture, maskChannels: family.geometry.stride.t, on: device))
            }
            return sample
        }
    }
}
