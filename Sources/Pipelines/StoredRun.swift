/// What a video file says about its making, enough to make it again.

import FoundationEssentials

/// A request and the models it was for, as kept in a video's metadata.
public struct StoredRun: Codable, Sendable, Equatable {
    /// "turbodiffusion 0.1.0"
    public var program: String
    public var request: VideoRequest
    public var models: ModelSet

    public init(program: String, request: VideoRequest, models: ModelSet) {
        self.program = program
        self.request = request
        self.models = models
    }

    /// One line of JSON.
    public var json: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(self) else { return "{}" }
        return String(decoding: data, as: UTF8.self)
    }

    /// - Throws: `RequestError` where the text is not one of this program's.
    public init(json: String, path: String) throws(RequestError) {
        do {
            self = try JSONDecoder().decode(StoredRun.self, from: Data(json.utf8))
        } catch {
            throw RequestError(
                "\(path) was not made by this program, or by another version: its metadata holds no request"
            )
        }
    }
}
