/// Decoding latents to frames, with the device one chunk ahead of the caller.

import Media
import Models
import Tensors

/// The decoding of all samples of a run, chunk by chunk.
struct FrameDecoding {
    /// Frames that the device has been asked to make.
    struct Chunk {
        let sample: Int
        /// [frames, height, width, 3]
        let shape: Shape
        let format: PixelFormat
        let bytes: HostCopy
        /// The decoder's own output, for chunks that are checked for numbers that are not finite.
        let values: HostCopy?
        /// Whether the device computes it in the background. All devices of a group give the same answer.
        let isAsynchronous: Bool

        /// Waits for the frames.
        func frames() throws -> FrameChunk {
            frames(try bytes.wait().withElements(UInt8.self) { Array($0) })
        }

        /// The frames without their bytes, for a run that is only planned.
        var outline: FrameChunk { frames([]) }

        private func frames(_ bytes: [UInt8]) -> FrameChunk {
            FrameChunk(
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
    /// The chunk that has been begun but not yet taken.
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

    /// Share of the chunks that have been taken, in 0...1.
    var progress: Double { Double(taken) / Double(latents.shape[0] * latents.shape[2]) }

    /// The next chunk, sample after sample; nil after the last. A device that works in the background is first given
    /// the chunk after that, so that it is busy while this one is copied, stored and encoded.
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
        // The first chunk passes through the spatial layers only, the second one also through those over time.
        let values = begun <= 2 ? device.beginRead(decoded) : nil
        let bytes = device.beginRead(frames)
        return Chunk(
            sample: sample, shape: decoded.shape, format: format, bytes: bytes, values: values,
            isAsynchronous: bytes.isAsynchronous)
    }
}
