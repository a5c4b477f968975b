/// Text embeddings on disk, so that the text encoder need not come back for a prompt that was encoded before.

import Delivery
import Families
import FoundationEssentials
import Glibc
import Ground
import Runs
import SystemPackage

/// A folder of embeddings, each named by a hash of all that decides it: prompts, text encoder, tokenizer, arithmetic. An
/// entry is never wrong, only unused; those that were used least recently go when there are too many.
public struct EmbeddingCache: Sendable, Hashable {
    public var folder: String
    /// Bytes of all entries together.
    public var limit: Int

    public init(folder: String, limit: Int = 256 << 20) {
        self.folder = folder
        self.limit = limit
    }

    /// `$XDG_CACHE_HOME/turbodiffusion/embeddings`, or under `~/.cache`; nil where there is no home, and where others can
    /// change what is in it.
    public static var user: EmbeddingCache? {
        userCache("embeddings").map { EmbeddingCache(folder: $0) }
    }

    /// What there is, or is to be, of the texts of a run.
    func embedding(of run: Run, encoder: FileIdentity, tokenizer: FileIdentity) -> CachedEmbedding {
        let request = run.request
        var hash = SHA256()
        for identity in [encoder, tokenizer] {
            hash.update(framed: "\(identity.bytes) \(identity.fingerprint)")
        }
        hash.update(framed: request.arithmetic.precision.rawValue)
        hash.update(framed: "\(run.family.textLength)")
        hash.update(framed: request.prompt)
        if request.sampling.isGuided {
            hash.update(framed: request.negativePrompt ?? run.family.defaults.negativePrompt)
        }
        let path = "\(folder)/\(hash.finish()).safetensors"
        let isThere = access(path, R_OK) == 0
        if isThere {
            utimensat(AT_FDCWD, path, nil, 0)
        } else {
            try? FilePath(folder).makeFolders(mode: 0o700)
            trim()
        }
        return CachedEmbedding(path: access(folder, W_OK) == 0 ? path : nil, isRead: isThere)
    }

    /// Removes the entries that were used least recently, down to the limit.
    func trim() {
        let names = (try? FilePath(folder).fileNames()) ?? []
        var entries: [(path: String, used: Int, bytes: Int)] = names.compactMap { name in
            guard name.hasSuffix(".safetensors") else { return nil }
            let path = "\(folder)/\(name)"
            var status = stat()
            guard stat(path, &status) == 0 else { return nil }
            let used = status.st_mtim.tv_sec * 1_000_000 + status.st_mtim.tv_nsec / 1000
            return (path, used, Int(status.st_size))
        }
        var total = entries.reduce(0) { $0 + $1.bytes }
        entries.sort { $0.used < $1.used }
        for entry in entries where total > limit {
            unlink(entry.path)
            total -= entry.bytes
        }
    }
}

/// The embedding of one run: read where it is there, written where not.
struct CachedEmbedding {
    var path: String?
    var isRead = false

    /// The run with the embedding in place of its text encoder, or with the file that it is to write.
    func applied(to run: Run) -> Run {
        guard let path else { return run }
        var run = run
        if access(path, R_OK) == 0 {
            run.options.start.text = path
        } else {
            run.options.save.text = path
        }
        return run
    }

    func discard() { if let path { unlink(path) } }
}
