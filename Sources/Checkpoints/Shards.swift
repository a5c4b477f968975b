/// Checkpoints in several safetensors files with an index, as model hubs publish them.

import Ground
import SystemPackage

/// A folder with one index, or with a single checkpoint file.
func openFolder(_ folder: String) throws(CheckpointError) -> any Checkpoint {
    let names: [String]
    do { names = try FilePath(folder).fileNames() } catch { throw .unreadable(error) }
    let indices = names.filter { $0.hasSuffix(".safetensors.index.json") }
    let files = names.filter { name in
        [".safetensors", ".pth", ".pt", ".ckpt", ".bin"].contains { name.hasSuffix($0) }
    }
    let candidates = indices.isEmpty ? files : indices
    guard candidates.count == 1 else {
        throw .unreadable(
            path: folder,
            reason: candidates.isEmpty
                ? "the folder holds no checkpoint"
                : "the folder holds several checkpoints, name one of them: "
                    + candidates.prefix(4).joined(separator: ", "))
    }
    return try openCheckpoint(folder + "/" + candidates[0])
}

/// `*.safetensors.index.json`: {"metadata": {...}, "weight_map": {tensor: file}}
func openShards(index path: String) throws(CheckpointError) -> any Checkpoint {
    let file = try openFile(path)
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
    var stored: [StoredTensor] = []
    var metadata: [String: String] = [:]
    for shard in shardNames {
        // An index may only name its neighbours.
        guard !shard.contains("/"), shard != "..", shard.hasSuffix(".safetensors") else {
            throw file.fail("'\(shard)' is not the name of a safetensors file in the same folder")
        }
        let header = try SafetensorsHeader(try openFile(folder.appending(shard).string))
        metadata.merge(header.metadata) { old, _ in old }
        var wanted = tensorsOfShard[shard] ?? []
        stored += header.tensors.filter { wanted.remove($0.name) != nil }
        if let missing = wanted.min() {
            throw file.fail("tensor '\(missing)' should be in \(shard) but is not")
        }
    }
    return try TensorFile(path, .shardedSafetensors, metadata: metadata, tensors: stored)
}
