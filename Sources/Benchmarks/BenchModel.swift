/// The models that are measured: models of known sizes with random weights, or models in files.

public import Catalog
public import Checkpoints
public import Families
import Models
import Tensors

/// A model whose weights are random or read from files.
public struct BenchModel: ModelSource, Sendable {
    private enum Source {
        case random(Catalog.Entry)
        case files(ModelSet)
    }

    public let name: String
    public var family: Family
    private let source: Source

    /// A published model's shapes with random weights. All large models have the same default size of video, so that
    /// their figures can be compared.
    public init(random entry: Catalog.Entry) {
        name = entry.name
        family = entry.family
        if entry.resolution != nil {
            let defaults = Family.Defaults()
            (family.defaults.width, family.defaults.height) = (defaults.width, defaults.height)
        }
        source = .random(entry)
    }

    /// The model in files.
    public init(_ models: ModelSet) {
        name = models.name
        family = models.family
        source = .files(models)
    }

    public var isRandom: Bool {
        if case .random = source { true } else { false }
    }

    /// One transformer makes all steps, as another expert would take the same time.
    public var experts: [ModelPart] { [.transformer] }

    public var tokenizer: String {
        if case .files(let models) = source { models.tokenizer } else { "" }
    }

    public func path(_ part: ModelPart) -> String {
        if case .files(let models) = source { models.path(part) } else { name }
    }

    public func file(_ part: ModelPart) throws -> OpenedModel {
        switch source {
        case .files(let models): return try models.file(part)
        case .random(let entry):
            let model = entry.outline(part)
            return OpenedModel(
                checkpoint: UnmadeCheckpoint(Outline(model, numbers: .f32)), model: model)
        }
    }
}
