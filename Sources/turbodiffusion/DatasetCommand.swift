/// `turbodiffusion dataset`: data sets for training, as shards of latents and embedded prompts.

import ArgumentParser
import Checkpoints
import Ground
import SystemPackage
import Tensors
import Terminal
import Training

struct DatasetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dataset",
        abstract: "Make, look at and check data sets for training.",
        subcommands: [
            DatasetMakeCommand.self, DatasetEncodeCommand.self, DatasetShowCommand.self,
            DatasetCheckCommand.self,
            DatasetMergeCommand.self,
        ])
}

/// Shards on the command line.
struct ShardArguments: ParsableArguments {
    @Argument(help: "Shards: tar files.", completion: .file(extensions: ["tar"]))
    var shards: [String]

    func open() throws -> TarShards { try TarShards(shards) }
}

struct DatasetShowCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "List the samples of shards.",
        discussion: """
            Example:
              turbodiffusion dataset show data/shard_*.tar
            """)

    @OptionGroup var arguments: ShardArguments

    @Option(help: "At most so many samples.")
    var limit = 20

    func run() async throws {
        let shards = try arguments.open()
        for index in shards.samples.indices.prefix(max(0, limit)) {
            let sample = try shards.read(index)
            Output.line(
                "\(shards.samples[index].key.printable)  latents \(sample.latents)  "
                    + "text \(Text(sample.text).count) of \(sample.text.shape[0]) rows  "
                    + sample.prompt.printable)
        }
        Output.line("\(shards.samples.count) samples in \(shards.paths.count) shards")
    }
}

struct DatasetCheckCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Read every sample: whole, finite, all of one size.",
        discussion: """
            Example:
              turbodiffusion dataset check data/shard_*.tar
            """)

    @OptionGroup var arguments: ShardArguments

    func run() async throws {
        let shards = try arguments.open()
        var faults = 0
        var first: (latents: [Int], width: Int)?
        for index in shards.samples.indices {
            let key = shards.samples[index].key.printable
            func fault(_ words: String) {
                faults += 1
                Output.line("\(key): \(words)")
            }
            do {
                let sample = try shards.read(index)
                // A text may have any number of rows: it is padded before it is used.
                let sizes = (sample.latents.shape.dimensions, sample.text.shape[1])
                let expected = first ?? sizes
                first = expected
                if sizes != expected {
                    fault(
                        "latents of \(sizes.0) and a text of width \(sizes.1), the first sample has "
                            + "\(expected.latents) and \(expected.width)")
                }
                if !sample.latents.floats().allSatisfy(\.isFinite)
                    || !sample.text.floats().allSatisfy(\.isFinite)
                {
                    fault("numbers that are not finite")
                }
            } catch { fault("\(error)") }
        }
        Output.line("\(shards.samples.count) samples, \(faults) faults")
        if faults > 0 { throw ExitCode.failure }
    }
}

struct DatasetMergeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge", abstract: "Write the samples of shards into one, numbered anew.",
        discussion: """
            Example:
              turbodiffusion dataset merge data/shard_*.tar --output data/all.tar
            """)

    @OptionGroup var arguments: ShardArguments

    @Option(help: "The new shard.", completion: .file(extensions: ["tar"]))
    var output: String

    @Flag(help: "Replace the output file if it exists.")
    var force = false

    func run() async throws {
        let shards = try arguments.open()
        let writer = try newShard(output, overwrite: force)
        for index in shards.samples.indices { try writer.add(index, index, of: shards) }
        try writer.finish()
        Output.note("\(output.printable): \(writer.count) samples")
    }
}

/// A shard that is begun under its name.
func newShard(_ path: String, overwrite: Bool) throws -> ShardWriter {
    do { return try ShardWriter(FilePath(path), overwrite: overwrite) } catch {
        throw UserError(error, takesPicture: false)
    }
}
