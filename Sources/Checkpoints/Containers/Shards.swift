/// Checkpoints in several files, as model hubs publish them, and folders of checkpoints.

import Ground
import SystemPackage
import Tensors

/// `model.safetensors.index.json`, `pytorch_model.bin.index.json`, and those of variants,
/// `model.safetensors.index.fp16.json`.
func isIndex(_ name: String) -> Bool { name.hasSuffix(".json") && name.contains(".index.") }

/// The endings of checkpoint files by format, the preferred format first.
private let endings = [[".safetensors"], [".gguf"], [".bin", ".pth", ".pt", ".ckpt"]]

/// Opens a folder with one checkpoint: an index, a file, or numbered files.
func openFolder(
    _ folder: String, blocksAs blocks: DType
) throws(CheckpointError) -> any Checkpoint {
    func names(_ path: String) throws(CheckpointError) -> [String] {
        do { return try FilePath(path).fileNames() } catch { throw .unreadable(error) }
    }
    let names = try names(folder)
    if names.contains(".metadata") { return try openDistributed(folder: folder) }
    let base = folder.hasSuffix("/") ? folder : folder + "/"
    for endings in endings {
        let files = names.filter { name in endings.contains { name.hasSuffix($0) } }
        let indices = names.filter { name in
            isIndex(name) && endings.contains { name.contains($0 + ".index.") }
        }
        if indices.count == 1 {
            return try openShards(index: base + indices[0], blocksAs: blocks)
        }
        if files.isEmpty, indices.isEmpty { continue }
        let groups = Dictionary(grouping: files) { NumberedName($0)?.group ?? $0 }
        guard indices.isEmpty, groups.count == 1, let group = groups.first else {
            throw .several(folder: folder, names: indices + groups.values.map { $0[0] }.sorted())
        }
        guard let first = NumberedName(group.value[0]) else {
            return try openCheckpoint(base + group.value[0], blocksAs: blocks)
        }
        let found = Set(group.value.compactMap { NumberedName($0)?.number })
        if let missing = (1...first.count).first(where: { !found.contains($0) }) {
            throw .unreadable(
                path: folder,
                reason: "number \(missing) of \(first.count) files called \(first.group) is missing"
            )
        }
        return try joined(group.value.sorted(), in: base, as: folder, blocksAs: blocks)
    }
    // Training programs write the model to a folder of its own.
    if names.contains("model"), FilePath(base + "model/.metadata").isRegularFile {
        return try openDistributed(folder: base + "model")
    }
    throw .unreadable(path: folder, reason: "the folder holds no checkpoint")
}

/// `name-00001-of-00003.safetensors`
private struct NumberedName {
    let number, count: Int
    /// The name without the number.
    let group: String

    init?(_ name: String) {
        let parts = name.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count >= 4, parts[parts.count - 2] == "of",
            let number = Int(parts[parts.count - 3]),
            let count = Int(parts[parts.count - 1].prefix { $0.isASCII && $0.isNumber }),
            (1...10_000).contains(count), (1...count).contains(number)
        else { return nil }
        self.number = number
        self.count = count
        group = (parts[..<(parts.count - 3)] + ["*"] + parts[(parts.count - 2)...])
            .joined(separator: "-")
    }
}

/// Whether files of these names are pieces of one checkpoint, or the index of them.
public func arePieces(_ names: [String]) -> Bool {
    names.contains { isIndex($0) || NumberedName($0) != nil }
}

/// Joins the tensors of several files.
private func joined(
    _ names: [String], in folder: String, as path: String, blocksAs blocks: DType
) throws(CheckpointError) -> any Checkpoint {
    var whole = Contents(format: .sharded)
    for name in names {
        let part = try contents(of: try openFile(folder + name), blocksAs: blocks)
        whole.metadata.merge(part.metadata) { old, _ in old }
        whole.tensors += part.tensors
        whole.foreign += part.foreign
    }
    return try TensorFile(path, whole)
}

/// Whether a name that stands in a file can only be that of a file in the same folder. For the system a name ends at a NUL.
func isNeighbour(_ name: String) -> Bool {
    !name.utf8.contains { $0 == UInt8(ascii: "/") || $0 == 0 } && !name.hasPrefix(".")
}

/// Opens the files of an index: {"metadata": {...}, "weight_map": {tensor: file}}
func openShards(
    index path: String, blocksAs blocks: DType
) throws(CheckpointError) -> any Checkpoint {
    let file = try openFile(path)
    if let what = recognized(file.bytes) { throw file.fail(what) }
    guard file.bytes.count <= SafetensorsHeader.maximumHeaderBytes else {
        throw file.fail("an index of more than 100 MB")
    }
    var shardNames: [String] = []
    var tensorsOfShard: [String: Set<String>] = [:]
    var json = JSONReader(file.bytes)
    do {
        try json.object { key, json throws(JSONReader.Failure) in
            guard key == "weight_map" else { return try json.skipValue() }
            try json.object { tensor, json throws(JSONReader.Failure) in
                let shard = try json.string()
                if tensorsOfShard[shard] == nil { shardNames.append(shard) }
                tensorsOfShard[shard, default: []].insert(tensor)
            }
        }
        try json.end()
    } catch {
        throw file.fail("byte \(error.position): \(error.reason)")
    }
    guard !shardNames.isEmpty else { throw file.fail("the index names no tensor") }
    let folder = FilePath(path).folder
    var whole = Contents(format: .sharded)
    for shard in shardNames {
        // An index may only name files in its own folder.
        guard isNeighbour(shard), endings.joined().contains(where: { shard.hasSuffix($0) }) else {
            throw file.fail("'\(shard)' is not the name of a checkpoint in the same folder")
        }
        let part = try contents(
            of: try openFile(folder.appending(shard).string), blocksAs: blocks)
        whole.metadata.merge(part.metadata) { old, _ in old }
        var wanted = tensorsOfShard[shard] ?? []
        whole.tensors += part.tensors.filter { wanted.remove($0.name) != nil }
        whole.foreign += part.foreign.filter { wanted.remove($0.name) != nil }
        if let missing = wanted.min() {
            throw file.fail("tensor '\(missing)' should be in \(shard) but is not")
        }
    }
    return try TensorFile(path, whole)
}
