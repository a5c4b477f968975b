/// A request that was accepted, from the queue to its video.

import Ground
public import Runs

/// One job as it is on the disk.
public struct Job: Sendable, Hashable {
    public enum Status: String, Sendable, Hashable, Codable, CaseIterable {
        case queued
        case inProgress = "in_progress"
        case completed, failed, cancelled

        public var isOver: Bool { self != .queued && self != .inProgress }
    }

    /// What was asked for.
    public struct Order: Sendable, Hashable, Codable {
        /// By the name under which it is served.
        public var model: String
        /// LoRAs are named as clients name them, and its picture is the job's own file.
        public var request: Request
        public var crf: Int?
        /// Whether there is a picture in the folder of inputs.
        public var hasPicture: Bool
        /// As the client said, not read here.
        public var user: String?

        public init(
            model: String, request: Request, crf: Int? = nil, hasPicture: Bool = false,
            user: String? = nil
        ) {
            self.model = model
            self.request = request
            self.crf = crf
            self.hasPicture = hasPicture
            self.user = user
        }
    }

    /// Why there is no video.
    public struct Failure: Sendable, Hashable, Codable {
        public var code, message: String

        public init(code: String, message: String) {
            self.code = code
            self.message = message
        }
    }

    public let id: String
    /// Rises from job to job: the order in which they were accepted.
    public internal(set) var number: Int
    public var order: Order
    public internal(set) var status: Status
    /// In seconds since 1970.
    public let created: Double
    public internal(set) var started: Double?
    public internal(set) var completed: Double?
    /// When its video goes.
    public internal(set) var expires: Double?
    /// Its arithmetic, in 10^12 operations: what of equal requests is equal.
    public var cost: Double
    /// How often it was begun.
    public internal(set) var attempts: Int
    public internal(set) var failure: Failure?
    public internal(set) var report: RunReport?
    /// Of the video.
    public internal(set) var fileBytes: Int?
    public let remixOf: String?

    public init(
        id: String = Job.newID(), order: Order, created: Double, cost: Double,
        remixOf: String? = nil
    ) {
        self.id = id
        number = 0
        self.order = order
        status = .queued
        self.created = created
        self.cost = cost
        attempts = 0
        self.remixOf = remixOf
    }

    /// `video_` and 32 hexadecimal digits that nobody can guess.
    public static func newID() -> String {
        var generator = SystemRandomNumberGenerator()
        let digits = (0..<2).map { _ in padded(generator.next() as UInt64, 16, radix: 16) }
        return "video_" + digits.joined()
    }

    /// Whether a text has the form of an id: no other ever names a file.
    public static func isID(_ text: String) -> Bool {
        let digits = text.utf8.dropFirst("video_".utf8.count)
        return text.hasPrefix("video_") && digits.count == 32
            && digits.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x66).contains($0) }
    }
}
