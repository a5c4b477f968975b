/// A published model that is planned before it is downloaded.

public import Checkpoints
public import Families
import Models
import Tensors

/// The files that are there, and for those that are not what the published ones would say in their headers. It can be
/// planned and not run: there are no numbers.
public struct PlannedModel: ModelSource, Sendable {
    public let models: ModelSet
    public let missing: [ModelFile]
    private let entry: Catalog.Entry

    /// nil where nothing is missing, or the model is none whose sizes are known.
    public init?(_ models: ModelSet, needing files: [ModelFile], in catalog: Catalog) {
        let missing = files.filter { file in models[file].map { !exists($0) } ?? false }
        guard !missing.isEmpty, let entry = catalog.entry(named: models.name),
            case .named = entry.files
        else { return nil }
        self.models = models
        self.missing = missing
        self.entry = entry
    }

    public var family: Family { models.family }
    public var experts: [ModelPart] { models.experts }
    public var tokenizer: String { models.tokenizer }
    public func path(_ part: ModelPart) -> String { models.path(part) }

    public func file(_ part: ModelPart) throws -> OpenedModel {
        guard
            ModelSet.files(for: [part]).contains(where: { $0 != .tokenizer && missing.contains($0) }
            )
        else { return try models.file(part) }
        let model = entry.outline(part)
        return OpenedModel(checkpoint: Outline(model, numbers: .f32), model: model)
    }

    /// Bytes of a published file: one a number of quantised layers, two of text encoders, four of autoencoders.
    public func byteCount(_ file: ModelFile) -> Int {
        func numbers(_ part: ModelPart) -> Int {
            let outline = Outline(entry.outline(part), numbers: .f32)
            return outline.names.reduce(0) { $0 + (outline.info($1)?.byteCount ?? 0) / 4 }
        }
        switch file {
        case .transformer: return numbers(.transformer)
        case .lowNoiseTransformer: return numbers(.lowNoiseTransformer)
        case .textEncoder: return 2 * numbers(.textEncoder)
        case .tokenizer: return 5 << 20
        case .vae: return 4 * numbers(.decoder)
        }
    }
}
