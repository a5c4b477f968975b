/// The models on a device: opened when a run needs them, shared by runs that ask for the same.

import Checkpoints
import Families
import Models
import Tensors

/// A model that a run has opened.
enum LoadedModel {
    case textEncoder(UMT5)
    case imageEncoder(WanVAE.Encoder)
    case transformer(WanTransformer)
    case decoder(WanVAE.Decoder)
}

/// Everything that a model on a device depends on.
struct ModelKey: Hashable {
    let part: ModelPart
    let path: String
    let family: Family
    let precision: Precision
    /// Transformers only.
    var arithmetic: Arithmetic?
    var loras: [RequestedLoRA] = []
}

/// Models by what they were made for. Lives on the thread of its device.
///
/// A run that holds a model keeps it, whatever happens here; the pool holds those that stay for the next run.
final class ModelPool {
    private var models: [ModelKey: LoadedModel] = [:]

    func model(_ key: ModelKey) -> LoadedModel? { models[key] }
    func keep(_ model: LoadedModel, as key: ModelKey) { models[key] = model }
    func release(_ key: ModelKey) { models[key] = nil }

    /// Lets go of all models but those that a run will use.
    func release(allBut keys: Set<ModelKey>) { models = models.filter { keys.contains($0.key) } }

    func holds(_ part: ModelPart) -> Bool { models.keys.contains { $0.part == part } }
}

// MARK: - Opening

extension Run {
    func key(_ part: ModelPart) -> ModelKey {
        let isTransformer = part.isTransformer
        return ModelKey(
            part: part, path: models.path(part), family: family,
            precision: request.arithmetic.precision,
            arithmetic: isTransformer ? request.arithmetic : nil,
            loras: request.loras(for: part))
    }

    /// Makes a model of its checkpoint on `device`.
    func open(
        _ part: ModelPart, _ checkpoint: any Checkpoint, sage: SageArchitecture,
        on device: any Backend
    ) throws -> LoadedModel {
        let arithmetic = request.arithmetic
        let weights = Weights(
            part.isTransformer ? try adapted(checkpoint, part).checkpoint : checkpoint, on: device,
            activations: arithmetic.precision.dtype,
            linearFormat: part.isTransformer ? arithmetic.linears.format : .plain,
            in: WeightSet(isDeferred: part.isTransformer && options.defersWeights))
        switch part {
        case .textEncoder: return .textEncoder(try UMT5(weights))
        case .imageEncoder:
            return .imageEncoder(try WanVAE.Encoder(weights, statistics: family.statistics))
        case .decoder:
            return .decoder(try WanVAE.Decoder(weights, statistics: family.statistics))
        case .transformer, .lowNoiseTransformer:
            return .transformer(
                try WanTransformer(
                    weights, arithmetic.transformerOptions(sage: sage, family: family)))
        }
    }

    /// The transformer's checkpoint with the LoRAs of the request merged in, matrix by matrix as they are loaded.
    /// - Throws: where a LoRA is of another model or changes nothing. No weight has been read then.
    private func adapted(_ checkpoint: any Checkpoint, _ part: ModelPart) throws
        -> AdaptedCheckpoint
    {
        try Checkpoints.adapted(
            checkpoint,
            by: try request.loras(for: part).map { try LoRA(path: $0.path, strength: $0.strength) })
    }

    /// What the LoRAs of the request will do, told by the headers of the files.
    /// - Throws: see `adapted`; also where a LoRA is for an expert of a model that has none.
    package func loraNotices() throws -> [Notice] {
        if request.loras.isEmpty { return [] }
        if models.experts.count == 1, let lora = request.loras.first(where: { $0.expert != nil }) {
            throw RequestError.conflict(
                .loras, with: "a model of one transformer",
                advice: "\(lora.path) is for one of two experts; give it without an expert")
        }
        return try models.experts.flatMap { part -> [Notice] in
            let loras = request.loras(for: part)
            if loras.isEmpty { return [] }
            let result = try adapted(try models.checkpoint(part), part)
            let files = loras.map { "\($0.path) (\($0.strength))" }
            return [.loras(part: part, tensors: result.changed.count, files: files)]
                + (result.unmatched.isEmpty
                    ? [] : [.unmatchedKeys(part: part, names: result.unmatched)])
        }
    }
}

// MARK: - Damaged files

extension ModelSource {
    /// Name of the first tensor of a part that holds a number that is not finite; nil also where the file cannot be
    /// read again.
    func firstNonFinite(_ part: ModelPart) -> String? {
        (try? checkpoint(part)).flatMap { nonFinite(in: $0, elementLimit: .max) }
    }
}

/// Name of the first tensor of at most `elementLimit` elements that holds a number that is not finite.
func nonFinite(in checkpoint: any Checkpoint, elementLimit: Int) -> String? {
    checkpoint.names.first { name in
        guard let info = checkpoint.info(name), info.dtype.isFloatingPoint,
            info.shape.reduce(1, *) <= elementLimit, let tensor = try? checkpoint.tensor(name),
            tensor.isOnHost
        else { return false }
        return !tensor.allFinite
    }
}
