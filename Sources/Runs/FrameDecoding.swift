/// Latents to frames, with the device one chunk ahead of whoever takes them.

import Media
import Models
import Tensors

/// The decoder's part of a run.
struct FrameDecoding {
    /// Frames that the device has been asked for.
    struct Chunk {
        let sample: Int
        /// Frames, height, width, 3.
        let shape: Shape
        let format: PixelFormat
        let bytes: HostCopy
        /// The decoder's own numbers, where they are looked at.
        let values: HostCopy?
        /// Whether the device works on it by itself. All devices of a group give the same answer.
        let isAsynchronous: Bool

        /// Waits for the frames.
        func frames() throws -> FrameChunk {
            let bytes = try bytes.wait().withElements(UInt8.self) { Array($0) }
            return FrameChunk(
                sample: sample, width: shape[2], height: shape[1], count: shape[0],
                format: format, bytes: bytes)
        }

        func isFinite() throws -> Bool { try values?.wait().allFinite ?? true }
    }

    /// f32 [samples, 16, T, H, W]
    private let latents: Tensor
    private let decoder: WanVAE.Decoder
    private let format: PixelFormat
    private let device: any Backend
    private var sample = 0
    private var decoding: WanVAE.Decoding
    private var begun = 0
    private var taken = 0
    /// Begun and not taken yet.
    private var ahead: Chunk?

    init(
        _ latents: Tensor, _ decoder: WanVAE.Decoder, as format: PixelFormat,
        on device: any Backend
    ) {
        self.latents = latents
        self.decoder = decoder
        self.format = format
        self.device = device
        decoding = decoder(latents[0], on: device)
    }

    /// Share of the chunks that were taken.
    var progress: Double { Double(taken) / Double(latents.shape[0] * latents.shape[2]) }

    /// The next chunk, sample after sample; nil after the last. A device that works by itself is given the one
    /// after it first, so that it has something to do while this one is copied, stored and encoded.
    mutating func next() -> Chunk? {
        guard let chunk = ahead ?? begin() else { return nil }
        ahead = chunk.isAsynchronous ? begin() : nil
        taken += 1
        return chunk
    }

    private mutating func begin() -> Chunk? {
        var decoded = decoding.next()
        if decoded == nil, sample + 1 < latents.shape[0] {
            sample += 1
            decoding = decoder(latents[sample], on: device)
            decoded = decoding.next()
        }
        guard let decoded else { return nil }
        begun += 1
        let frames = format == .nv12 ? device.nv12(decoded) : device.rgb8(decoded)
        // The first chunk passes the spatial layers, the second one those over time as well.
        let values = begun <= 2 ? device.beginRead(decoded) : nil
        let bytes = device.beginRead(frames)
        return Chunk(
            sample: sample, shape: decoded.shape, format: format, bytes: bytes, values: values,
            isAsynchronous: bytes.isAsynchronous)
    }
}
