/// What is asked of a session, and what carries it out.

public import Families
public import Runs
public import Sessions

/// One video to make.
public struct Order: Sendable, Hashable {
    public var request: Request
    public var models: ModelSet
    /// Where it is written, numbered where a file of the name exists.
    public var path: String
    public var crf: Int?
    /// Whether the video takes the picture's shape.
    public var adaptsToImage = false
}

/// A video that is there.
public struct MadeVideo: Sendable, Hashable {
    public var files: [String]
    public var seconds: Double
    /// As it was made: with the size that it took from a picture.
    public var request: Request

    public init(files: [String], seconds: Double, request: Request) {
        self.files = files
        self.seconds = seconds
        self.request = request
    }
}

/// What a file says of a video's making.
public struct LoadedRun: Sendable, Hashable {
    public var request: Request
    public var models: ModelSet
    public var crf: Int?

    public init(request: Request, models: ModelSet, crf: Int?) {
        self.request = request
        self.models = models
        self.crf = crf
    }
}

/// Makes videos, one after the other; its models stay loaded.
public protocol VideoMaker: Sendable {
    /// The files of a model by its name.
    func models(named name: String) throws -> ModelSet
    /// Ends with `CancellationError` when its task is cancelled.
    func make(_ order: Order, events: @escaping @Sendable (SessionEvent) -> Void) async throws
        -> MadeVideo
    /// What a video that this program made says of its making.
    func load(_ path: String) async throws -> LoadedRun
    /// One line for people.
    func message(of error: any Error) -> String
}
