/// The models on a device: opened when a run needs them, and shared by runs that need the same ones.

import Checkpoints
public import Families
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

/// Models, by everything that they depend on. Lives on the thread of its device.
///
/// The pool keeps models for the next run. A run keeps its own models alive, whatever the pool does.
final class ModelPool {
    private struct Entry {
        var model: LoadedModel
        /// Of its weights, as a plan counts them; 0 where no plan was made.
        var byteCount: Int
        /// Of a transformer: under which limit of resident weights it was loaded; nil: all stay.
        var residentWeights: Int?
        /// Time of the last use.
        var turn: Int

        /// Whether it is as a run wants it: with no more weights that stay than `limit`, or with all of them where there
        /// is no limit.
        func fits(_ limit: Int?) -> Bool {
            guard case .transformer = model else { return true }
            guard let limit, let residentWeights else { return limit == residentWeights }
            return residentWeights <= limit
        }
    }
    private var entries: [ModelKey: Entry] = [:]
    private var turn = 0

    func model(_ key: ModelKey) -> LoadedModel? {
        guard let model = entries[key]?.model else { return nil }
        turn += 1
        entries[key]?.turn = turn
        return model
    }

    func keep(_ model: LoadedModel, as key: ModelKey, residency: Residency?) {
        turn += 1
        entries[key] = Entry(
            model: model, byteCount: residency?.weightBytes[key.part] ?? 0,
            residentWeights: residency?.residentWeights, turn: turn)
    }

    func release(_ key: ModelKey) { entries[key] = nil }
    func releaseAll() { entries = [:] }

    /// Lets go of the models of a file.
    func release(path: String) { entries = entries.filter { $0.key.path != path } }

    /// Drops all models except those with the given keys.
    func release(allBut keys: Set<ModelKey>) { entries = entries.filter { keys.contains($0.key) } }

    /// Makes room for a run that will use `keys`: what does not fit it leaves, then what was used least recently.
    func makeRoom(for keys: Set<ModelKey>, within residency: Residency) {
        let limit = residency.residentWeights
        // Where weights only visit the device, nothing but the run's own models stays.
        entries = entries.filter { key, entry in
            keys.contains(key) ? entry.fits(limit) : limit == nil
        }
        var free = residency.limit - residency.peakBytes
        let others = entries.filter { !keys.contains($0.key) }
        for (key, entry) in others.sorted(by: { $0.value.turn > $1.value.turn }) {
            free -= entry.byteCount
            if free < 0 { entries[key] = nil }
        }
    }

    var keys: Set<ModelKey> { Set(entries.keys) }

    func holds(_ part: ModelPart) -> Bool { entries.keys.contains { $0.part == part } }

    /// The models that are there, the one that was used last first.
    var list: [ResidentModel] {
        entries.sorted { $0.value.turn > $1.value.turn }.map {
            ResidentModel(part: $0.key.part, path: $0.key.path, byteCount: $0.value.byteCount)
        }
    }
}

/// A model that an engine keeps on its device.
public struct ResidentModel: Sendable, Hashable, Codable {
    public let part: ModelPart
    /// Its file.
    public let path: String
    /// Of its weights.
    public let byteCount: Int
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

    /// Loads a model from its checkpoint onto `device`.
    /// - Parameter isPlanned: the device does not read numbers, so none have to be computed.
    func open(
        _ part: ModelPart, _ checkpoint: any Checkpoint, sage: SageArchitecture,
        on device: any Backend, isPlanned: Bool
    ) throws -> LoadedModel {
        let arithmetic = request.arithmetic
        let source = part.isTransformer ? try adapted(checkpoint, part).checkpoint : checkpoint
        // The members of a group meet when a deferred weight comes, and only the first has a text encoder.
        let isDeferred =
            part.isTransformer || part == .textEncoder && device.membership.isAlone
        let weights = Weights(
            isPlanned ? Outline(of: source) : source, on: device,
            activations: arithmetic.precision.dtype,
            linearFormat: part.isTransformer ? arithmetic.linears.format : .plain,
            in: WeightSet(isDeferred: isDeferred && options.defersWeights))
        let model: LoadedModel =
            switch part {
            case .textEncoder: .textEncoder(try UMT5(weights))
            case .imageEncoder:
                .imageEncoder(try WanVAE.Encoder(weights, statistics: family.statistics))
            case .decoder: .decoder(try WanVAE.Decoder(weights, statistics: family.statistics))
            case .transformer, .lowNoiseTransformer:
                .transformer(
                    try WanTransformer(
                        weights, arithmetic.transformerOptions(sage: sage, family: family)))
            }
        // Its notes repeat those of `fileNotices`.
        _ = try weights.finish()
        return model
    }

    /// The transformer's checkpoint with the LoRAs of the request, each merged into a matrix when that is loaded.
    /// - Throws: if a LoRA belongs to another model or changes nothing. This is known before any weight is read.
    private func adapted(_ checkpoint: any Checkpoint, _ part: ModelPart) throws
        -> AdaptedCheckpoint
    {
        try Checkpoints.adapted(
            checkpoint,
            by: try request.loras(for: part).map { try LoRA(path: $0.path, strength: $0.strength) })
    }

    /// What the user should know about the files that the run loads. Reads only headers.
    package func fileNotices() throws -> [Notice] {
        var told: Set<String> = []
        return try parts.filter { told.insert(models.path($0)).inserted }.flatMap { part in
            let file = try models.file(part)
            return file.notes.map { Notice.checkpoint(part: part, note: $0) }
                + (file.unused.isEmpty ? [] : [.unusedTensors(part: part, names: file.unused)])
        }
    }

    /// What the LoRAs of the request will change. Reads only headers.
    /// - Throws: see `adapted`; also if a LoRA is for one expert and the model has only one transformer.
    package func loraNotices() throws -> [Notice] {
        if request.loras.isEmpty { return [] }
        if models.experts.count == 1, let lora = request.loras.first(where: { $0.expert != nil }) {
            throw RequestError.conflict(
                .loras, with: "a model with one transformer",
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
                + result.notes.map { .checkpoint(part: part, note: $0) }
        }
    }
}

// MARK: - Damaged files

extension ModelSource {
    /// The name of the first tensor of a part that contains a NaN or an infinity; nil also if the file cannot be read
    /// again.
    func firstNonFinite(_ part: ModelPart) -> String? {
        (try? checkpoint(part)).flatMap { nonFinite(in: $0, elementLimit: .max) }
    }
}

/// The name of the first tensor of at most `elementLimit` elements that contains a NaN or an infinity.
func nonFinite(in checkpoint: any Checkpoint, elementLimit: Int) -> String? {
    checkpoint.names.first { name in
        guard let info = checkpoint.info(name), info.dtype.isFloatingPoint,
            info.shape.reduce(1, *) <= elementLimit, let tensor = try? checkpoint.tensor(name),
            tensor.isOnHost
        else { return false }
        return !tensor.allFinite
    }
}
