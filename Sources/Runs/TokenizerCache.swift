/// Tokenizers that were read, for the next run: reading one takes longer than a short prompt's text encoder.

import Ground
import Synchronization
import SystemPackage
import Tokenizers

/// The last few tokenizers by file. One whose file has changed is read again.
final class TokenizerCache: Sendable {
    static let shared = TokenizerCache()
    private static let capacity = 2

    private let entries = Mutex<[(stamp: FileStamp, tokenizer: Tokenizer)]>([])

    func tokenizer(path: String) throws -> Tokenizer {
        guard let stamp = FileStamp(path) else { return try Tokenizer(path: path) }
        if let known = entries.withLock({ $0.first { $0.stamp == stamp }?.tokenizer }) {
            return known
        }
        let tokenizer = try Tokenizer(path: path)
        entries.withLock { entries in
            entries.removeAll { $0.stamp.path == path }
            entries = [(stamp, tokenizer)] + entries.prefix(Self.capacity - 1)
        }
        return tokenizer
    }
}
