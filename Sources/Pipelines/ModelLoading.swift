/// Opening the models of a request on a device.

package import Checkpoints
import Diffusion
package import Models
package import Tensors
import Tokenizers

extension Precision {
    package var dtype: DType { self == .f32 ? .f32 : .bf16 }
}

extension LinearChoice {
    package var format: ActivationFormat {
        switch self {
        case .stored: .plain
        case .int8: .int8Blocks
        case .fp8: .fp8Rows
        }
    }
}

extension VideoRequest {
    /// What the transformer is asked to do.
    /// - Parameters:
    ///   - sage: whose 8-bit arithmetic SageSLA uses.
    ///   - heads: nil: width / 128.
    package func transformerOptions(sage: SageArchitecture, heads: Int?) -> WanTransformerOptions {
        let kind: SelfAttentionKind =
            switch attention {
            case .original: .original
            case .sla:
                .sparse(
                    SparseAttention(topK: topK, arithmetic: precision == .f32 ? .exact : .bf16))
            case .sagesla: .sparse(SparseAttention(topK: topK, arithmetic: .sage(sage)))
            }
        return WanTransformerOptions(
            attention: kind, norms: referenceNorms ? .reference : .exact, heads: heads)
    }
}

extension ModelSet {
    /// The file of a model.
    func path(_ role: ModelRole) -> String {
        switch role {
        case .textEncoder: textEncoder
        case .imageEncoder, .decoder: vae
        case .transformer: transformer
        case .lowNoiseTransformer: lowNoiseTransformer ?? transformer
        }
    }

    package var statistics: LatentStatistics {
        guard let mean = defaults.latentMean, let std = defaults.latentStd else { return .wan }
        return LatentStatistics(mean: mean, std: std)
    }

    /// The transformer that takes a step.
    func expert(for step: DenoisingStep, of request: VideoRequest) -> ModelRole {
        lowNoiseTransformer != nil && usesLowNoiseExpert(at: step.t, boundary: request.boundary)
            ? .lowNoiseTransformer : .transformer
    }

    /// The transformers that a run needs, in the order of their use.
    func experts(for steps: [DenoisingStep], of request: VideoRequest) -> [ModelRole] {
        steps.map { expert(for: $0, of: request) }.reduce(into: []) {
            if !$0.contains($1) { $0.append($1) }
        }
    }

    /// Opens the checkpoint of a model and checks that it is one of that kind.
    package func checkpoint(_ role: ModelRole) throws -> any Checkpoint {
        try inOriginalNames(try openCheckpoint(path(role)))
    }

    package func weights(
        _ role: ModelRole, of checkpoint: any Checkpoint, for request: VideoRequest,
        on device: any Backend
    ) -> Weights {
        let isTransformer = role == .transformer || role == .lowNoiseTransformer
        return Weights(
            checkpoint, on: device, activations: request.precision.dtype,
            linearFormat: isTransformer ? request.linears.format : .plain,
            in: WeightSet(isDeferred: isTransformer))
    }

    /// The transformer's checkpoint with the LoRAs of a request merged in, matrix by matrix as they are loaded.
    /// - Throws: where a LoRA is of another model or changes nothing. No weight has been read then.
    func adapted(
        _ checkpoint: any Checkpoint, _ role: ModelRole, for request: VideoRequest
    ) throws -> AdaptedCheckpoint {
        try Checkpoints.adapted(
            checkpoint,
            by: try request.loras(for: role).map { try LoRA(path: $0.path, strength: $0.strength) })
    }

    /// What the LoRAs of a request will do, told by the headers of the files.
    /// - Returns: a line for each transformer that is changed, and one for keys that change nothing.
    /// - Throws: see `adapted`; also where a LoRA is for an expert of a model that has none.
    func effects(of request: VideoRequest) throws -> [String] {
        if request.loras.isEmpty { return [] }
        if lowNoiseTransformer == nil, let lora = request.loras.first(where: { $0.expert != nil }) {
            throw RequestError(
                "\(lora.path) is for one of two experts, but \(name) has one transformer: use --lora"
            )
        }
        let roles: [ModelRole] =
            lowNoiseTransformer == nil ? [.transformer] : [.transformer, .lowNoiseTransformer]
        return try roles.flatMap { role in
            let loras = request.loras(for: role)
            if loras.isEmpty { return [String]() }
            let result = try adapted(try checkpoint(role), role, for: request)
            let files = loras.map { "\($0.path) (\($0.strength))" }.joined(separator: ", ")
            let keys = result.unmatched
            let rest = keys.count > 3 ? " and \(keys.count - 3) more" : ""
            return ["\(role.rawValue): \(result.changed.count) tensors changed by \(files)"]
                + (keys.isEmpty
                    ? []
                    : [
                        "keys that belong to nothing in the \(role.rawValue): "
                            + keys.prefix(3).joined(separator: ", ") + rest
                    ])
        }
    }

    /// The transformer of a role, on `device`.
    package func makeTransformer(
        _ role: ModelRole, from checkpoint: any Checkpoint, for request: VideoRequest,
        sage: SageArchitecture, on device: any Backend
    ) throws -> WanTransformer {
        let options = request.transformerOptions(sage: sage, heads: defaults.heads)
        if case .sparse = options.attention,
            case .wanTransformer(let sizes) = DetectedModel(checkpoint, heads: defaults.heads),
            !sizes.hasSparseLinearAttention
        {
            throw RequestError(
                "\(checkpoint.path) has no weights for sparse-linear attention (proj_l): use "
                    + "--attention-type original, or make them with 'turbodiffusion convert --add-sla'"
            )
        }
        let model = try WanTransformer(
            weights(role, of: checkpoint, for: request, on: device), options)
        let channels = request.image == nil ? 16 : 36
        guard model.config.inputChannels == channels else {
            let isImageModel = model.config.inputChannels == 36
            throw RequestError(
                "\(checkpoint.path) is \(isImageModel ? "an image-to-video" : "a text-to-video") model "
                    + "(\(model.config.inputChannels) input channels); use "
                    + "'turbodiffusion \(isImageModel ? "i2v" : "t2v")'")
        }
        return model
    }

    /// Name of the first tensor in a checkpoint that holds a number that is not finite.
    func firstNonFinite(_ role: ModelRole) -> String? {
        (try? checkpoint(role)).flatMap { nonFinite(in: $0, elementLimit: .max) }
    }

    /// The same among tensors of at most `elementLimit` elements.
    func nonFinite(in checkpoint: any Checkpoint, elementLimit: Int) -> String? {
        for name in checkpoint.names {
            guard let info = checkpoint.info(name), info.dtype.isFloatingPoint,
                info.shape.reduce(1, *) <= elementLimit, let tensor = try? checkpoint.tensor(name)
            else { continue }
            if !tensor.isFinite { return name }
        }
        return nil
    }
}

extension VideoRequest {
    /// The LoRAs that change a model.
    func loras(for role: ModelRole) -> [RequestedLoRA] {
        switch role {
        case .transformer: loras.filter { $0.expert != .lowNoise }
        case .lowNoiseTransformer: loras.filter { $0.expert != .highNoise }
        default: []
        }
    }
}

extension Tensor {
    /// Whether every element of a host tensor is a finite number.
    var isFinite: Bool {
        // The exponent is all ones in what is not finite.
        switch dtype {
        case .f32: !contains(UInt32.self, exponent: 0x7F80_0000)
        case .bf16: !contains(UInt16.self, exponent: 0x7F80)
        case .f16: !contains(UInt16.self, exponent: 0x7C00)
        case .f8e4m3, .f8e5m2: true
        default: floats().allSatisfy(\.isFinite)
        }
    }

    /// Whether all bits of `exponent` are set in some element; in runs that the compiler turns into vectors.
    private func contains<Word: FixedWidthInteger & BitwiseCopyable>(
        _ type: Word.Type, exponent: Word
    ) -> Bool {
        withElements(Word.self) { x in
            var start = 0
            while start < x.count {
                let end = min(start + 8192, x.count)
                var found: Word = 0
                for index in start..<end { found |= x[index] & exponent == exponent ? 1 : 0 }
                if found != 0 { return true }
                start = end
            }
            return false
        }
    }
}
