/// What the shards of `dataset make` are made from, kept beside them: no folder mixes samples of two kinds.

import Catalog
import Delivery
import Families
import FoundationEssentials
import Ground
import Runs
import SystemPackage
import Terminal

struct DatasetSettings {
    static let fileName = "settings.json"

    /// By option, or by what a file is used for.
    private let values: [String: String]

    /// - Parameters:
    ///   - request: of the first sample.
    ///   - prompts: of all samples.
    init(
        _ request: Request, _ models: ModelSet, prompts: [String], shardSize: Int
    ) throws {
        var hash = SHA256()
        for prompt in prompts { hash.update("\(prompt)\n".utf8) }
        var values = [
            "--prompts": "\(prompts.count) prompts \(hash.finish())",
            "--shard-size": "\(shardSize)", "--num-steps": "\(request.sampling.steps)",
            "--guidance": "\(request.sampling.guidance)", "--num-frames": "\(request.frames)",
            "--seed": "\(request.seed)", "--precision": request.arithmetic.precision.rawValue,
            "size": "\(request.width)x\(request.height)",
        ]
        if case .flow(let flow) = request.sampling {
            values["--shift"] = "\(flow.shift)"
            values["sampler"] = flow.solver.rawValue
        }
        for file in ModelSet.files(for: models.experts + [.textEncoder]) {
            guard let path = models[file] else { continue }
            let identity = try FileIdentity(path: path)
            values[file.title] = "\(identity.name) \(identity.fingerprint)"
        }
        self.values = values
    }

    /// Keeps them in the folder of the shards, before the first one is written.
    /// - Throws: `UserError` where the shards that are there were made from others.
    func keep(in folder: FilePath) throws {
        let path = folder.appending(Self.fileName)
        if path.exists {
            let stored: [String: String]
            do {
                stored = try JSONDecoder().decode(
                    [String: String].self, from: Data(try path.contents(limit: 1 << 20)))
            } catch {
                throw UserError(
                    "dataset.settings",
                    "\(path) does not say how shards were made: choose another --output")
            }
            return try compare(stored, folder)
        }
        if try folder.fileNames().contains(where: { $0.hasSuffix(".tar") }) {
            return Output.note(
                "the shards in \(folder.string.printable) do not say how they were made; they are "
                    + "kept")
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try PendingFile.write(
            Array(try encoder.encode(values)) + [UInt8(ascii: "\n")], to: path, overwrite: false)
    }

    private func compare(_ stored: [String: String], _ folder: FilePath) throws {
        for name in Set(values.keys).union(stored.keys).sorted()
        where values[name] != stored[name] {
            throw UserError(
                "dataset.settings",
                "the shards in \(folder) were made with \(name) \(stored[name] ?? "unknown"), not "
                    + "\(values[name] ?? "unknown"): choose another --output")
        }
    }
}
