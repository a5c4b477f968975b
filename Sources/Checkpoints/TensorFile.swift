/// An opened checkpoint of any format: names and the places of their bytes in mapped files.

import Ground
import SystemPackage
import Tensors

/// How a checkpoint lies on disk.
public enum CheckpointFormat: String, Sendable {
    case safetensors
    /// Several safetensors files and an index.
    case shardedSafetensors = "safetensors (sharded)"
    /// What torch.save writes since 1.6: a zip archive.
    case torchArchive = "PyTorch archive"
    /// What torch.save wrote before: a stream of pickles.
    case torchLegacy = "PyTorch legacy stream"
}

/// A tensor in a mapped file. `strides` (in elements) is nil where it is contiguous.
struct StoredTensor: Sendable {
    var name: String
    let dtype: DType
    let shape: [Int]
    let strides: [Int]?
    let file: MappedFile
    /// First element's byte in the file.
    let offset: Int
    /// Bytes of the contiguous tensor.
    let byteCount: Int
}

/// Tensors by name; their elements are read from the mapping when asked for.
final class TensorFile: Checkpoint, Sendable {
    let path: String
    let format: CheckpointFormat?
    let metadata: [String: String]
    let names: [String]
    private let tensors: [String: StoredTensor]

    init(
        _ path: String, _ format: CheckpointFormat, metadata: [String: String],
        tensors stored: [StoredTensor]
    ) throws(CheckpointError) {
        self.path = path
        self.format = format
        self.metadata = metadata
        var byName: [String: StoredTensor] = [:]
        var names: [String] = []
        byName.reserveCapacity(stored.count)
        names.reserveCapacity(stored.count)
        let full = Set(stored.lazy.map(\.name))
        for tensor in stored {
            // A name keeps its prefix where another tensor already bears the short one.
            let short = WrapperPrefix.stripped(tensor.name)
            let name = short != tensor.name && full.contains(short) ? tensor.name : short
            guard byName.updateValue(tensor, forKey: name) == nil else {
                throw .malformed(path: path, reason: "two tensors are called '\(name)'")
            }
            names.append(name)
        }
        self.names = names
        tensors = byName
    }

    func info(_ name: String) -> TensorInfo? {
        tensors[name].map { TensorInfo(name: name, shape: $0.shape, dtype: $0.dtype) }
    }

    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        guard let stored = tensors[name] else { return nil }
        let shape = Shape(stored.shape)
        if let strides = stored.strides { return gathered(stored, shape, strides) }
        let bytes = UnsafeRawBufferPointer(
            rebasing: stored.file.bytes[stored.offset..<stored.offset + stored.byteCount])
        if stored.offset % stored.dtype.byteCount == 0 {
            return Tensor(
                shape, stored.dtype, storage: HostStorage(borrowing: bytes, owner: stored.file))
        }
        // Elements at odd addresses (unpadded headers, legacy streams) are moved to even ones.
        let copy = Tensor.host(shape, stored.dtype)
        UnsafeMutableRawBufferPointer(start: copy.hostAddress, count: bytes.count)
            .copyMemory(from: bytes)
        return copy
    }

    func forget(_ name: String) {
        guard let stored = tensors[name], stored.strides == nil else { return }
        stored.file.forget(stored.offset..<stored.offset + stored.byteCount)
    }

    /// A contiguous copy of a view with arbitrary strides.
    private func gathered(_ stored: StoredTensor, _ shape: Shape, _ strides: [Int]) -> Tensor {
        let copy = Tensor.host(shape, stored.dtype)
        let size = stored.dtype.byteCount
        var index = [Int](repeating: 0, count: stored.shape.count)
        var source = stored.file.bytes.baseAddress! + stored.offset
        var target = copy.hostAddress
        for _ in 0..<shape.count {
            target.copyMemory(from: source, byteCount: size)
            target += size
            // Odometer: the last axis turns fastest.
            var axis = index.count - 1
            while axis >= 0 {
                index[axis] += 1
                source += strides[axis] * size
                if index[axis] < stored.shape[axis] { break }
                source -= strides[axis] * size * stored.shape[axis]
                index[axis] = 0
                axis -= 1
            }
        }
        return copy
    }
}

/// Prefixes that training frameworks and other programs put before the model's own names.
enum WrapperPrefix {
    static let all = ["net.", "module.", "model.", "diffusion_model.", "_orig_mod."]

    /// The name without any number of wrapper prefixes.
    static func stripped(_ name: String) -> String {
        var rest = name[...]
        while let prefix = all.first(where: { rest.hasPrefix($0) && rest.count > $0.count }) {
            rest = rest.dropFirst(prefix.count)
        }
        return String(rest)
    }
}

/// Opens a checkpoint without reading its tensors.
/// - Parameter path: a safetensors file, its `*.safetensors.index.json`, a folder that holds
///   either, or a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`). The format is told by the content,
///   not by the name.
/// - Throws: `.unreadable` or `.malformed`.
public func openCheckpoint(_ path: String) throws(CheckpointError) -> any Checkpoint {
    if FilePath(path).isFolder { return try openFolder(path) }
    if path.hasSuffix(".index.json") { return try openShards(index: path) }
    let file = try openFile(path)
    // The brace first: the length before it may look like the start of the other formats.
    let hasHeader = file.bytes.count > 8 && file.bytes[8] == UInt8(ascii: "{")
    if !hasHeader {
        let start = file.bytes.prefix(2)
        if start.elementsEqual([0x50, 0x4B]) { return try openTorchArchive(file) }
        if start.count == 2, start[0] == 0x80, (2...5).contains(start[1]) {
            return try openTorchLegacy(file)
        }
        guard path.hasSuffix(".safetensors") else {
            throw file.fail("neither a safetensors nor a PyTorch file")
        }
    }
    let header = try SafetensorsHeader(file)
    return try TensorFile(
        path, .safetensors, metadata: header.metadata, tensors: header.tensors)
}
