/// How a service is set up.

public import Devices
public import Sessions

/// What happens to what runs when the service is asked to stop.
public enum Drain: String, Sendable, CaseIterable {
    /// It is finished; what waits stays in the queue for the next start.
    case finish
    /// It goes back into the queue.
    case requeue
}

public struct ServiceOptions: Sendable {
    public var host = "127.0.0.1"
    public var port = 8000
    /// The folder of videos and of the queue.
    public var output = "output/service"
    /// At least one; the first is the default.
    public var models: [ServedModel] = []
    /// A folder whose files may be named by clients.
    public var loras: String?
    /// nil: nobody needs one.
    public var keys: APIKeys?
    /// Names beside loopback under which the service may be asked without a key, in lower case.
    public var allowedHosts: Set<String> = []
    /// Origins of other pages that may ask: `https://example.org`.
    public var allowedOrigins: Set<String> = []
    /// One session each.
    public var machines = [Machines()]
    public var session = SessionOptions()
    public var drain = Drain.finish

    /// Bytes of a request's body.
    public var bodyLimit = 32 << 20
    /// Requests that wait.
    public var queueLimit = 1000
    public var frameLimit = 1025
    /// Of a frame.
    public var pixelLimit = 1 << 22
    /// Of one run, loading included.
    public var runSeconds = 3600.0
    /// How long a video is kept.
    public var expireSeconds = 7.0 * 24 * 3600
    /// Bytes of all videos together.
    public var diskLimit = 20 << 30
    /// Told what the operator should know.
    public var log: @Sendable (String) -> Void = { _ in }

    public init() {}
}

/// A service that cannot begin.
public struct ServiceError: Error, Sendable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}
