/// What the commands that write checkpoints share.

import ArgumentParser
import Checkpoints
import Ground
import Terminal

/// Where a checkpoint goes, and whether it may replace one.
struct CheckpointOutput: ParsableArguments {
    @Flag(help: "Replace the output file if it exists.")
    var force = false

    @Flag(help: "Show no progress.")
    var quiet = false

    /// Refuses before any work what the writing would refuse after it.
    func check(_ path: String) throws(CheckpointError) { _ = try WritableFormat(forPath: path) }

    /// Writes `checkpoint` to `path`; the ending of `path` says in which format.
    func write(_ checkpoint: any Checkpoint, to path: String) throws {
        let progress = FileProgress("writing", quiet: quiet)
        defer { progress.end() }
        try writeCheckpoint(checkpoint, to: path, overwrite: force, progress: progress.show)
    }

    /// One line for people, on stderr.
    func note(_ text: String) {
        if !quiet { Output.note(text.printable) }
    }

    /// Names after a title, at most a few.
    func list(_ title: String, _ names: [String]) {
        guard !names.isEmpty else { return }
        let rest = names.count > 8 ? " and \(names.count - 8) more" : ""
        note("\(title): \(names.prefix(8).joined(separator: ", "))\(rest)")
    }
}
