/// Opening files and folders: the format is recognised by the content.

import Ground
import SystemPackage
public import Tensors

/// Opens a checkpoint without reading its tensors.
/// - Parameter path: a file (safetensors, PyTorch, GGUF), an index of several files, a folder that
///   holds either, or a folder of torch.distributed.checkpoint. The file's ending does not matter.
/// - Parameter blocks: the type that GGUF's quantised blocks are decoded to.
/// - Throws: `.unreadable` or `.malformed`.
public func openCheckpoint(
    _ path: String, blocksAs blocks: DType = .bf16
) throws(CheckpointError) -> any Checkpoint {
    let place = FilePath(path)
    if place.isFolder { return try openFolder(path, blocksAs: blocks) }
    if place.lastComponent?.string == ".metadata" {
        return try openDistributed(folder: place.folder.string)
    }
    if isIndex(path) { return try openShards(index: path, blocksAs: blocks) }
    return try TensorFile(path, try contents(of: try openFile(path), blocksAs: blocks))
}

/// Opens the state of a training run: names stay as they are stored, `net.` beside `net_ema.`.
/// - Parameter path: a file, or a folder of torch.distributed.checkpoint.
public func openTrainingState(_ path: String) throws(CheckpointError) -> any Checkpoint {
    FilePath(path).isFolder
        ? try openDistributed(folder: path, asStored: true)
        : try TensorFile(
            path, try contents(of: try openFile(path), blocksAs: .bf16), asStored: true)
}

/// The content of one file.
func contents(
    of file: MappedFile, blocksAs blocks: DType
) throws(CheckpointError) -> Contents {
    if let what = recognized(file.bytes) ?? recognizedText(file.bytes) { throw file.fail(what) }
    // Look for the brace first: the length before it may look like the start of another format.
    let bytes = file.bytes
    let hasHeader = bytes.count > 8 && bytes[8] == UInt8(ascii: "{")
    if hasHeader { return try readSafetensors(file) }
    if bytes.starts(with: "GGUF".utf8) { return try readGGUF(file, blocksAs: blocks) }
    if bytes.starts(with: "PK".utf8) { return try readTorchArchive(file) }
    if bytes.count >= 2, bytes[0] == 0x80, (2...5).contains(bytes[1]) {
        return try readTorchLegacy(file)
    }
    guard file.path.string.hasSuffix(".safetensors") else {
        throw file.fail("not a safetensors, PyTorch or GGUF file")
    }
    return try readSafetensors(file)
}

/// Files that are not checkpoints, by their first bytes.
private let strangers: [(start: [UInt8], what: String)] = [
    ([0x89, 0x50, 0x4E, 0x47], "a PNG picture"), ([0xFF, 0xD8, 0xFF], "a JPEG picture"),
    ([0x1F, 0x8B], "packed with gzip: unpack it first"),
    ([0x28, 0xB5, 0x2F, 0xFD], "packed with zstd: unpack it first"),
    ([0xFD, 0x37, 0x7A, 0x58, 0x5A], "packed with xz: unpack it first"),
    (Array("BZh".utf8), "packed with bzip2: unpack it first"),
    ([0x37, 0x7A, 0xBC, 0xAF], "a 7z archive: unpack it first"),
    (Array("Rar!".utf8), "a RAR archive: unpack it first"),
    ([0x89, 0x48, 0x44, 0x46], "an HDF5 file (Keras), which is not supported"),
    ([0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59], "a NumPy array, which is not supported"),
    (Array("%PDF".utf8), "a PDF document"), ([0x7F, 0x45, 0x4C, 0x46], "a program"),
    (Array("ggml".utf8), "GGML from before GGUF, which is not supported"),
    (Array("lmgg".utf8), "GGML from before GGUF, which is not supported"),
    (Array("tjgg".utf8), "GGML from before GGUF, which is not supported"),
]

/// Recognises files that are often found where a model should be; nil for anything else.
func recognized(_ bytes: UnsafeRawBufferPointer) -> String? {
    if bytes.starts(with: "version https://git-lfs".utf8) {
        return "a Git LFS pointer, which only names the file: fetch it with 'git lfs pull', or "
            + "download it again"
    }
    let text = String(decoding: bytes.prefix(256), as: UTF8.self)
        .drop { $0.isWhitespace || $0 == "\u{FEFF}" }.lowercased()
    if ["<!doctype", "<html", "<?xml", "<head"].contains(where: { text.hasPrefix($0) }) {
        return "a web page (HTML), not a model: the download was answered by a page, perhaps one "
            + "that asks to log in"
    }
    if text.hasPrefix("{\"error") || text.hasPrefix("entry not found")
        || text.hasPrefix("access to model") || text.hasPrefix("invalid ")
    {
        return "an error message, not a model: '\(text.prefix(80))'"
    }
    if let stranger = strangers.first(where: { bytes.starts(with: $0.start) }) {
        return stranger.what
    }
    if bytes.count >= 64, bytes.prefix(1 << 16).allSatisfy({ $0 == 0 }) {
        return "it begins with zeros: an unfinished download"
    }
    return nil
}

/// Says what a text is that stands where a checkpoint should: nil for what is no text. No checkpoint begins with eight
/// characters, which as the length of a header would be at least 2^59 bytes.
private func recognizedText(_ bytes: UnsafeRawBufferPointer) -> String? {
    let isText = bytes.prefix(8).allSatisfy { (0x20..<0x7F).contains($0) || (9...13).contains($0) }
    guard bytes.count >= 8, isText else { return nil }
    let start = String(decoding: bytes.prefix(80), as: UTF8.self)
    return "a text, not a model: '\(start.trimmed)'"
}
