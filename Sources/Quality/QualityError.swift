/// Why quality cannot be measured.

public enum QualityError: Error, Sendable, Hashable {
    /// A list of captions that is none.
    case captions(path: String, reason: String)
    /// Weights of a classifier that do not do.
    case classifier(path: String, reason: String)
}

extension QualityError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .captions(let path, let reason): "\(path) is not a list of captions: \(reason)"
        case .classifier(let path, let reason): "\(path): \(reason)"
        }
    }
}
