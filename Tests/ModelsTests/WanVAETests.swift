/// The video autoencoder against the original, and its image shortcut against itself.

import CPU
import Checkpoints
import Models
import Tensors
import Testing

@Suite struct WanVAETests {
    static let decodings = Golden.cases("vae", "vae_decode")
    static let encodings = Golden.cases("vae", "vae_encode")

    @Test("decodes chunk by chunk to the original's frames", arguments: decodings)
    func decodes(golden: Golden) throws {
        let tensors = try golden.tensors()
        let latents = try tensors.need("in.latent")[0].converted(to: .f32)
        for (activations, output) in [
            (DType.f32, "out.video_fp32"), (.bf16, "out.video_bf16iface"),
        ] where tensors.info(output) != nil {
            let device = CPUBackend()
            let decoder = try WanVAE.Decoder(
                Weights(golden.checkpoints(), on: device, activations: activations))
            let chunks = Array(decoder(latents, on: device))
            #expect(chunks.map { $0.shape[0] } == [1] + chunks.dropFirst().map { _ in 4 })
            let video = device.concatenate(chunks)
            try golden.expect(channelsFirst(video, device), equals: output)
        }
    }

    @Test("encodes chunk by chunk to the original's latents", arguments: encodings)
    func encodes(golden: Golden) throws {
        let tensors = try golden.tensors()
        for (activations, output) in [
            (DType.f32, "out.latent_fp32"), (.bf16, "out.latent_bf16iface"),
        ] where tensors.info(output) != nil {
            let device = CPUBackend()
            let encoder = try WanVAE.Encoder(
                Weights(golden.checkpoints(), on: device, activations: activations))
            let video = try tensors.need("in.video")[0].converted(to: .f32)
            let one = [Float](repeating: 1, count: 3)
            let zero = [Float](repeating: 0, count: 3)
            let frames = device.channelsLast(video, scale: one, shift: zero, dtype: activations)
            try golden.expect(device.read(encoder(frames, on: device)), equals: output)
        }
    }

    @Test("a picture and grey frames: repeated chunks are copied, with the same result")
    func imageEncoding() throws {
        let golden = try #require(Self.encodings.first { $0.name.contains("1x48x64") })
        for activations in [DType.f32, .bf16] {
            let device = CPUBackend()
            let encoder = try WanVAE.Encoder(
                Weights(golden.checkpoints(), on: device, activations: activations))
            let video = try golden.tensors().need("in.video")[0].converted(to: activations)
            let (height, width) = (8, 16)
            let picture = Tensor.host([height, width, 3], activations)
            // Any picture will do.
            picture.hostAddress.copyMemory(from: video.hostAddress, byteCount: picture.byteCount)
            let frames = 141
            let whole = device.concatenate([
                picture.reshaped([1, height, width, 3]),
                .zeros([frames - 1, height, width, 3], activations),
            ])
            let expected = encoder(whole, on: device)
            var computed: [Int] = []
            let found = encoder.encodeImage(picture, frameCount: frames, on: device) {
                computed = $0.stageRuns
            }
            #expect(device.equalBits(expected, found))
            #expect(computed.count == 3)
            // Chunks that each stage computed, of 36: later stages see the picture for longer.
            #expect(computed[0] <= 8 && computed[1] <= 14 && computed[2] < 36)
            #expect(computed == computed.sorted())
        }
    }

    func channelsFirst(_ video: Tensor, _ device: any Backend) -> Tensor {
        device.read(
            device.channelsFirst(
                video, scale: [Float](repeating: 1, count: 3),
                shift: [Float](repeating: 0, count: 3)))
    }
}
