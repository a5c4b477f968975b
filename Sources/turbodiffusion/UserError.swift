/// Errors as a user reads them: what the libraries throw, in the terms of the command line.

import Catalog
import Checkpoints
import Delivery
import Devices
import Families
import Ground
import Media
import Runs
import Training

/// One line for people, and a code for programs, which stays the same between versions.
struct UserError: Error, CustomStringConvertible {
    let code: String
    let description: String

    init(_ code: String, _ description: String) {
        self.code = code
        self.description = description
    }
}

extension UserError {
    /// - Parameter takesPicture: whether the command is i2v.
    init(_ error: any Error, takesPicture: Bool) {
        switch error {
        case let error as UserError: self = error
        case let error as RequestError: self.init(error)
        case let error as RunError: self.init(error)
        case let error as FittingError: self.init(error)
        case let error as CatalogError: self.init(error, takesPicture: takesPicture)
        case let error as StoredRunError: self.init(error, takesPicture: takesPicture)
        // A file is in the way, and every command that writes one may replace it on request.
        case OutputError.exists(_), MediaError.exists(_), FileError.exists(_):
            self.init("output", "\(error); --force replaces it")
        case let error as OutputError: self.init("output", "\(error)")
        case let error as CheckpointError: self.init("checkpoint", "\(error)")
        case let error as MediaError: self.init("media", "\(error)")
        case let error as MemoryShortage: self.init(error)
        case let error as HostMemoryShortage: self.init("host.memory", "\(error)")
        case let error as DeviceGroupError: self.init("device.group", "--devices: \(error)")
        case let error as GroupError:
            let cause = UserError(error.underlying, takesPicture: takesPicture)
            self.init(cause.code, "\(error.device): \(cause.description)")
        case let error as DataError: self.init("train.data", "\(error)")
        case let error as RunFolderError: self.init("train.folder", "\(error)")
        case is CancellationError: self.init("cancelled", "cancelled")
        default: self.init("other", "\(error)")
        }
    }

    private init(_ error: RequestError) {
        let code =
            switch error {
            case .unusable: "request.unusable"
            case .conflict: "request.conflict"
            case .missing: "request.missing"
            }
        self.init(code, error.message(naming: \.option))
    }

    private init(_ error: RunError) {
        switch error {
        case .notFinite(.load, _): self.init("run.not-finite", "\(error)")
        case .notFinite(_, nil): self.init("run.not-finite", "\(error) (--precision f32)")
        case .notFinite: self.init("run.not-finite", "\(error)")
        case .vocabulary: self.init("run.vocabulary", "\(error)")
        case .unsupported: self.init("run.unsupported", "\(error) (--linears int8)")
        case .stored: self.init("run.stored", "\(error)")
        case .memory: self.init("run.memory", "\(error)")
        }
    }

    private init(_ error: MemoryShortage) {
        let gibibytes = error.free >> 30
        self.init(
            "device.memory",
            "\(error); close them"
                + (gibibytes > 0 ? ", or try --memory-limit \(gibibytes)GiB" : ""))
    }

    private init(_ error: FittingError) {
        let code = "model.fit"
        switch error {
        case .conditioning(let path, let channels, let expected):
            let takesPicture = expected > Family.wan21.inputChannels
            let other = takesPicture ? Family.wan21 : .wan22I2V
            self.init(
                code,
                channels == other.inputChannels
                    ? "\(path) is \(takesPicture ? "a text-to-video" : "an image-to-video") model; use "
                        + "'turbodiffusion \(takesPicture ? "t2v" : "i2v")'"
                    : "\(path) takes \(channels) input channels, expected \(expected): models with other inputs, "
                        + "such as Wan2.2 TI2V-5B and Fun-Control, are not supported")
        case .noLinearBranch:
            self.init(
                code,
                "\(error): a plain Wan model runs with --attention_type original --sampler wan-unipc"
            )
        default: self.init(code, "\(error)")
        }
    }

    private init(_ error: CatalogError, takesPicture: Bool) {
        let code = "model.catalog"
        func advice(_ model: String) -> String {
            Catalog.published.howToGet(model).map { "\($0), or " } ?? ""
        }
        switch error {
        case .missingFile(.tokenizer, let model, let path):
            self.init(
                code,
                "no tokenizer at \(path): \(advice(model))put umT5's tokenizer.json or spiece.model beside the text "
                    + "encoder, or name it with --tokenizer_path")
        case .missingFile(let file, let model, _):
            self.init(
                code,
                "\(error); \(advice(model))name another with \(file.option(takesPicture: takesPicture)) FILE"
            )
        case .notHere(let model):
            self.init(
                code, "\(error)" + (Catalog.published.howToGet(model).map { ": \($0)" } ?? ""))
        case .missingFiles(let files, let model):
            let options = ModelFile.allCases.filter { files[$0] != nil }.map {
                "\($0.option(takesPicture: takesPicture)) FILE"
            }
            self.init(
                code, "\(error): \(advice(model))\(options.joined(separator: ", ")) name others")
        case .conditioning(_, let model):
            // The command fits the model where a stored request does not.
            self.init(
                code,
                model != takesPicture
                    ? "\(error); use 'turbodiffusion \(model ? "i2v" : "t2v")'"
                    : "\(error): the request begins with \(model ? "no picture, which it needs" : "a picture, which it does not take")"
            )
        default: self.init(code, "\(error)")
        }
    }

    private init(_ error: StoredRunError, takesPicture: Bool) {
        let option: String? =
            switch error {
            case .noRequest, .unreadable: nil
            case .modelFile(let file, _, _): file.option(takesPicture: takesPicture)
            case .input(.image, _, _): "--image_path"
            case .input(.text, _, _): "--text_embedding"
            case .input(.conditioning, _, _): "--conditioning"
            case .input(.latents, _, _): "--latents"
            case .lora: "--lora"
            }
        self.init("repeat", "\(error)" + (option.map { "; use another with \($0) FILE" } ?? ""))
    }
}

extension RequestError.Field {
    /// The option that sets the field.
    var option: String {
        switch self {
        case .prompt: "--prompt"
        case .negativePrompt: "--negative_prompt"
        case .image: "--image_path"
        case .width: "the width (--resolution)"
        case .height: "the height (--resolution)"
        case .frames: "--num_frames"
        case .framesPerSecond: "--fps"
        case .samples: "--num_samples"
        case .steps: "--num_steps"
        case .sigmaMax: "--sigma_max"
        case .shift: "--shift"
        case .guidance: "--guidance"
        case .topK: "--sla_topk"
        case .loras: "--lora"
        case .boundary: "--boundary"
        case .linears: "--linears"
        case .textEmbedding: "--text_embedding"
        case .conditioning: "--conditioning"
        case .latents: "--latents"
        }
    }
}

extension ModelFile {
    func option(takesPicture: Bool) -> String {
        switch self {
        case .transformer: takesPicture ? "--high_noise_model_path" : "--dit_path"
        case .lowNoiseTransformer: "--low_noise_model_path"
        case .textEncoder: "--text_encoder_path"
        case .tokenizer: "--tokenizer_path"
        case .vae: "--vae_path"
        }
    }
}
