/// Writing data sets as the original's shards.

import Checkpoints
public import Ground
public import SystemPackage
public import Tensors

/// A shard that is not there before it is whole.
public final class ShardWriter {
    private let file: PendingFile
    public private(set) var count = 0

    public init(_ path: FilePath, overwrite: Bool = false) throws(FileError) {
        file = try PendingFile(path, overwrite: overwrite)
    }

    /// `<9 digits>.latent.pt`, `.embed.pt` in bf16, `.prompt.txt`.
    /// latents: [C, T, h, w], text: [rows, textDim], zero past the prompt; on the host
    public func add(_ number: Int, latents: Tensor, text: Tensor, prompt: String) throws(FileError)
    {
        let key = padded(number, 9)
        try add(
            key, torchArchive(of: latents.converted(to: .bf16)),
            torchArchive(of: text.converted(to: .bf16)), Array(prompt.utf8))
    }

    private func add(
        _ key: String, _ latents: [UInt8], _ text: [UInt8], _ prompt: [UInt8]
    ) throws(FileError) {
        for (field, bytes) in [("latent.pt", latents), ("embed.pt", text), ("prompt.txt", prompt)] {
            try file.write(tarMember("\(key).\(field)", bytes))
        }
        count += 1
    }

    /// A sample of other shards, byte by byte, under a new number.
    public func add(_ number: Int, _ index: Int, of shards: TarShards) throws(FileError) {
        let key = padded(number, 9)
        let parts = shards.bytes(index)
        try add(key, parts.latents, parts.text, parts.prompt)
    }

    public func finish() throws(FileError) {
        try file.write(tarEnd)
        try file.commit()
    }
}
