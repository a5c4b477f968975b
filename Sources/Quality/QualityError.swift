/// Why quality cannot be measured.

/// Captions or a classifier that cannot be used.
public enum QualityError: Error, Sendable, Hashable {
    /// A file that is not a list of captions.
    case captions(path: String, reason: String)
    /// Weights that do not fit the classifier or the videos.
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
