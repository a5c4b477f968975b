/// What a run has opened of its models.

public import Checkpoints
import Synchronization

/// Keeps the files open that it was asked for, as long as it exists: plan, checks and loading then share one reading of
/// each header, and runs that exist at the same time share it too (`openModel`).
public final class OpenedModels: ModelSource, Sendable {
    private let source: any ModelSource & Sendable
    private let opened = Mutex<[ModelPart: OpenedModel]>([:])

    public init(_ source: any ModelSource & Sendable) { self.source = source }

    public var family: Family { source.family }
    public var experts: [ModelPart] { source.experts }
    public var tokenizer: String { source.tokenizer }
    public func path(_ part: ModelPart) -> String { source.path(part) }

    public func file(_ part: ModelPart) throws -> OpenedModel {
        // The source is asked each time: it knows whether the file is still the one that was opened.
        let model = try source.file(part)
        opened.withLock { $0[part] = model }
        return model
    }
}
