/// Samples in the original's tar shards: `<key>.latent.pt`, `<key>.embed.pt`, `<key>.prompt.txt`.

import Checkpoints
import Ground
import SystemPackage
public import Tensors

/// A data set that cannot be used.
public struct DataError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// Where the parts of one sample lie.
public struct StoredSample: Sendable {
    public let key: String
    public let shard: Int
    let latents, text, prompt: Range<Int>
}

/// All samples of some shards; nothing but headers is read before a sample is asked for.
public final class TarShards {
    public let paths: [String]
    public let samples: [StoredSample]
    private let files: [MappedFile]

    /// - Parameter paths: shards, in the order in which samples are numbered.
    /// - Throws: ``DataError`` that names shard and sample where something is missing or damaged.
    public init(_ paths: [String]) throws(DataError) {
        guard !paths.isEmpty else { throw DataError("a data set of no shards") }
        var files: [MappedFile] = []
        var samples: [StoredSample] = []
        for (shard, path) in paths.enumerated() {
            let file: MappedFile
            do { file = try MappedFile(FilePath(path)) } catch {
                throw DataError(cannotRead(path, error.reason))
            }
            samples += try Self.index(file, path, shard)
            files.append(file)
        }
        guard !samples.isEmpty else {
            throw DataError(
                "\(paths[0]) holds no samples: members are called KEY.latent.pt and so on")
        }
        self.paths = paths
        self.samples = samples
        self.files = files
    }

    /// Members that stand together and share a key are a sample: the key is the path up to the first dot of the base
    /// name, the field is the rest, in any case.
    private static func index(_ file: MappedFile, _ path: String, _ shard: Int) throws(DataError)
        -> [StoredSample]
    {
        let members: [TarMember]
        do { members = try readTar(file.bytes) } catch {
            throw DataError("\(path): \(error.reason)")
        }
        var found: [StoredSample] = []
        var key: String?
        var fields: [String: Range<Int>] = [:]
        func finish() throws(DataError) {
            guard let key else { return }
            func field(_ name: String) throws(DataError) -> Range<Int> {
                guard let range = fields[name] else {
                    throw DataError(
                        "\(path): the sample '\(key.printable)' has no \(name); every sample "
                            + "needs latent.pt, embed.pt and prompt.txt")
                }
                return range
            }
            found.append(
                StoredSample(
                    key: key, shard: shard, latents: try field("latent.pt"),
                    text: try field("embed.pt"), prompt: try field("prompt.txt")))
        }
        for member in members {
            let base = member.name.split(separator: "/").last ?? ""
            guard let dot = base.firstIndex(of: "."), dot != base.startIndex else { continue }
            let field = base[base.index(after: dot)...].lowercased()
            let its = String(member.name.dropLast(field.count + 1))
            if its != key {
                try finish()
                (key, fields) = (its, [:])
            }
            guard fields.updateValue(member.range, forKey: field) == nil else {
                throw DataError(
                    "\(path): the sample '\(its.printable)' has two members called "
                        + "\(field.printable)")
            }
        }
        try finish()
        return found
    }

    /// The parts of a sample as they are stored.
    func bytes(_ index: Int) -> (latents: [UInt8], text: [UInt8], prompt: [UInt8]) {
        let (sample, file) = (samples[index], files[samples[index].shard])
        func part(_ range: Range<Int>) -> [UInt8] { Array(file.bytes[range]) }
        return (part(sample.latents), part(sample.text), part(sample.prompt))
    }

    /// latents: [16, T, h, w], text: [rows, textDim], as stored
    public func read(_ index: Int) throws(DataError) -> (
        latents: Tensor, text: Tensor, prompt: String
    ) {
        let sample = samples[index]
        let file = files[sample.shard]
        func tensor(_ range: Range<Int>, _ field: String, rank: Int) throws(DataError) -> Tensor {
            func wrong(_ reason: String) -> DataError {
                let key = sample.key.printable
                return DataError("\(paths[sample.shard]): the sample '\(key)', \(field): \(reason)")
            }
            let tensor: Tensor
            do { tensor = try readTorchTensor(file, range, called: field) } catch {
                // The error's own words are about the shard as a whole.
                if case .malformed(_, let reason) = error { throw wrong(reason.printable) }
                throw wrong("\(error)")
            }
            guard tensor.shape.rank == rank, tensor.dtype.isFloatingPoint else {
                throw wrong("\(tensor), expected \(rank) axes of floating-point numbers")
            }
            return tensor
        }
        guard
            let prompt = String(
                validating: UnsafeRawBufferPointer(rebasing: file.bytes[sample.prompt]),
                as: UTF8.self)
        else {
            throw DataError(
                "\(paths[sample.shard]): '\(sample.key.printable).prompt.txt' is not text in UTF-8")
        }
        return (
            try tensor(sample.latents, "latent.pt", rank: 4),
            try tensor(sample.text, "embed.pt", rank: 2), prompt
        )
    }
}
