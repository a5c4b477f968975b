/// A session as what makes an interactive terminal's videos.

public import Catalog
import Delivery
public import Families
import Media
import Runs
public import Sessions

/// Makes videos in a session.
public struct SessionMaker: VideoMaker {
    private let session: Session
    private let catalog: Catalog
    private let describe: @Sendable (any Error) -> String

    /// - Parameter describe: the line for people of an error.
    public init(
        _ session: Session, catalog: Catalog, describe: @escaping @Sendable (any Error) -> String
    ) {
        self.session = session
        self.catalog = catalog
        self.describe = describe
    }

    public func models(named name: String) throws -> ModelSet {
        let models = try catalog.open(ModelChoice(name))
        try models.checkPresence(of: ModelFile.allCases)
        return models
    }

    public func make(_ order: Order, events: @escaping @Sendable (SessionEvent) -> Void)
        async throws -> MadeVideo
    {
        var request = order.request
        if order.adaptsToImage, let image = request.image {
            let picture = try await readImage(path: image)
            let size = try Resolution(width: request.width, height: request.height).adapted(
                toImageWidth: picture.width, height: picture.height)
            (request.width, request.height) = (size.width, size.height)
        }
        let prepared = try await session.prepare(request, order.models)
        for notice in prepared.plan.notices { events(.run(.notice(notice))) }
        let began = ContinuousClock.now
        let made = try await session.make(
            prepared, to: order.path, crf: order.crf, existing: .number,
            makesFolder: order.path.hasPrefix("output/"), events: events)
        return MadeVideo(
            files: made.files, seconds: (.now - began) / .seconds(1), request: request)
    }

    public func load(_ path: String) async throws -> LoadedRun {
        guard let text = try await readMetadata(path: path) else {
            throw StoredRunError.noRequest(path: path)
        }
        let stored = try StoredRun(json: text, path: path)
        let models = try stored.models(changedBy: ModelChoice(), in: catalog)
        return LoadedRun(request: stored.request, models: models, crf: stored.crf)
    }

    public func message(of error: any Error) -> String { describe(error) }
}
