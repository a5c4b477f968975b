/// Options and messages shared by the commands that write checkpoints.

import ArgumentParser
import Checkpoints
import Ground
import Tensors
import Terminal

/// How a checkpoint is written: whether it may replace a file, and what is printed meanwhile.
struct CheckpointOutput: ParsableArguments {
    @Flag(help: "Replace the output file if it exists.")
    var force = false

    @Flag(help: "Show no progress.")
    var quiet = false

    /// Refuses a path whose ending names no format, before any work is done.
    func check(_ path: String) throws(CheckpointError) { _ = try WritableFormat(forPath: path) }

    /// Opens what a result is made of, and notes what is not taken over from it.
    /// - Parameter blocks: the type that a GGUF's blocks are decoded to.
    func source(_ path: String, blocksAs blocks: DType = .bf16) throws(CheckpointError)
        -> any Checkpoint
    {
        let file = try openCheckpoint(path, blocksAs: blocks)
        for note in file.notes { self.note(note) }
        let model = try withoutCritic(file)
        let critic = file.names.count - model.names.count
        if critic > 0 {
            note("\(path): the \(critic) tensors of a critic (net_fake_score) are left out")
        }
        return model
    }

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

    /// Prints a title and up to eight names.
    func list(_ title: String, _ names: [String]) {
        guard !names.isEmpty else { return }
        let rest = names.count > 8 ? " and \(names.count - 8) more" : ""
        note("\(title): \(names.prefix(8).joined(separator: ", "))\(rest)")
    }
}
