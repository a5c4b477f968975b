/// Errors as clients of the protocol expect them.

import Catalog
import Checkpoints
import Devices
import Families
import Jobs
import Media
import Runs
import Sessions

/// An answer that says why there is no other.
struct APIError: Error, Hashable {
    var status: Int
    var type: String
    var code: String
    var message: String
    /// The field that is wrong.
    var param: String?
    /// In seconds.
    var retryAfter: Int?

    var json: JSON {
        [
            "error": [
                "message": .string(message), "type": .string(type), "param": .text(param),
                "code": .string(code),
            ]
        ]
    }

    private init(
        _ status: Int, _ type: String, _ code: String, _ message: String, param: String? = nil,
        retryAfter: Int? = nil
    ) {
        (self.status, self.type, self.code, self.message) = (status, type, code, message)
        (self.param, self.retryAfter) = (param, retryAfter)
    }

    static func invalid(_ code: String = "invalid_value", _ message: String, param: String? = nil)
        -> APIError
    { APIError(400, "invalid_request_error", code, message, param: param) }

    static func value(_ param: String, _ found: String, expected: String) -> APIError {
        invalid(
            "invalid_value", "\(param) must be \(expected), not \(shortened(found))", param: param)
    }

    static let unauthorized = APIError(
        401, "authentication_error", "invalid_api_key",
        "this service needs one of its keys: Authorization: Bearer KEY")
    static func forbidden(_ code: String, _ message: String) -> APIError {
        APIError(403, "permission_error", code, message)
    }
    static func notFound(_ code: String, _ message: String, param: String? = nil) -> APIError {
        APIError(404, "not_found_error", code, message, param: param)
    }
    static func noVideo(_ id: String) -> APIError {
        notFound("video_not_found", "there is no video '\(shortened(id))'", param: "id")
    }
    static func notAllowed(_ method: String, _ path: String) -> APIError {
        APIError(
            405, "invalid_request_error", "method_not_allowed",
            "\(shortened(path)) does not take \(shortened(method))")
    }
    static func conflict(_ code: String, _ message: String) -> APIError {
        APIError(409, "conflict_error", code, message)
    }
    static func tooLarge(limit: Int) -> APIError {
        APIError(
            413, "invalid_request_error", "body_too_large",
            "the body of a request must have at most \(limit) bytes")
    }
    static func queueFull(limit: Int, retryAfter: Int) -> APIError {
        APIError(
            429, "rate_limit_error", "queue_full",
            "\(limit) requests are waiting already, which is as many as this service takes",
            retryAfter: retryAfter)
    }
    static func internalError(_ message: String) -> APIError {
        APIError(500, "server_error", "internal", message)
    }
    static func notImplemented(_ message: String) -> APIError {
        APIError(501, "not_implemented_error", "not_implemented", message)
    }
    static let stopping = APIError(
        503, "server_error", "stopping", "the service is stopping", retryAfter: 10)
    static let starting = APIError(
        503, "server_error", "starting", "the service is starting", retryAfter: 1)

    private static func shortened(_ text: String) -> String {
        text.count <= 80 ? text : text.prefix(77) + "…"
    }
}

// MARK: - What rooms throw

extension APIError {
    /// What was found before a run began.
    init(_ error: any Error) {
        switch error {
        case let error as APIError: self = error
        case let error as RequestError:
            let code =
                switch error {
                case .unusable: "invalid_value"
                case .conflict: "conflict"
                case .missing: "missing_field"
                }
            self = .invalid(code, error.message(naming: \.parameter), param: error.field.parameter)
        case let error as RunError:
            if case .memory = error {
                self = .invalid("invalid_value", "\(error)", param: "size")
            } else {
                self = .internalError("\(error)")
            }
        case let error as FittingError: self = .invalid("conflict", Self.hidingFolders("\(error)"))
        case let error as MediaError:
            self = .invalid(
                "invalid_value", Self.hidingFolders("\(error)"), param: "input_reference")
        default: self = .internalError(Self.hidingFolders("\(error)"))
        }
    }

    /// Paths of this machine are nothing that clients need to know: only the last name stays.
    static func hidingFolders(_ text: String) -> String {
        text.split(separator: " ", omittingEmptySubsequences: false).map { word in
            guard let slash = word.lastIndex(of: "/"), word.contains("/"),
                word.first == "/" || word.hasPrefix("./")
            else { return String(word) }
            return String(word[word.index(after: slash)...])
        }.joined(separator: " ")
    }
}

extension RequestError {
    fileprivate var field: Field {
        switch self {
        case .unusable(let field, _, _, _), .conflict(let field, _, _), .missing(let field, _):
            field
        }
    }
}

extension RequestError.Field {
    /// The field of the protocol that sets it.
    var parameter: String {
        switch self {
        case .prompt: "prompt"
        case .negativePrompt: "negative_prompt"
        case .image: "input_reference"
        case .width: "width"
        case .height: "height"
        case .frames: "num_frames"
        case .framesPerSecond: "fps"
        case .samples: "n"
        case .steps: "num_inference_steps"
        case .sigmaMax: "sigma_max"
        case .shift: "flow_shift"
        case .guidance: "guidance_scale"
        case .topK: "sla_topk"
        case .loras: "lora"
        case .boundary: "boundary_ratio"
        case .linears: "linears"
        case .textEmbedding, .conditioning, .latents: rawValue
        }
    }
}

extension Job.Failure {
    /// Why a run has ended without a video.
    init(_ error: any Error) {
        let code =
            switch GroupError.cause(of: error) {
            case RunError.notFinite: "not_finite"
            case RunError.memory: "out_of_memory"
            case is MemoryShortage: "out_of_memory"
            case is MediaError: "media"
            case is CheckpointError, is FittingError, is CatalogError, is RunError: "model"
            case let cause: isDeviceFailure(cause) ? "device" : "other"
            }
        self.init(code: code, message: APIError.hidingFolders("\(error)"))
    }
}
