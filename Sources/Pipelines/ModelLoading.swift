/// Opening the models of a request on a device.

import Checkpoints
import Diffusion
import Models
import Tensors
import Tokenizers

extension Precision {
    var dtype: DType { self == .f32 ? .f32 : .bf16 }
}

extension LinearChoice {
    var format: ActivationFormat {
        switch self {
        case .stored: .plain
        case .int8: .int8Blocks
        case .fp8: .fp8Rows
        }
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

    var statistics: LatentStatistics {
        guard let mean = defaults.latentMean, let std = defaults.latentStd else { return .wan }
        return LatentStatistics(mean: mean, std: std)
    }

    /// Opens the checkpoint of a model and checks that it is one of that kind.
    func checkpoint(_ role: ModelRole) throws -> any Checkpoint {
        try inOriginalNames(try openCheckpoint(path(role)))
    }

    func weights(
        _ role: ModelRole, of checkpoint: any Checkpoint, for request: VideoRequest,
        on device: any Backend
    ) -> Weights {
        let isTransformer = role == .transformer || role == .lowNoiseTransformer
        return Weights(
            checkpoint, on: device, activations: request.precision.dtype,
            linearFormat: isTransformer ? request.linears.format : .plain)
    }

    /// What the transformer is asked to do.
    /// - Parameter sage: whose 8-bit arithmetic SageSLA uses.
    func transformerOptions(_ request: VideoRequest, sage: SageArchitecture)
        -> WanTransformerOptions
    {
        let attention: SelfAttentionKind =
            switch request.attention {
            case .original: .original
            case .sla:
                .sparse(
                    SparseAttention(
                        topK: request.topK,
                        arithmetic: request.precision == .f32 ? .exact : .bf16))
            case .sagesla:
                .sparse(SparseAttention(topK: request.topK, arithmetic: .sage(sage)))
            }
        return WanTransformerOptions(
            attention: attention, norms: request.referenceNorms ? .reference : .exact,
            heads: defaults.heads)
    }

    /// The transformer of a role, on `device`.
    func makeTransformer(
        _ role: ModelRole, from checkpoint: any Checkpoint, for request: VideoRequest,
        sage: SageArchitecture, on device: any Backend
    ) throws -> WanTransformer {
        let options = transformerOptions(request, sage: sage)
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
        guard let checkpoint = try? checkpoint(role) else { return nil }
        for name in checkpoint.names {
            guard let tensor = try? checkpoint.tensor(name), tensor.dtype.isFloatingPoint else {
                continue
            }
            defer { checkpoint.forget(name) }
            if !tensor.isFinite { return name }
        }
        return nil
    }
}

extension Tensor {
    /// Whether every element of a host tensor is a finite number.
    var isFinite: Bool {
        switch dtype {
        case .f32:
            // The exponent is all ones in what is not finite.
            withElements(UInt32.self) { x in
                !x.contains { $0 & 0x7F80_0000 == 0x7F80_0000 }
            }
        case .bf16: withElements(UInt16.self) { x in !x.contains { $0 & 0x7F80 == 0x7F80 } }
        case .f16: withElements(UInt16.self) { x in !x.contains { $0 & 0x7C00 == 0x7C00 } }
        default: floats().allSatisfy(\.isFinite)
        }
    }
}
