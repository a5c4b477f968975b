/// One file from a hub into a folder: in parts, resumed, tried again, checked.

import Glibc
import Ground
import Synchronization
import SystemPackage

extension ModelFolder {
    /// Fetches a file, unless it is here. Blocks the calling thread.
    /// - Parameters:
    ///   - note: given lines for people.
    ///   - progress: called some ten times a second, on the calling thread.
    ///   - isStopped: asked all the time, from any thread; what was fetched until then is kept.
    public func fetch(
        _ file: HubFile, from hub: Hub, _ options: DownloadOptions = DownloadOptions(),
        note: (String) -> Void = { _ in }, progress: (DownloadProgress) -> Void = { _ in },
        isStopped: @escaping @Sendable () -> Bool = { false }
    ) throws(DownloadError) -> DownloadReport {
        let place = path(of: file)
        func here() -> DownloadReport? {
            guard has(file) else { return nil }
            return DownloadReport(
                size: place.fileSize ?? 0, sha256: origin(of: file)?.sha256, resumed: 0,
                received: 0, retries: 0, wasHere: true)
        }
        if let report = here() { return report }
        do {
            try place.checkName()
            try place.folder.makeFolders()
        } catch { throw DownloadError(error) }
        let part = try PartFile(
            for: place, wait: { note("another process is fetching \(file): waiting for it") },
            isStopped: isStopped)
        if let report = here() {
            part.discard()
            return report
        }
        let client = try HubClient(hub, options, isStopped: isStopped)
        var identity = try client.identify(file)
        var report = DownloadReport(
            size: identity.size, sha256: identity.sha256, resumed: 0, received: 0, retries: 0,
            wasHere: false)
        var (changes, isFirst, isDamaged, inParts) = (0, true, false, true)
        /// The file is another one now: what was fetched of the old one does not count.
        func beginAgain(_ other: HubIdentity) throws(DownloadError) {
            changes += 1
            guard changes <= 3 else {
                throw DownloadError(
                    .changed, "\(file) changes while it is fetched: try again later")
            }
            note("\(file) has changed meanwhile: beginning again")
            identity = other
        }
        while true {
            let known = try part.begin(identity, afresh: isDamaged)
            if isFirst { report.resumed = known.count }
            isFirst = false
            let needed = identity.size - part.bytesOnDisk
            if let free = place.folder.freeBytes, needed > free {
                throw DownloadError(.noRoom(place, needed: needed, free: free))
            }
            let transfer = Transfer(
                file, identity, hub, options, part, known, inParts: inParts, isStopped: isStopped)
            let end = transfer.run(progress: progress)
            report.received += end.received
            report.retries += end.retries
            switch end.result {
            case .failed(let error): throw error
            case .changed(let other):
                try beginAgain(other)
                continue
            case .noParts:
                note("the server gives no parts of \(file): fetching it in one piece")
                inParts = false
                continue
            case .complete(let hash):
                guard let expected = identity.sha256 else {
                    // A server that does not heed conditions may have mixed two versions.
                    let now = try client.identify(file)
                    if now == identity { break }
                    try beginAgain(now)
                    continue
                }
                if hash == expected { break }
                let now = try client.identify(file)
                if now.size == identity.size, now.sha256 == hash {
                    // It had changed before the first byte came: this is the new one.
                    identity = now
                    break
                }
                guard !isDamaged else {
                    part.discard()
                    throw DownloadError(
                        .damaged,
                        "\(file) came damaged twice: SHA-256 \(expected) was promised, \(hash ?? "none") came"
                    )
                }
                isDamaged = true
                note("\(file) came damaged: fetching it again")
                identity = now
                continue
            }
            break
        }
        (report.size, report.sha256) = (identity.size, identity.sha256)
        let (final, address) = (identity, hub.address(file))
        try part.finish(size: final.size) { changed throws(DownloadError) in
            try self.note(FileOrigin(address: address, final, changed: changed), of: file)
        }
        return report
    }
}
