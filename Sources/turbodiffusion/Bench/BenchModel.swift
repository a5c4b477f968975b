/// What `bench` measures: models of known sizes with random weights, or those of a folder.

import Checkpoints
import Glibc
import Models
import Pipelines
import Tensors

/// A transformer with its text encoder and autoencoder.
struct BenchModel {
    enum Part: String {
        case textEncoder = "text encoder"
        case transformer
        case vae = "VAE"
    }

    /// Sizes of a published model.
    private struct Published {
        let transformer: WanTransformerArchitecture
        let textEncoder: UMT5Architecture
        let vae: WanVAEArchitecture
        let defaults: ModelSet.Defaults
    }

    private enum Source {
        case random(Published)
        case files(ModelSet)
    }

    let name: String
    private let source: Source

    static let published = ["nano", "Wan2.1-1.3B", "Wan2.1-14B", "Wan2.2-A14B"]

    /// - Parameter name: of a published model, or a folder with a `config.json`.
    init(_ name: String) throws {
        if let known = Self.published.first(where: { $0.lowercased() == name.lowercased() }) {
            self.name = known
            source = .random(Self.sizes(known))
            return
        }
        do {
            let models = try ModelSet(folder: name)
            self.name = models.name
            source = .files(models)
        } catch {
            throw RequestError(
                "no model '\(name)': expected \(Self.published.joined(separator: ", ")) or a "
                    + "folder with a config.json (\(error))")
        }
    }

    private static func sizes(_ name: String) -> Published {
        var transformer: WanTransformerArchitecture =
            switch name {
            case "Wan2.1-1.3B": .wan21T2V1B
            case "Wan2.1-14B": .wan21T2V14B
            case "Wan2.2-A14B": .wan22I2VA14B
            default: .nano
            }
        transformer.hasSparseLinearAttention = true
        var defaults = ModelSet.Defaults()
        guard name == "nano" else {
            return Published(
                transformer: transformer, textEncoder: .xxl, vae: WanVAEArchitecture(),
                defaults: defaults)
        }
        (defaults.width, defaults.height, defaults.frames) = (256, 144, 33)
        (defaults.attention, defaults.topK) = (.sla, 0.2)
        defaults.roundTimesteps = false
        return Published(
            transformer: transformer, textEncoder: .nano, vae: WanVAEArchitecture(dim: 24),
            defaults: defaults)
    }

    var isRandom: Bool {
        if case .random = source { true } else { false }
    }

    var defaults: ModelSet.Defaults {
        switch source {
        case .random(let sizes): sizes.defaults
        case .files(let models): models.defaults
        }
    }

    /// Rows of the text that the transformer sees.
    var textLength: Int { defaults.textLength }

    /// Heads of the transformer where its file does not tell them.
    var heads: Int? {
        switch source {
        case .random(let sizes): sizes.transformer.heads
        case .files(let models): models.defaults.heads
        }
    }

    var statistics: LatentStatistics {
        guard let mean = defaults.latentMean, let std = defaults.latentStd else { return .wan }
        return LatentStatistics(mean: mean, std: std)
    }

    /// Opens the file of a part, or makes an outline of it.
    func checkpoint(_ part: Part) throws -> any Checkpoint {
        switch source {
        case .random(let sizes):
            let model: DetectedModel =
                switch part {
                case .textEncoder: .umT5(sizes.textEncoder)
                case .transformer: .wanTransformer(sizes.transformer)
                case .vae: .wanVAE(sizes.vae)
                }
            return UnmadeCheckpoint(Outline(model, numbers: .f32))
        case .files(let models):
            let path =
                switch part {
                case .textEncoder: models.textEncoder
                case .transformer: models.transformer
                case .vae: models.vae
                }
            return try inOriginalNames(try openCheckpoint(path))
        }
    }

    // MARK: The models

    private func weights(_ part: Part, _ request: VideoRequest, on device: any Backend) throws
        -> Weights
    {
        Weights(
            try checkpoint(part), on: device,
            activations: request.precision.dtype,
            linearFormat: part == .transformer ? request.linears.format : .plain)
    }

    func textEncoder(_ request: VideoRequest, on device: any Backend) throws -> UMT5 {
        try UMT5(weights(.textEncoder, request, on: device))
    }

    /// - Parameter sage: whose 8-bit arithmetic SageSLA uses.
    func transformer(_ request: VideoRequest, sage: SageArchitecture, on device: any Backend) throws
        -> WanTransformer
    {
        try WanTransformer(
            weights(.transformer, request, on: device),
            request.transformerOptions(sage: sage, heads: heads))
    }

    func decoder(_ request: VideoRequest, on device: any Backend) throws -> WanVAE.Decoder {
        try WanVAE.Decoder(weights(.vae, request, on: device), statistics: statistics)
    }

    func encoder(_ request: VideoRequest, on device: any Backend) throws -> WanVAE.Encoder {
        try WanVAE.Encoder(weights(.vae, request, on: device), statistics: statistics)
    }

    // MARK: Memory

    static var hostMemory: Int {
        sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
    }

    /// Refuses random weights that would not fit in the host's memory, before any is made.
    /// - Parameter present: bytes of the host's memory.
    func checkMemory(
        _ request: VideoRequest, _ stage: BenchStage, present: Int = hostMemory
    ) throws {
        guard isRandom else { return }
        let needed: Int
        let plan = NullBackend()
        switch stage {
        case .decode, .encode: return
        case .text:
            let model = try textEncoder(request, on: plan)
            needed = withExtendedLifetime(model) { plan.placedBytes }
        case .transformer:
            let model = try transformer(request, sage: .sm90, on: plan)
            needed = withExtendedLifetime(model) { plan.placedBytes }
        case .all, .load:
            try checkMemory(request, .text, present: present)
            return try checkMemory(request, .transformer, present: present)
        }
        guard needed < present / 10 * 9 else {
            throw RequestError(
                "the weights of \(stage == .text ? "the text encoder of " : "")\(name) take "
                    + "\(Output.bytes(needed)), this machine has \(Output.bytes(present)); "
                    + "measure other stages with --stage, or a smaller model")
        }
    }
}
