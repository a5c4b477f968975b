/// Writing checkpoints, one tensor after the other: it needs memory for the largest one only.

import Ground
import SystemPackage
import Tensors

/// Formats that can be written.
public enum WritableFormat: String, Sendable, CaseIterable {
    case safetensors
    /// What torch.save writes and torch.load reads, also with `weights_only=True`.
    case torchArchive = "PyTorch archive"

    /// The format for the ending of `path`.
    /// - Throws: `.unwritable` for any other ending.
    public init(forPath path: String) throws(CheckpointError) {
        if path.hasSuffix(".safetensors") {
            self = .safetensors
        } else if [".pth", ".pt", ".bin", ".ckpt"].contains(where: { path.hasSuffix($0) }) {
            self = .torchArchive
        } else {
            throw .unwritable(
                path: path, reason: "the name should end in .safetensors or .pth")
        }
    }
}

/// Writes every tensor of `checkpoint` to a new file, which gets its name when it is complete.
/// - Parameters:
///   - format: nil: the one for the ending of `path`.
///   - overwrite: whether a file at `path` may be replaced, even one that `checkpoint` reads.
///   - progress: called with the share of the bytes written so far, 0...1.
/// - Throws: what `checkpoint` throws, `.unwritable`. Nothing is then left behind.
public func writeCheckpoint(
    _ checkpoint: any Checkpoint, to path: String, format: WritableFormat? = nil,
    overwrite: Bool = false, progress: (Double) -> Void = { _ in }
) throws(CheckpointError) {
    let format = if let format { format } else { try WritableFormat(forPath: path) }
    let tensors = checkpoint.names.compactMap { checkpoint.info($0) }
    let total = tensors.reduce(0) { $0 + $1.byteCount }
    let file = try writing { () throws(FileError) in
        try PendingFile(FilePath(path), overwrite: overwrite, byteCount: total)
    }
    var done = 0
    func next(_ info: TensorInfo) throws(CheckpointError) -> Tensor {
        let tensor = try checkpoint.require(info.name)
        ensure(
            tensor.dtype == info.dtype && tensor.shape.dimensions == info.shape,
            "writeCheckpoint: '\(info.name)' was announced as \(info.shape) \(info.dtype), "
                + "is \(tensor.shape) \(tensor.dtype)")
        return tensor
    }
    func finish(_ info: TensorInfo) {
        checkpoint.forget(info.name)
        done += info.byteCount
        progress(Double(done) / Double(max(total, 1)))
    }
    switch format {
    case .safetensors:
        let ordered = aligned(tensors)
        let header = safetensorsHeader(ordered, checkpoint.metadata)
        try writing { () throws(FileError) in try file.write(header) }
        for info in ordered {
            let tensor = try next(info)
            try writing { () throws(FileError) in
                try tensor.withBytes { bytes throws(FileError) in try file.write(bytes) }
            }
            finish(info)
        }
    case .torchArchive:
        var archive = TorchArchiveWriter(file)
        try writing { () throws(FileError) in try archive.begin(tensors) }
        for info in tensors {
            let tensor = try next(info)
            try writing { () throws(FileError) in
                try tensor.withBytes { bytes throws(FileError) in try archive.add(bytes) }
            }
            finish(info)
        }
        try writing { () throws(FileError) in try archive.end() }
    }
    try writing { () throws(FileError) in try file.commit() }
}

private func writing<R>(_ body: () throws(FileError) -> R) throws(CheckpointError) -> R {
    do { return try body() } catch { throw .unwritable(error) }
}

/// The tensors in their own order if each one then begins at a multiple of its element size;
/// otherwise those with the widest elements first.
private func aligned(_ tensors: [TensorInfo]) -> [TensorInfo] {
    var offset = 0
    for info in tensors {
        guard offset % info.dtype.byteCount == 0 else {
            return tensors.enumerated()
                .sorted {
                    ($1.element.dtype.byteCount, $0.offset)
                        < ($0.element.dtype.byteCount, $1.offset)
                }
                .map(\.element)
        }
        offset += info.byteCount
    }
    return tensors
}

/// https://huggingface.co/docs/safetensors#format; the data begins at a multiple of 64 bytes.
private func safetensorsHeader(_ tensors: [TensorInfo], _ metadata: [String: String]) -> [UInt8] {
    var members: [String] = []
    if !metadata.isEmpty {
        let texts = metadata.sorted { $0.key < $1.key }
            .map { "\(jsonString($0.key)):\(jsonString($0.value))" }
        members.append("\"__metadata__\":{\(texts.joined(separator: ","))}")
    }
    var offset = 0
    for info in tensors {
        let shape = info.shape.map(String.init).joined(separator: ",")
        let end = offset + info.byteCount
        members.append(
            "\(jsonString(info.name)):{\"dtype\":\"\(info.dtype.safetensorsName)\","
                + "\"shape\":[\(shape)],\"data_offsets\":[\(offset),\(end)]}")
        offset = end
    }
    var text = Array("{\(members.joined(separator: ","))}".utf8)
    text += [UInt8](repeating: 0x20, count: (64 - (8 + text.count) % 64) % 64)
    return littleEndian(UInt64(text.count)) + text
}

extension Tensor {
    /// The bytes of a host tensor.
    func withBytes<R, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> R
    ) throws(E) -> R {
        defer { withExtendedLifetime(storage) {} }
        return try body(UnsafeRawBufferPointer(start: hostAddress, count: byteCount))
    }
}
