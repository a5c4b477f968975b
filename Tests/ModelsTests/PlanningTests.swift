/// The published models, built from names and shapes alone on the machine that computes nothing.

import Checkpoints
import Models
import Tensors
import Testing

@Suite struct PlanningTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        var sizes: WanTransformerArchitecture
        let latent: Extent
        /// TFLOP per step: linear layers, visited attention blocks, cross attention.
        let linear, visited, cross: Double
        var testDescription: String { name }
    }

    static let cases = [
        Case(
            name: "1.3B 480p", sizes: .wan21T2V1B, latent: Extent(t: 21, h: 60, w: 104), linear: 82,
            visited: 20,
            cross: 3),
        Case(
            name: "14B 480p", sizes: .wan21T2V14B, latent: Extent(t: 21, h: 60, w: 104),
            linear: 783,
            visited: 88, cross: 14),
        Case(
            name: "14B 720p", sizes: .wan21T2V14B, latent: Extent(t: 21, h: 90, w: 160),
            linear: 1808,
            visited: 468, cross: 32),
    ]

    @Test("the arithmetic of a step follows from the shapes", arguments: cases)
    func step(planned: Case) throws {
        var sizes = planned.sizes
        sizes.hasSparseLinearAttention = true
        sizes.linears = .int8Blocks
        let clock = ContinuousClock()
        let start = clock.now
        let device = NullBackend()
        let net = try WanTransformer(
            Weights(
                Outline(.wanTransformer(sizes), numbers: .bf16), on: device, activations: .bf16),
            WanTransformerOptions(
                attention: .sparse(SparseAttention(topK: 0.1, arithmetic: .sage(.sm90)))))
        let text = TextEmbedding(
            rows: device.place(.zeros([512, sizes.textDim], .bf16), as: .bf16), count: 512)
        let context = net.prepare(text, size: planned.latent, on: device)
        let weightBytes = device.placedBytes
        let x = device.place(
            .zeros([16, planned.latent.t, planned.latent.h, planned.latent.w], .f32), as: .f32)
        device.resetCounts()
        device.resetPeak()
        let v = net([x], timestep: 900, context, on: device)
        let elapsed = start.duration(to: clock.now)
        #expect(v.shape == x.shape)

        func tera(_ names: String...) -> Double {
            names.reduce(0) { $0 + Double(device.counts[$1]?.flops ?? 0) } / 1e12
        }
        let tokens = planned.latent.t * planned.latent.h * planned.latent.w / 4
        let linearBranch =
            6.0 * Double(tokens * sizes.headDim * sizes.dim * sizes.layers) / 1e12
        #expect(abs(tera("linear", "linearAdd") / planned.linear - 1) < 0.02)
        #expect(abs((tera("sparseLinearAttention") - linearBranch) / planned.visited - 1) < 0.06)
        #expect(abs(tera("attention") / planned.cross - 1) < 0.15)
        // The residual stream, q, k, v and the result of the attention, of the feed-forward or of
        // the head.
        let stream = tokens * sizes.dim * 2
        let contextBytes = 2 * 512 * sizes.dim * 2 * sizes.layers
        #expect(device.activations.peak < 11 * stream / 2 + contextBytes)
        #expect(device.activations.peak > 5 * stream)
        #expect(weightBytes > sizes.tensors().reduce(0) { $0 + $1.shape.reduce(1, *) })
        #expect(elapsed < .seconds(1))
    }

    /// Computes nothing, and notes the largest array of numbers that the host has made for it.
    private final class Watched: ForwardingBackend {
        private(set) var largest = 0
        init() { super.init(NullBackend()) }

        override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
            if host.isOnHost { largest = max(largest, host.byteCount) }
            return super.place(host, as: dtype, in: group)
        }
    }

    @Test("nobody makes numbers for a device that reads none")
    func nothingIsMade() throws {
        let device = Watched()
        func weights(_ model: DetectedModel) -> Weights {
            Weights(Outline(model, numbers: .bf16), on: device, activations: .bf16)
        }
        let textEncoder = try UMT5(weights(.umT5(.xxl)))
        let text = textEncoder([1, 2, 3], on: device)
        #expect(text.rows.shape == [512, 4096])
        let net = try WanTransformer(
            weights(.wanTransformer(.wan21T2V14B)), WanTransformerOptions())
        let size = Extent(t: 21, h: 90, w: 160)
        let context = net.prepare(text, size: size, on: device)
        let noise: Tensor = device.place([16, size.t, size.h, size.w], as: .f32) {
            Issue.record("made for nobody")
            return .zeros([16, size.t, size.h, size.w], .f32)
        }
        let latents = net([noise], timestep: 900, context, on: device)
        let vae = weights(.wanVAE(WanVAEArchitecture()))
        let encoder = try WanVAE.Encoder(vae)
        let picture = device.place([720, 1280, 3], as: .bf16) {
            Issue.record("made for nobody")
            return .zeros([720, 1280, 3], .bf16)
        }
        _ = encoder.encodeImage(picture, frameCount: 9, on: device)
        // A timestep's sinusoid is all there is.
        #expect(device.largest <= 4096, "\(device.largest) bytes")

        // What is read is made only when somebody waits for it.
        var decoding = try WanVAE.Decoder(vae)(latents, on: device)
        let first = decoding.next()
        let copy = device.beginRead(try #require(first))
        #expect(copy.isComplete && !copy.isAsynchronous)
        #expect(try copy.wait().shape == [1, 720, 1280, 3])
    }

    @Test("umT5-xxl keeps its vocabulary on the host")
    func textEncoder() throws {
        let device = NullBackend()
        let encoder = try UMT5(
            Weights(
                Outline(.umT5(.xxl), numbers: .bf16), on: device,
                activations: .bf16))
        let text = encoder([Int32](repeating: 1, count: 512), on: device)
        #expect(text.rows.shape == [512, 4096])
        // 24 layers of 4 * 4096^2 + 3 * 4096 * 10240 parameters.
        let parameters = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
        #expect(
            device.counts["linear"]!.flops + device.counts["linearAdd"]!.flops == 1024 * parameters)
        #expect(abs(Double(device.placedBytes) / Double(2 * parameters) - 1) < 0.001)
        #expect(device.activations.peak < 64 << 20)
    }

    @Test(
        "the arithmetic of the autoencoder follows from the shapes",
        arguments: [((60, 104), 274.0, 162.0, 5.0), ((90, 160), 633.0, 375.0, 11.0)])
    func autoencoder(
        size: (h: Int, w: Int), decodeTera: Double, encodeTera: Double, decodeGigabytes: Double
    ) throws {
        let device = NullBackend()
        let weights = Weights(
            Outline(.wanVAE(WanVAEArchitecture()), numbers: .f32), on: device,
            activations: .bf16)
        let decoder = try WanVAE.Decoder(weights)
        let latents = device.place(.zeros([16, 21, size.h, size.w], .f32), as: .f32)
        device.resetPeak()
        var frames = 0
        for chunk in decoder(latents, on: device) {
            frames += chunk.shape[0]
            #expect(chunk.shape.tail == [8 * size.h, 8 * size.w, 3])
        }
        #expect(frames == 81)
        #expect(abs(convolutions(device) / decodeTera - 1) < 0.02)
        #expect(Double(device.memory.peak) < decodeGigabytes * 1e9)

        let encoder = try WanVAE.Encoder(weights)
        device.resetCounts()
        let picture = device.place(.zeros([8 * size.h, 8 * size.w, 3], .bf16), as: .bf16)
        let found = encoder.encodeImage(picture, frameCount: 81, on: device)
        #expect(found.shape == [16, 21, size.h, size.w])
        #expect(abs(convolutions(device) / encodeTera - 1) < 0.02)
    }

    @Test("decoding takes no more memory for a longer video")
    func decodingIsStreamed() throws {
        func peak(latentFrames: Int) throws -> Int {
            let device = NullBackend()
            let decoder = try WanVAE.Decoder(
                Weights(
                    Outline(.wanVAE(WanVAEArchitecture(dim: 24)), numbers: .f32), on: device,
                    activations: .bf16))
            let latents = device.place(.zeros([16, latentFrames, 18, 32], .f32), as: .f32)
            // The latents themselves are all there from the start.
            let own = latents.byteCount / 2
            for _ in decoder(latents, on: device) {}
            return device.activations.peak - own
        }
        let short = try peak(latentFrames: 4)
        let long = try peak(latentFrames: 40)
        #expect(long <= short + 512)
    }

    @Test("weights are grouped by block, and those for the text separately")
    func groups() throws {
        let device = NullBackend()
        var sizes = WanTransformerArchitecture.wan21T2V1B
        sizes.linears = .int8Blocks
        let net = try WanTransformer(
            Weights(
                Outline(.wanTransformer(sizes), numbers: .bf16), on: device, activations: .bf16),
            WanTransformerOptions())
        #expect(
            device.groups.map(\.name) == net.groups.blocks.map(\.name) + net.groups.text.map(\.name)
        )
        let grouped = device.groups.reduce(0) { $0 + $1.byteCount }
        #expect(grouped > device.placedBytes / 2 && grouped < device.placedBytes)
    }

    @Test("a wrong shape ends the run with a message that names the operation and both shapes")
    func wrongShape() async {
        await #expect(processExitsWith: .failure) {
            let device = NullBackend()
            let x = device.place(.zeros([4, 8], .f32), as: .f32)
            _ = device.gatedAdd(x, x.reshaped([8, 4]), gate: nil)
        }
    }

    private func convolutions(_ device: NullBackend) -> Double {
        Double(device.counts["convolution"]?.flops ?? 0) / 1e12
    }
}
